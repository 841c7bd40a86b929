"""The family Gemma 3: 256 visual tokens that see each other, sliding layers, scaled embeddings.

Aspect tokens stand before the visual tokens and are read causally; they do not join the image's bidirectional block.
Crops of long images ("pan and scan") are off, as they are by default.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image
from transformers import Gemma3ForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from masp.backbones.chat import ImageSlot, template_turn
from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.packing import grid_boxes, packed, square_pixels
from masp.core.types import ImageLayout, Pixels, VisualTokens


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, Gemma3ForConditionalGeneration, placement)
    tokenizer = load_tokenizer(files)
    config = model.config
    opens, visual, closes = tokenizer.convert_ids_to_tokens(
        [config.boi_token_index, config.image_token_id, config.eoi_token_index]
    )
    turn = template_turn(tokenizer, visual, functools.partial(_slot, opens, closes), (opens, closes), image=opens)
    vision = GemmaVision(model.model, load_image_processor(files, Gemma3ImageProcessorPil))
    scale = float(model.model.language_model.embed_tokens.embed_scale)
    return HFBackbone(files, usual_parts(model, tokenizer, turn, vision, bidirectional=True, embedding_scale=scale))


def _slot(opens: str, closes: str, image: ImageLayout) -> ImageSlot:
    return f"\n\n{opens}", image.count, f"{closes}\n\n"


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: always the same number."""
    return config.mm_tokens_per_image


class GemmaVision:
    """One square per image, pooled to a fixed number of visual tokens.

    Args:
        model: transformers' model without its output head.
        processor: the image processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self.image_transform: dict[str, Any] = {"rule": "gemma3", "size": dict(processor.size)}

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """One square of pixels per image, stretched to fit."""
        return square_pixels(self._processor, images, do_pan_and_scan=False)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Pooled features, row by row."""
        features = self._model.get_image_features(pixels.values.to(self._model.dtype)).pooler_output
        side = round(features.shape[1] ** 0.5)
        count = len(features)
        return packed(list(features), [grid_boxes(side, side)] * count, [(side, side)] * count, [()] * count)
