"""The families Idefics3 and SmolVLM: tiles with text between them, and the whole image behind."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from masp.backbones.chat import ImageSlot, template_turn
from masp.backbones.checkpoint import image_processor, load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.packing import packed, tile_boxes
from masp.core.types import ImageLayout, Pixels, VisualTokens

KINDS = {
    "idefics3": (Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
    "smolvlm": (SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
}
FRAME, WHOLE = "<fake_token_around_image>", "<global-img>"


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    kind, processor = KINDS[files.model_type]
    model = load_model(files, kind, placement)
    tokenizer = load_tokenizer(files)
    visual = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    tiles = [mark for mark in tokenizer.get_added_vocab() if mark.startswith("<row_")]
    turn = template_turn(tokenizer, visual, _slot, (FRAME, WHOLE, *tiles))
    vision = MarkedTiles(model.model, load_image_processor(files, processor))
    return HFBackbone(files, usual_parts(model, tokenizer, turn, vision, language=model.model.text_model))


def _slot(image: ImageLayout) -> ImageSlot:
    """Each tile behind its mark, a new line behind each row of tiles, the whole image at the end."""
    rows, columns = image.shape if image.count else (0, 0)
    each, rest = divmod(image.count, rows * columns + 1)
    assert not rest, f"{image.count} visual tokens for {rows}×{columns} tiles and the whole"
    parts: list[str | int] = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            parts += [f"{FRAME}<row_{row}_col_{column}>", each]
        parts.append("\n")
    if rows:
        parts.append("\n")
    return (*parts, FRAME + WHOLE, each, FRAME)


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: of its tiles and of the whole; the text between them does not count."""
    processor = image_processor(settings, KINDS[config.model_type][1])
    tiles, _, _ = processor.get_number_of_image_patches(height, width, {})
    side = processor.max_image_size["longest_edge"] // config.vision_config.patch_size
    return max(tiles, 1) * side**2 // config.scale_factor**2


class MarkedTiles:
    """Tiles of one size and the whole image, or for a small image the whole alone.

    Args:
        model: transformers' model without its output head.
        processor: the image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self.image_transform: dict[str, Any] = {
            "rule": "idefics3",
            "size": dict(processor.size),
            "tile": dict(processor.max_image_size),
            "split": processor.do_image_splitting,
        }

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Tiles of each image, padded to the most of the batch, and rows and columns of its tiles."""
        nested = [[image] for image in images]
        batch = self._processor(images=nested, return_row_col_info=True, return_tensors="pt")
        tiling = zip(batch["rows"], batch["cols"], strict=True)
        grid = torch.tensor([[int(rows[0]), int(columns[0])] for rows, columns in tiling])
        return Pixels(values=batch["pixel_values"], grid=grid, mask=batch["pixel_attention_mask"].bool())

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Features of each image's tiles in the order of the chat turn."""
        values = pixels.values.to(self._model.dtype)
        features = self._model.get_image_features(values, pixel_attention_mask=pixels.mask).pooler_output
        tilings: list[tuple[int, int]] = [(rows, columns) for rows, columns in pixels.grid.tolist()]
        side = round((len(features[0]) // (tilings[0][0] * tilings[0][1] + 1)) ** 0.5)
        boxes = [tile_boxes(rows, columns, side, whole=True) for rows, columns in tilings]
        grids = [(max(rows, 1) * side, max(columns, 1) * side) for rows, columns in tilings]
        return packed(features, boxes, grids, tilings)
