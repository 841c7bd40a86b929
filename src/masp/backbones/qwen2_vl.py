"""The families Qwen2-VL and Qwen2.5-VL; they differ only inside the vision tower, which runs here in a faster form."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from PIL.Image import Image
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from masp.backbones.chat import Picture, Turn, rendered
from masp.backbones.checkpoint import image_processor, load_image_processor, load_model, load_tokenizer, tensors_below
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.packing import cell_boxes, left
from masp.backbones.qwen2_vl_vision import BatchedVisionAttention, MatrixPatchEmbed
from masp.core.errors import BackboneError
from masp.core.types import ImageLayout, Pixels, VisualTokens

TOWERS: Mapping[str, tuple[Any, Any]] = {
    "qwen2_vl": (Qwen2VisionTransformerPretrainedModel, Qwen2VLConfig),
    "qwen2_5_vl": (Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLConfig),
}
MODELS = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
SYSTEM_TURN = "You are a helpful assistant."  # what Qwen's own template says when it is asked for nothing else
IMAGE, OPENS, CLOSES = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"


def load(files: BackboneFiles, place: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, MODELS[files.model_type], place)
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
    return Turn(image=whole, visual=IMAGE, picture=picture, frame=(OPENS, CLOSES), render=functools.cache(render))


def picture(image: ImageLayout) -> Picture:
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
    place = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns]) + visual_start
    rest = length - visual_start - image.count
    text = torch.arange(rest) + visual_start + max(rows, columns)
    return torch.cat([torch.arange(visual_start).expand(3, -1), place, text.expand(3, -1)], dim=1)
