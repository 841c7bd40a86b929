"""The family InternVL (the checkpoints whose names end in -hf): tiles of an image and a thumbnail of the whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from masp.backbones.chat import ImageSlot, template_turn
from masp.backbones.checkpoint import image_processor, load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.packing import packed, tile_boxes
from masp.core.types import ImageLayout, Pixels, VisualTokens

OPENS, CLOSES = "<img>", "</img>"


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, InternVLForConditionalGeneration, placement)
    tokenizer = load_tokenizer(files)
    visual = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    turn = template_turn(tokenizer, visual, _slot, (OPENS, CLOSES))
    vision = InternVision(model.model, load_image_processor(files, GotOcr2ImageProcessorPil))
    return HFBackbone(files, usual_parts(model, tokenizer, turn, vision))


def _slot(image: ImageLayout) -> ImageSlot:
    return OPENS, image.count, CLOSES


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: of each tile and of the whole, after several patches became one."""
    processor = image_processor(settings, GotOcr2ImageProcessorPil)
    high, wide = config.vision_config.patch_size
    patches = (processor.size["height"] // high) * (processor.size["width"] // wide)
    return _parts(*_tiling(processor, height, width)) * int(patches * config.downsample_ratio**2)


def _tiling(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of an image's tiles."""
    if processor.max_patches <= 1:
        return 1, 1
    tile, bounds = (processor.size["height"], processor.size["width"]), (processor.min_patches, processor.max_patches)
    columns, rows = get_optimal_tiled_canvas((height, width), tile, *bounds)
    return rows, columns


def _parts(rows: int, columns: int) -> int:
    """Tiles of an image, the whole among them where there are several."""
    return rows * columns + (rows * columns > 1)


class InternVision:
    """Tiles of one size, and the whole as a further tile where there are several.

    Args:
        model: transformers' model without its output head.
        processor: the image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self.image_transform: dict[str, Any] = {
            "rule": "internvl",
            "size": dict(processor.size),
            "tiles": [processor.min_patches, processor.max_patches],
        }

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Tiles of all images one after the other, and rows and columns of each image's tiles."""
        tilings = [_tiling(self._processor, image.height, image.width) for image in images]
        batch = self._processor(images=list(images), crop_to_patches=True, return_tensors="pt")
        return Pixels(values=batch["pixel_values"], grid=torch.tensor(tilings))

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Features of each image's tiles, then those of the whole."""
        features = self._model.get_image_features(pixels.values.to(self._model.dtype)).pooler_output
        side = round(features.shape[1] ** 0.5)
        tilings: list[tuple[int, int]] = [(rows, columns) for rows, columns in pixels.grid.tolist()]
        counts = [_parts(rows, columns) for rows, columns in tilings]
        images = [part.flatten(0, 1) for part in features.split(counts)]
        boxes = [tile_boxes(rows, columns, side, whole=rows * columns > 1) for rows, columns in tilings]
        grids = [(rows * side, columns * side) for rows, columns in tilings]
        return packed(images, boxes, grids, [()] * len(images))
