"""The families Qwen2-VL and Qwen2.5-VL: their chat template, vision tower, positions and language model.

The language model is called directly, with explicit positions; the two families differ only inside the vision tower.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging

from masp.backbones.files import BackboneFiles, chat_template
from masp.backbones.qwen2_vl_language import QwenLanguageModel
from masp.backbones.qwen2_vl_vision import BatchedVisionAttention, MatrixPatchEmbed
from masp.errors import BackboneError
from masp.types import Assembled, KeyValues, Pixels, Run, Template, VisualTokens

MODELS = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
SYSTEM_TURN = "You are a helpful assistant."  # what Qwen's own template says when it is asked for nothing else
QUESTION_HERE = "\ue000question\ue001"  # private-use characters: no template holds them
TEMPLATES_KEPT = 4096


class QwenVLBackbone:
    """A frozen Qwen2-VL or Qwen2.5-VL; see `masp.backbones.base.Backbone` for the interface."""

    def __init__(self, files: BackboneFiles, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.name = files.name
        self.revision = files.revision
        self.family: str = files.model_type
        self._files = files
        self._model = model.eval().requires_grad_(False)
        self._language = model.model.language_model
        self._decoder = QwenLanguageModel(self._language)
        self._vision = model.model.visual
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self.dim: int = model.config.text_config.hidden_size
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.end_of_turn: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        size = image_processor.size
        self.image_transform: dict[str, Any] = {
            "rule": "qwen2_vl",
            "min_pixels": size["shortest_edge"],
            "max_pixels": size["longest_edge"],
            "patch": image_processor.patch_size,
            "merge": image_processor.merge_size,
        }
        self._vision.patch_embed = MatrixPatchEmbed(self._vision.patch_embed)
        for block in self._vision.blocks:
            block.attn = BatchedVisionAttention(block.attn)
        self._pieces = functools.lru_cache(TEMPLATES_KEPT)(self._template_pieces)

    @classmethod
    def load(cls, files: BackboneFiles, dtype: torch.dtype, device: torch.device) -> Self:
        """The model of a folder, frozen; only safetensors weights are read, and no code of the checkpoint is run."""
        with quiet_loading():
            model, found = MODELS[files.model_type].from_pretrained(
                files.folder,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation="sdpa",
                local_files_only=True,
                output_loading_info=True,
            )
        if absent := sorted(found["missing_keys"]):
            raise BackboneError(
                f"the weights of {files.name} lack {len(absent)} tensors, {absent[0]} among them",
                "a whole checkpoint",
                "Fetch it again.",
            )
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
        tokenizer.chat_template = chat_template(files, tokenizer.chat_template)
        processor = Qwen2VLImageProcessorPil.from_pretrained(files.folder, local_files_only=True)
        return cls(files, model.to(device), tokenizer, processor)

    def fingerprint(self) -> str:
        """Hash of the stored configuration and weights."""
        return self._files.fingerprint

    # Images

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Flattened patches of RGB images, sized by the checkpoint's own pixel bounds."""
        batch = self._image_processor(images=list(images), return_tensors="pt")
        return Pixels(values=batch["pixel_values"], grid=batch["image_grid_thw"])

    @torch.no_grad()
    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens after the merger, row by row over the image."""
        merge: int = self._vision.spatial_merge_size
        moved = pixels.to(self.device)
        features = self._vision(moved.values, grid_thw=moved.grid).pooler_output
        grids = [(rows // merge, columns // merge) for _, rows, columns in pixels.grid.tolist()]
        counts = [rows * columns for rows, columns in grids]
        width = max(counts)
        grid = torch.tensor(grids, device=self.device)
        mask = torch.arange(width, device=self.device) < torch.tensor(counts, device=self.device)[:, None]
        tokens = features.new_zeros(len(grids), width, self.dim)
        tokens[mask] = features
        return VisualTokens(tokens=tokens, mask=mask, boxes=cell_boxes(grid, width) * mask[..., None], grid=grid)

    # Text

    def template(self, question: str, visual: int) -> Template:
        """The chat turn with `visual` placeholders; the system turn is what the checkpoint's template gives."""
        before, after, text_start = self._pieces(question)
        stop = len(before) + visual
        ids = before + (self._model.config.image_token_id,) * visual + after
        newline = len(ids) - 1 if self._tokenizer.decode([ids[-1]]) == "\n" else None
        return Template(ids, len(before) - 1, len(before), stop, stop + text_start, newline)

    def _template_pieces(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Ids up to ⟨vision start⟩ and from ⟨vision end⟩ on, and how many of the latter come before the text."""
        head, tail = self._turn
        ids = self._encode(head, question, tail)
        opening, closing = self._model.config.vision_start_token_id, self._vision_end
        if ids.count(opening) != 1 or ids.count(closing) != 1:
            raise BackboneError(
                f"the chat template of {self.name} does not mark the image",
                "one <|vision_start|> and one <|vision_end|> around it",
                "Use the chat template of the original Qwen checkpoint.",
            )
        start, stop = ids.index(opening) + 1, ids.index(closing)
        return tuple(ids[:start]), tuple(ids[stop:]), 1

    @functools.cached_property
    def _vision_end(self) -> int:
        return self._tokenizer.convert_tokens_to_ids("<|vision_end|>")

    @functools.cached_property
    def _turn(self) -> tuple[str, str]:
        """The rendered chat turn before and after the question."""
        content = [{"type": "image"}, {"type": "text", "text": QUESTION_HERE}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        render = functools.partial(self._tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        text = render(messages)
        if "<|im_start|>system" not in text:
            text = render([{"role": "system", "content": SYSTEM_TURN}, *messages])
        head, found, tail = text.partition(QUESTION_HERE)
        if not found:
            raise BackboneError(f"the chat template of {self.name} drops the question", "a template that keeps it")
        return head, tail

    @functools.cached_property
    def _marks(self) -> dict[str, int]:
        """The tokenizer's special tokens and their ids."""
        return {str(token): index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def _encode(self, head: str, text: str, tail: str) -> list[int]:
        """Ids of head + text + tail in which only the template's own marks are special tokens.

        Text between two marks is tokenised as one run, so user text merges with its neighbours exactly as in a plain
        tokenisation of the whole, while "<|im_end|>" inside `text` stays text.
        """
        pattern = re.compile("(" + "|".join(map(re.escape, self._marks)) + ")")
        before, after = pattern.split(head), pattern.split(tail)
        runs = [*before[:-1], before[-1] + text + after[0], *after[1:]]  # odd places hold the marks
        ids: list[int] = []
        for place, run in enumerate(runs):
            ids.extend([self._marks[run]] if place % 2 else self.text_ids(run))
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else []

    def answer_ids(self, answer: str, end: bool) -> list[int]:
        """Ids of an answer as it follows the generation prompt."""
        return self.text_ids(answer) + [self.end_of_turn] * end

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    # Language model

    def embed(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
        """Input embeddings."""
        return self._language.embed_tokens(ids)

    def embedding_rows(self) -> Float[Tensor, "vocabulary dim"]:
        """The input embedding matrix."""
        return self._language.embed_tokens.weight

    def embedding_std(self) -> float:
        """Standard deviation of the embedding matrix, in double precision and in parts, as it may be large."""
        parts = self.embedding_rows().split(4096)
        count = sum(part.numel() for part in parts)
        mean = sum(float(part.double().sum()) for part in parts) / count
        return (sum(float((part.double() - mean).square().sum()) for part in parts) / count) ** 0.5

    def positions(
        self, length: int, visual_start: int, grid: tuple[int, int] | None, visual_count: int, native: bool
    ) -> Int[Tensor, "axes length"]:
        """M-RoPE positions (time, row, column); text after the image goes on from the grid's longer side."""
        if not native or not visual_count:
            return torch.arange(length).expand(3, -1)
        assert grid is not None, "native positions need the grid of the visual tokens"
        rows, columns = grid
        assert rows * columns == visual_count, f"{rows}×{columns} cells for {visual_count} visual tokens"
        cells = torch.arange(visual_count)
        image = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns]) + visual_start
        rest = length - visual_start - visual_count
        text = torch.arange(rest) + visual_start + max(rows, columns)
        return torch.cat([torch.arange(visual_start).expand(3, -1), image, text.expand(3, -1)], dim=1)

    def run(
        self,
        embeddings: Float[Tensor, "batch sequence dim"],
        positions: Int[Tensor, "axes batch sequence"],
        mask: Bool[Tensor, "batch total"],
        cache: KeyValues | None = None,
        branches: Int[Tensor, " total"] | None = None,
        read: Int[Tensor, "batch read"] | None = None,
    ) -> Run:
        """A pass over new columns."""
        return self._decoder.run(embeddings, positions, mask, cache, branches, read)

    def logits(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocabulary"]:
        """The output head."""
        return self._model.lm_head(hidden)

    @torch.no_grad()
    def last_attention(self, assembled: Assembled, start: int) -> Float[Tensor, "batch heads rest sequence"]:
        """Weights of the final layer, in a pass of its own."""
        return self._decoder.last_attention(assembled, start)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers, which would break a person's screen and a machine's log alike."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def cell_boxes(grid: Int[Tensor, "batch 2"], width: int) -> Float[Tensor, "batch width 4"]:
    """Boxes (x0, y0, x1, y1) of the first `width` cells of each grid, row by row, as fractions of the image."""
    cells = torch.arange(width, device=grid.device)
    rows, columns = grid[:, :1], grid[:, 1:]
    top, left = cells // columns, cells % columns
    return torch.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], dim=-1)
