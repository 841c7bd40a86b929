"""The family Qwen3-VL: visual tokens with deep features, which the first layers of the language model add."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.qwen2_vl import bounded, grid_positions, on_grids, patches, transform, turn, visual_count
from masp.core.types import Pixels, VisualTokens

__all__ = ["load", "visual_count"]


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, Qwen3VLForConditionalGeneration, placement)
    tokenizer = load_tokenizer(files)
    vision = DeepVision(model.model.visual, load_image_processor(files, Qwen2VLImageProcessorPil))
    return HFBackbone(files, usual_parts(model, tokenizer, turn(tokenizer, None), vision, native=grid_positions))


class DeepVision:
    """As in Qwen2-VL, and features from inside the tower beside the last ones.

    Args:
        tower: the vision tower.
        processor: the image processor.
    """

    def __init__(self, tower: Any, processor: Any) -> None:
        self._tower, self._processor = tower, processor
        self.image_transform: dict[str, Any] = transform(processor)

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """See `Backbone.bound_pixels`."""
        self.image_transform = bounded(self._processor, least, most)

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Flattened patches of RGB images, their area within the pixel bounds."""
        return patches(self._processor, images)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens and their deep features, row by row over the image."""
        features = self._tower(pixels.values.to(self._tower.dtype), grid_thw=pixels.grid)
        visual = on_grids(features.pooler_output, pixels.grid, self._tower.spatial_merge_size)
        levels = torch.stack(list(features.deepstack_features), dim=1)  # (visual tokens of all images, levels, d)
        deep = levels.new_zeros(*visual.mask.shape, *levels.shape[1:])
        deep[visual.mask] = levels
        return replace(visual, deep=deep)
