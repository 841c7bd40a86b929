"""The family LLaVA-NeXT (1.6): CLIP features of an image and of its tiles, over Vicuna, Mistral, Llama or Qwen."""

from collections.abc import Mapping
from typing import Any

from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from masp.backbones.anyres import TiledVision, Tiles
from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles
from masp.backbones.hf_backbone import HFBackbone
from masp.backbones.llava import llava_parts


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, LlavaNextForConditionalGeneration, placement)
    vision = TiledVision(model.model, load_image_processor(files, LlavaNextImageProcessorPil), tiles(model.config))
    return HFBackbone(files, llava_parts(model, load_tokenizer(files), vision))


def tiles(config: Any) -> Tiles:
    """The tiles that a checkpoint of this configuration cuts."""
    seen = config.vision_config
    return Tiles(config.image_grid_pinpoints, seen.image_size, seen.image_size // seen.patch_size)


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image: of the whole, and of the tiles without their padding."""
    return tiles(config).count(height, width)
