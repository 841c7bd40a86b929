"""A backbone put together from the parts that a family file names; what all families share is here."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from masp.backbones.base import Again, LRUCache
from masp.backbones.chat import Chat, Turn
from masp.backbones.decoder import Decoder, head_logits
from masp.backbones.domain import read_detector
from masp.backbones.files import BackboneFiles
from masp.core.errors import BackboneError
from masp.core.types import (
    DecoderOutput,
    Domain,
    Extras,
    ImageLayout,
    KVCache,
    ModelInputs,
    Pixels,
    Template,
    VisualTokens,
)

Positions = Callable[[int, int, ImageLayout], Int[Tensor, "axes length"]]
Ask = Callable[[VisualTokens, Sequence[str]], VisualTokens]

PLANS_KEPT = 96_000_000
"""Bytes of row plans that are kept for one backbone, whatever the number of tasks."""


@runtime_checkable
class Vision(Protocol):
    """The image side of a family.

    Attributes:
        image_transform: what happens to an image on its way to the vision tower, for the record.
    """

    image_transform: dict[str, Any]

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """See `Backbone.preprocess`."""
        ...

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """See `Backbone.visual_tokens`; gradients are off, and the pixels are on the model's device."""
        ...


@runtime_checkable
class BoundedVision(Protocol):
    """The image side of a family that sizes images by their area."""

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """See `Backbone.bound_pixels`."""
        ...


@dataclass(frozen=True)
class FamilyParts:
    """What a family file puts together.

    Attributes:
        model: transformers' model, whole and frozen.
        language: its text model: embeddings, layers, final norm.
        head: its output head.
        tokenizer: its tokenizer.
        turn: what its chat turn looks like.
        vision: its image side.
        bidirectional: whether the visual tokens of an image see each other in the language model.
        embedding_scale: what a family multiplies rows of its embedding matrix with.
        native: positions of a sequence of that many columns whose visual tokens begin there; None: 0, 1, 2 …
        ask: visual tokens as they are for a question each; None where they depend on none.
        stored: whether the weights are those of the folder, so that what the folder says of them holds.
    """

    model: Any
    language: Any
    head: Any
    tokenizer: Any
    turn: Turn
    vision: Vision
    bidirectional: bool = False
    embedding_scale: float = 1.0
    native: Positions | None = None
    ask: Ask | None = None
    stored: bool = True


def usual_parts(model: Any, tokenizer: Any, turn: Turn, vision: Vision, **others: Any) -> FamilyParts:
    """The parts of a model whose text model and head lie where transformers usually puts them, and `others` by name."""
    language = others.pop("language", None) or model.model.language_model
    return FamilyParts(
        model=model, language=language, head=model.lm_head, tokenizer=tokenizer, turn=turn, vision=vision, **others
    )


class HFBackbone:
    """A frozen backbone of any family; see `masp.backbones.base.Backbone` for the interface."""

    def __init__(self, files: BackboneFiles, parts: FamilyParts) -> None:
        self.name = files.name
        self.revision = files.revision
        self.family: str = files.model_type
        self._files, self._parts = files, parts
        self._model, self._tokenizer, self._vision = parts.model, parts.tokenizer, parts.vision
        self._decoder = Decoder(parts.language, parts.bidirectional)
        self._chat = Chat(files.name, parts.tokenizer, parts.turn)
        self.dim: int = parts.language.config.hidden_size
        self.dtype: torch.dtype = parts.language.dtype  # some keep a part of the model in fp32
        packed = not all(parameter.is_floating_point() for parameter in parts.model.parameters())
        self.weight_dtype: str = "nf4/" * packed + str(self.dtype).removeprefix("torch.")
        self.device: torch.device = parts.language.device
        self.end_of_turn: int = self._chat.end_of_turn
        self.known_tokens: int = self._chat.known_tokens
        self.stop_tokens: tuple[int, ...] = _stop_tokens(self.end_of_turn, parts)
        self.image_transform: dict[str, Any] = parts.vision.image_transform
        self.question_conditioned: bool = parts.ask is not None
        self.embedding_scale: float = parts.embedding_scale
        self.accepted: frozenset[str] = files.accepted
        self.plans = LRUCache(PLANS_KEPT)
        # Weights that wait in main memory or on the disk enter a layer before its pass and leave it afterwards.
        waits = any(parameter.device.type == "meta" for parameter in parts.language.parameters())
        self._alone: AbstractContextManager[Any] = threading.RLock() if waits else nullcontext()
        self._detector = read_detector(files.folder, self.dim) if parts.stored else None

    def fingerprint(self) -> str:
        """Hash of the stored configuration and weights."""
        return self._files.fingerprint

    def hashes(self) -> Mapping[str, str]:
        """Hashes of processor settings, chat template and tokenizer, as stored."""
        return self._files.hashes

    # Images

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """Bounds of an image's area.

        Raises:
            BackboneError: the family has none, or not these.
        """
        if not isinstance(self._vision, BoundedVision):
            raise BackboneError(
                f"min_pixels or max_pixels for '{self.name}', whose family {self.family} does not size images by area",
                "them for Qwen-VL alone",
                "Leave them out; data.longest_side shrinks images for every family.",
            )
        self._vision.bound_pixels(least, most)
        self.image_transform = self._vision.image_transform

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Pixels of RGB images, as the checkpoint's own settings make them."""
        return self._vision.preprocess(images)

    @torch.no_grad()
    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens in language-model space; for a family that asks, what its questions are put to."""
        return self._vision.visual_tokens(pixels.to(self.device))

    def domain(self, visual: VisualTokens) -> list[Domain] | None:
        """What the detector in the backbone's folder says; None without one."""
        return None if self._detector is None else self._detector.judge(visual)

    @torch.no_grad()
    def condition_on(self, visual: VisualTokens, questions: Sequence[str]) -> VisualTokens:
        """Visual tokens as they are for these questions, one per image."""
        return visual if self._parts.ask is None else self._parts.ask(visual, questions)

    # Text

    def template(self, question: str, image: ImageLayout) -> Template:
        """The chat turn with the image's placeholders."""
        return self._chat.template(question, image)

    def answer_ids(self, answer: str, end: bool) -> list[int]:
        """Ids of an answer as it follows the generation prompt."""
        return self._chat.answer_ids(answer, end)

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._chat.tokenize(text)

    def special_ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """Ids of special tokens, or those that they would get."""
        return self._chat.special_ids(tuple(tokens))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        return self._chat.decode(ids)

    # Language model

    def embed(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
        """Input embeddings, scaled where the family scales them."""
        return self._parts.language.embed_tokens(ids)

    def embedding_rows(self) -> Float[Tensor, "vocabulary dim"]:
        """The input embedding matrix, as it is stored."""
        return self._parts.language.embed_tokens.weight

    def embedding_std(self) -> float:
        """Standard deviation of what words enter with, in double precision and in parts, as the matrix may be large."""
        parts = self.embedding_rows().split(4096)
        count = sum(part.numel() for part in parts)
        mean = sum(float(part.cpu().double().sum()) for part in parts) / count
        spread = (sum(float((part.cpu().double() - mean).square().sum()) for part in parts) / count) ** 0.5
        return spread * self.embedding_scale

    def positions(self, length: int, visual_start: int, image: ImageLayout, native: bool) -> Int[Tensor, "axes length"]:
        """Positions in the family's own scheme, or 0, 1, 2 … on every axis."""
        if native and image.count and self._parts.native is not None:
            return self._parts.native(length, visual_start, image)
        return torch.arange(length).expand(self._decoder.axes, -1)

    def forward(
        self,
        inputs_embeds: Float[Tensor, "batch sequence dim"],
        position_ids: Int[Tensor, "axes batch sequence"],
        attention_mask: Bool[Tensor, "batch total"],
        cache: KVCache | None = None,
        branch_ids: Int[Tensor, " total"] | None = None,
        output_positions: Int[Tensor, "batch read"] | None = None,
        extras: Extras | None = None,
        again: Again | None = None,
    ) -> DecoderOutput:
        """A pass over new columns."""
        with self._alone:
            return self._decoder.forward(
                inputs_embeds, position_ids, attention_mask, cache, branch_ids, output_positions, extras, again
            )

    def logits(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocabulary"]:
        """The output head, in fp32 whatever the format of its weights."""
        return head_logits(self._parts.head, hidden)

    def layers(self) -> Sequence[nn.Module]:
        """The blocks that every pass runs through."""
        return self._decoder.layers

    @torch.no_grad()
    def last_attention(self, assembled: ModelInputs, start: int) -> Float[Tensor, "batch heads rest sequence"]:
        """Weights of the final layer, in a pass of its own.

        Raises:
            UsageError: see `Backbone.last_attention`.
        """
        with self._alone:
            return self._decoder.last_attention(assembled, start)


def _stop_tokens(end_of_turn: int, parts: FamilyParts) -> tuple[int, ...]:
    """The end of a turn, what the checkpoint's generation settings stop at, and the tokenizer's own end."""
    settings = parts.model.generation_config
    named = None if settings is None else settings.eos_token_id  # one, several or none
    ends = [end_of_turn, parts.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(end for end in ends if end is not None))
