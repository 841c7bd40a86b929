"""The families LLaVA-NeXT (1.6) and LLaVA-OneVision: CLIP or SigLIP features of an image and of its tiles.

An image is seen once as a whole and once in tiles of the best fitting resolution. The features of the tiles are laid
out as one grid, the padding is cut off, and a learned newline feature ends every row; OneVision thins them out where
there are many.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, LlavaOnevisionForConditionalGeneration
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone
from masp.backbones.llava import llava_parts
from masp.backbones.packing import grid_boxes, packed
from masp.core.types import Pixels, VisualTokens

KINDS = {
    "llava_next": (LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil),
    "llava_onevision": (LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil),
}


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    kind, processor = KINDS[files.model_type]
    model = load_model(files, kind, placement)
    vision = TiledVision(model.model, load_image_processor(files, processor), tiles(model.config))
    return HFBackbone(files, llava_parts(model, load_tokenizer(files), vision))


def tiles(config: Any) -> "Tiles":
    """The tiles that a checkpoint of this configuration cuts."""
    seen = config.vision_config
    thinned = config.model_type == "llava_onevision"
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_")) if thinned else None
    return Tiles(config.image_grid_pinpoints, seen.image_size, seen.image_size // seen.patch_size, most)


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: of the whole, and of the tiles without their padding."""
    return tiles(config).count(height, width)


@dataclass(frozen=True)
class Tiles:
    """The tiles that a checkpoint cuts.

    Attributes:
        resolutions: heights and widths to choose from, in pixels.
        side: height and width of a tile, in pixels.
        patches: features along a side of a tile.
        most: tiles whose features are kept in full; more are thinned out. None: never.
    """

    resolutions: list[list[int]]
    side: int
    patches: int
    most: int | None = None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of an image's tile features, without newlines."""
        best_height, best_width = select_best_resolution((height, width), self.resolutions)
        rows, columns = best_height // self.side * self.patches, best_width // self.side * self.patches
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        if self.most is not None:
            ratio = math.sqrt(rows * columns / (self.most * self.patches**2))
            if ratio > 1.1:
                return int(rows // ratio), int(columns // ratio)
        return rows, columns

    def count(self, height: int, width: int) -> int:
        """Features of an image: of the whole, and of the tiles with a newline behind each row."""
        rows, columns = self.grid(height, width)
        return self.patches**2 + rows * (columns + 1)


class TiledVision:
    """Tiles and the whole of each image.

    Args:
        model: transformers' model without its output head.
        processor: the image processor.
        tiles: what the checkpoint cuts.
    """

    def __init__(self, model: Any, processor: Any, tiles: Tiles) -> None:
        self._model, self._processor, self._tiles = model, processor, tiles
        self.image_transform: dict[str, Any] = {
            "rule": type(processor).__name__.removesuffix("Pil"),
            "size": dict(processor.size),
            "resolutions": [list(one) for one in tiles.resolutions],
        }

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Tiles of each image, padded to the most of the batch, and the height and width that it had."""
        batch = self._processor(images=list(images), return_tensors="pt")
        return Pixels(values=batch["pixel_values"], grid=torch.as_tensor(batch["image_sizes"]))

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Features of the whole, then of the tiles row by row, each row with its newline."""
        values = pixels.values.to(self._model.dtype)
        features = self._model.get_image_features(values, image_sizes=pixels.grid.cpu()).pooler_output
        grids = [self._tiles.grid(*size) for size in pixels.grid.tolist()]
        boxes = [self._boxes(*grid) for grid in grids]
        if any(len(feature) != len(known) for feature, known in zip(features, boxes, strict=True)):
            return packed(features)  # a tower with a class token: no layout that could be drawn
        whole = (self._tiles.patches, self._tiles.patches)
        # An image thinner than a tile's feature: only the whole is left.
        drawn = [grid if all(grid) else whole for grid in grids]
        return packed(features, boxes, drawn, [()] * len(grids))

    def _boxes(self, rows: int, columns: int) -> Float[Tensor, "features 4"]:
        """Places of all features; an empty box for a newline, which has none."""
        whole = grid_boxes(self._tiles.patches, self._tiles.patches)
        fine = torch.nn.functional.pad(grid_boxes(rows, columns).view(rows, columns, 4), (0, 0, 0, 1))
        return torch.cat([whole, fine.flatten(0, 1)])
