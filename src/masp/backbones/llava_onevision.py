"""The family LLaVA-OneVision: SigLIP features of an image and of its tiles, thinned out where there are many."""

import torch
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from masp.backbones.anyres import TiledVision, Tiles
from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.composed import ComposedBackbone
from masp.backbones.files import BackboneFiles
from masp.backbones.llava import llava_parts


def load(files: BackboneFiles, dtype: torch.dtype, device: torch.device) -> ComposedBackbone:
    """The backbone of a folder."""
    model = load_model(files, LlavaOnevisionForConditionalGeneration, dtype, device)
    seen, config = model.config.vision_config, model.config
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    tiles = Tiles(config.image_grid_pinpoints, seen.image_size, seen.image_size // seen.patch_size, most)
    vision = TiledVision(model.model, load_image_processor(files, LlavaOnevisionImageProcessorPil), tiles)
    return ComposedBackbone(files, llava_parts(model, load_tokenizer(files), vision))
