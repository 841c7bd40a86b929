"""The family LLaVA-1.5: a CLIP tower whose features pass a small projector, one square crop per image.

Its chat template ("USER: <image>", the question, "ASSISTANT:") leaves the end of an answer to the tokenizer's own mark.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from masp.backbones.chat import template_turn
from masp.backbones.checkpoint import load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles, section
from masp.backbones.hf_backbone import FamilyParts, HFBackbone, usual_parts
from masp.backbones.packing import grid_boxes, packed, square_pixels, within
from masp.core.errors import BackboneError
from masp.core.types import Pixels, VisualTokens

TOWERS: Mapping[str, int] = MappingProxyType({"clip_vision_model": 1, "siglip_vision_model": 0})
"""Vision towers that are served → how many features stand before those of the patches (CLIP's class token)."""


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, LlavaForConditionalGeneration, placement)
    tokenizer = load_tokenizer(files)
    processor = AutoImageProcessor.from_pretrained(files.folder, backend="pil", local_files_only=True)
    return HFBackbone(files, llava_parts(model, tokenizer, LlavaVision(model.model, processor)))


def refuse(name: str, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint by its config.json.

    Raises:
        BackboneError: a vision tower with a chat turn of its own.
    """
    tower = section(content, "vision_config").get("model_type")
    if tower not in TOWERS:
        raise BackboneError(
            f"the LLaVA checkpoint {name} has the vision tower '{tower}'", f"one of {', '.join(TOWERS)}"
        )


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int | None:
    """Visual tokens of an image: always those of one crop; None for a tower that is not served."""
    tower = config.vision_config
    if tower.model_type not in TOWERS:
        return None
    dropped = int(config.vision_feature_select_strategy == "default")  # the first feature, whatever it is
    return (tower.image_size // tower.patch_size) ** 2 + TOWERS[tower.model_type] - dropped


def llava_parts(model: Any, tokenizer: Any, vision: Any) -> FamilyParts:
    """What the LLaVA families have in common: the visual tokens alone stand for the image, with no marks around."""
    visual = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    return usual_parts(model, tokenizer, template_turn(tokenizer, visual), vision)


class LlavaVision:
    """One crop per image, one visual token per patch.

    Args:
        model: transformers' model without its output head.
        processor: the image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self.image_transform: dict[str, Any] = {
            "rule": type(processor).__name__.removesuffix("Pil"),
            "size": dict(processor.size),
            "crop": dict(processor.crop_size) if processor.do_center_crop else None,
        }

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """One square of pixels per image, and the height and width that it had."""
        return square_pixels(self._processor, images)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Projected patches, row by row over the crop."""
        features = self._model.get_image_features(pixels.values.to(self._model.dtype)).pooler_output
        side = round(len(features[0]) ** 0.5)
        if side * side != len(features[0]):  # the class token is among them
            return packed(features)
        cells = grid_boxes(side, side)
        boxes = [within(cells, self._frame(*size)) for size in pixels.grid.tolist()]
        return packed(features, boxes, [(side, side)] * len(features), [()] * len(features))

    def _frame(self, height: int, width: int) -> Float[Tensor, " 4"]:
        """The part of an image that the tower sees: (x0, y0, x1, y1) as fractions, beyond 0 and 1 if it is padded."""
        if self.image_transform["rule"] == "LlavaImageProcessor":  # padded to a square first
            return centred(max(height, width) / width, max(height, width) / height)
        if not self._processor.do_center_crop or "shortest_edge" not in self._processor.size:
            return centred(1.0, 1.0)
        scale = self._processor.size["shortest_edge"] / min(height, width)
        crop = self._processor.crop_size
        return centred(crop["width"] / (width * scale), crop["height"] / (height * scale))


def centred(across: float, down: float) -> Float[Tensor, " 4"]:
    """A frame around the middle of an image, as wide and high as these multiples of it."""
    return torch.tensor([(1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2])
