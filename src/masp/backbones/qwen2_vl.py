"""The families Qwen2-VL and Qwen2.5-VL; they differ only inside the vision tower, which runs here in a faster form."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from masp.backbones.chat import ImageSlot, Turn, rendered
from masp.backbones.checkpoint import image_processor, load_image_processor, load_model, load_tokenizer, tensors_below
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.packing import cell_boxes, left
from masp.core.errors import BackboneError
from masp.core.types import ImageLayout, Pixels, VisualTokens

TOWERS: Mapping[str, tuple[Any, Any]] = {
    "qwen2_vl": (Qwen2VisionTransformerPretrainedModel, Qwen2VLConfig),
    "qwen2_5_vl": (Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLConfig),
}
MODELS = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
SYSTEM_TURN = "You are a helpful assistant."  # what Qwen's own template says when it is asked for nothing else
IMAGE, OPENS, CLOSES = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, MODELS[files.model_type], placement)
    tokenizer = load_tokenizer(files)
    vision = QwenVision(model.model.visual, load_image_processor(files, Qwen2VLImageProcessorPil))
    return HFBackbone(files, usual_parts(model, tokenizer, turn(tokenizer, SYSTEM_TURN), vision, native=grid_positions))


def load_vision(files: BackboneFiles, dtype: torch.dtype, device: torch.device) -> "QwenVision":
    """The vision tower of a folder without the language model, frozen: what computes V elsewhere.

    Raises:
        BackboneError: another family, or a checkpoint without the tower's weights.
    """
    if files.model_type not in TOWERS:
        raise BackboneError(f"the backbone '{files.name}' is of the family '{files.model_type}'", " or ".join(TOWERS))
    kind, config = TOWERS[files.model_type]
    tower: Any = kind(config.from_pretrained(files.folder).vision_config)
    weights = tensors_below(files.folder, "visual.")
    try:
        tower.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise BackboneError(f"the vision tower of '{files.name}' does not fit: {error}", "a whole checkpoint") from None
    tower = tower.to(device, dtype).eval().requires_grad_(False)
    tower.set_attn_implementation("sdpa")
    return QwenVision(tower, load_image_processor(files, Qwen2VLImageProcessorPil))


def turn(tokenizer: Any, system: str | None) -> Turn:
    """Qwen's chat turn; `system` is said where the checkpoint's template has no system turn of its own."""

    def render(answered: bool) -> str:
        text = rendered(tokenizer, answered)
        return text if system is None or "<|im_start|>system" in text else rendered(tokenizer, answered, system)

    whole = OPENS + IMAGE + CLOSES
    return Turn(image=whole, visual=IMAGE, slot=slot, frame=(OPENS, CLOSES), render=functools.cache(render))


def slot(image: ImageLayout) -> ImageSlot:
    """The visual tokens between their two marks."""
    return OPENS, image.count, CLOSES


class QwenVision:
    """Patches of any number of images as one sequence; a square of patches makes one visual token.

    Args:
        tower: the vision tower; its slow parts are replaced in place.
        processor: the image processor.
    """

    def __init__(self, tower: Any, processor: Any) -> None:
        self._tower, self._processor = tower, processor
        self.image_transform: dict[str, Any] = transform(processor)
        tower.patch_embed = MatrixPatchEmbed(tower.patch_embed)
        for block in tower.blocks:
            block.attn = BatchedVisionAttention(block.attn)

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """See `Backbone.bound_pixels`."""
        self.image_transform = bounded(self._processor, least, most)

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Flattened patches of RGB images, their area within the pixel bounds."""
        return patches(self._processor, images)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens after the merger, row by row over the image."""
        features = self._tower(pixels.values, grid_thw=pixels.grid).pooler_output
        return on_grids(features, pixels.grid, self._tower.spatial_merge_size)


def transform(processor: Any) -> dict[str, Any]:
    """What a Qwen image processor does, for the record."""
    return {
        "rule": "qwen2_vl",
        "min_pixels": processor.size["shortest_edge"],
        "max_pixels": processor.size["longest_edge"],
        "patch": processor.patch_size,
        "merge": processor.merge_size,
    }


def bounded(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    """Give a Qwen image processor other pixel bounds; what it then does, for the record.

    Raises:
        BackboneError: the upper bound is below the lower one, or holds no visual token.
    """
    low = processor.size["shortest_edge"] if least is None else least
    high = processor.size["longest_edge"] if most is None else most
    cell = (processor.patch_size * processor.merge_size) ** 2
    if high < max(low, cell):
        raise BackboneError(
            f"min_pixels {low:,} and max_pixels {high:,}",
            f"max_pixels of at least min_pixels, and of at least {cell:,}, the area of one visual token",
            "Lower min_pixels too, or raise max_pixels.",
        )
    processor.size = {"shortest_edge": low, "longest_edge": high}
    return transform(processor)


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: both sides become multiples of a merged patch, its area one within the pixel bounds.

    Raises:
        ValueError: an image that is too long for its width.
    """
    processor = image_processor(settings, Qwen2VLImageProcessorPil)
    cell = processor.patch_size * processor.merge_size
    rows, columns = smart_resize(height, width, cell, processor.size["shortest_edge"], processor.size["longest_edge"])
    return (rows // cell) * (columns // cell)


def patches(processor: Any, images: Sequence[Image]) -> Pixels:
    """Flattened patches and their grids."""
    batch = processor(images=list(images), return_tensors="pt")
    return Pixels(values=batch["pixel_values"], grid=batch["image_grid_thw"])


def on_grids(features: Tensor, grid_thw: Int[Tensor, "batch 3"], merge: int) -> VisualTokens:
    """Visual tokens of a batch from the features of all images one after the other."""
    grid = grid_thw[:, 1:] // merge
    counts: list[int] = grid.prod(1).tolist()
    mask = left(counts, features.device)
    tokens = features.new_zeros(*mask.shape, features.shape[1])
    tokens[mask] = features
    return VisualTokens(tokens, mask, cell_boxes(grid, mask.shape[1]) * mask[..., None], grid)


def grid_positions(length: int, visual_start: int, image: ImageLayout) -> Int[Tensor, "3 length"]:
    """M-RoPE positions (time, row, column); text after the image goes on from the grid's longer side."""
    rows, columns = image.shape
    assert rows * columns == image.count, f"{rows}×{columns} cells for {image.count} visual tokens"
    cells = torch.arange(image.count)
    cell_positions = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns]) + visual_start
    rest = length - visual_start - image.count
    text = torch.arange(rest) + visual_start + max(rows, columns)
    return torch.cat([torch.arange(visual_start).expand(3, -1), cell_positions, text.expand(3, -1)], dim=1)


# Two parts of the vision tower in a faster, equal form: the same weights, the same sums, other kernels. Axes: p patches
# of the whole batch, c chunks (images or windows) of equal length l, h heads, e width of a head.


class MatrixPatchEmbed(nn.Module):
    """The patch embedding as a matrix product.

    The convolution's kernel equals its stride, so every patch meets the kernel once. As a convolution it is slow on a
    CPU, in bf16 most of all.

    Args:
        original: the tower's own patch embedding, whose weights stay in use.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.proj: Any = original.proj

    def forward(self, hidden_states: Float[Tensor, "patches values"]) -> Float[Tensor, "patches width"]:
        """Embeddings of flattened patches."""
        weight = self.proj.weight.flatten(1)
        return functional.linear(hidden_states.to(weight.dtype), weight)


class BatchedVisionAttention(nn.Module):
    """The tower's attention with one kernel call for all chunks of equal length, where the original calls it per chunk.

    Args:
        original: the block's own attention, whose weights stay in use.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.qkv: Any = original.qkv
        self.proj: Any = original.proj
        self.heads: int = original.num_heads
        self.scaling: float = original.scaling

    def forward(
        self,
        hidden_states: Float[Tensor, "patches width"],
        cu_seqlens: Int[Tensor, " ends"],
        position_embeddings: tuple[Float[Tensor, "patches head_dim"], Float[Tensor, "patches head_dim"]],
        max_seqlen: int | None = None,
    ) -> Float[Tensor, "patches width"]:
        """Attention within each chunk; chunk i spans the patches cu_seqlens[i] … cu_seqlens[i + 1]."""
        patches = hidden_states.shape[0]
        cos, sin = (part.float()[:, None] for part in position_embeddings)
        query, key, value = self.qkv(hidden_states).view(patches, 3, self.heads, -1).unbind(1)  # each (p, h, e)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        lengths = cu_seqlens.diff()
        kinds = torch.unique(lengths).tolist()
        if len(kinds) == 1:
            return self.proj(self._attend(query, key, value, kinds[0]))
        out = torch.empty_like(hidden_states)
        for length in kinds:
            if length:
                starts = cu_seqlens[:-1][lengths == length]
                rows = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
                out[rows] = self._attend(query[rows], key[rows], value[rows], length)
        return self.proj(out)

    def _attend(
        self,
        query: Float[Tensor, "rows heads head_dim"],
        key: Float[Tensor, "rows heads head_dim"],
        value: Float[Tensor, "rows heads head_dim"],
        length: int,
    ) -> Float[Tensor, "rows width"]:
        """Attention among every `length` consecutive rows."""
        q, k, v = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, value))  # each (c, h, l, e)
        attended = functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return attended.transpose(1, 2).reshape(len(query), -1)


def rotate(
    values: Float[Tensor, "*rows head_dim"],
    cos: Float[Tensor, "*#rows head_dim"],
    sin: Float[Tensor, "*#rows head_dim"],
) -> Float[Tensor, "*rows head_dim"]:
    """Rotary embedding in the dtype of `cos`, returned in the dtype of `values`."""
    wide = values.to(cos.dtype)
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-right, left], dim=-1) * sin).to(values.dtype)
