"""A backbone family: ViP-LLaVA, whose visual tokens are read from five layers of a CLIP tower."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from transformers import AutoImageProcessor, VipLlavaForConditionalGeneration

from masp.backbones.checkpoint import load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone
from masp.backbones.llava import LlavaVision, llava_parts
from masp.backbones.loading import Family
from masp.backbones.packing import grid_boxes, packed
from masp.core.types import Pixels, VisualTokens

ENTRY = {"vipllava": Family("vip_llava")}
"""model_type in config.json → its record: the line in `FAMILIES` of masp.backbones.loading."""


def load(files: BackboneFiles, place: Placement) -> HFBackbone:
    """The backbone of a folder. Its chat turn and its language model are those of LLaVA-1.5."""
    model = load_model(files, VipLlavaForConditionalGeneration, place)
    processor = AutoImageProcessor.from_pretrained(files.folder, backend="pil", local_files_only=True)
    return HFBackbone(files, llava_parts(model, load_tokenizer(files), VipLlavaVision(model.model, processor)))


class VipLlavaVision:
    """One square crop per image, one visual token per patch."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._crop = LlavaVision(model, processor)  # the crop and the pixels are LLaVA's
        self.image_transform = self._crop.image_transform

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """Pixels on the CPU; called from loader threads."""
        return self._crop.preprocess(images)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Projected patches, with the box of each on the crop, so that heatmaps can be drawn."""
        features = self._model.get_image_features(pixels.values.to(self._model.dtype)).pooler_output
        side, count = round(features.shape[1] ** 0.5), len(features)
        return packed(list(features), [grid_boxes(side, side)] * count, [(side, side)] * count, [()] * count)
