"""Visual tokens counted from a picture's size, by hand and against loaded models and the processors themselves."""

import json

import pytest
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration, LlavaOnevisionForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

import tiny
from masp.backbones.facts import model_config
from masp.backbones.published import Description, describe, published
from masp.backbones.visual_counts import RULES, visual_tokens
from masp.errors import BackboneError, UsageError

SEVEN = "Qwen/Qwen2-VL-7B-Instruct"
SIZES = ((224, 224), (90, 62), (58, 140), (1920, 1080), (500, 3000), (336, 1000))


def described(config, preprocessor=None):
    return Description("made up", "folder", config, preprocessor)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_visual_tokens_are_those_of_the_loaded_backbone(family):
    found = visual_tokens(describe(str(tiny.checkpoint(family))), SIZES)
    backbone = tiny.backbone(family)
    real = backbone.visual_tokens(backbone.preprocess([tiny.picture(*size) for size in SIZES])).mask.sum(1)
    assert list(found) == real.tolist()
    assert len(set(found)) > 3


def test_visual_tokens_of_published_backbones_by_hand():
    """1920 / 28 is 68.6 and 1080 / 28 is 38.6; with patches of 16 the cells are 32 pixels wide."""
    assert visual_tokens(describe(SEVEN), ((1920, 1080), (28, 28))) == (69 * 39, 4)
    assert visual_tokens(describe("Qwen/Qwen3-VL-8B-Instruct"), ((1920, 1080),)) == (60 * 34,)
    assert visual_tokens(describe("llava-hf/llava-1.5-7b-hf"), ((1920, 1080),)) == (24 * 24,)


CLIP = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 97}
GRID = [[42, 84], [84, 42], [84, 84], [42, 126], [126, 42], [126, 126]]


def tiled(kind, vision, language):
    """A tiny model that puts tiles together, its description, and the processor that cuts them."""
    config = {
        "model_type": kind,
        "text_config": TEXT | {"model_type": language},
        "vision_config": CLIP | {"model_type": vision, "image_size": 42, "patch_size": 14},
        "image_grid_pinpoints": GRID,
        "image_token_index": 5,
    }
    if kind == "llava_onevision":
        config["vision_config"]["vision_use_head"] = False
        config["vision_aspect_ratio"] = "anyres_max_2"
    return described(config, {})


@pytest.mark.parametrize("size", SIZES)
def test_visual_tokens_of_llava_next_are_those_of_a_model(size):
    description = tiled("llava_next", "clip_vision_model", "llama")
    model = LlavaNextForConditionalGeneration(model_config(description)).eval()
    edge = {"shortest_edge": 42}
    processor = LlavaNextImageProcessorPil(size=edge, crop_size={"height": 42, "width": 42}, image_grid_pinpoints=GRID)
    assert visual_tokens(description, (size,)) == (tokens_of(model, processor, size),)


@pytest.mark.parametrize("size", SIZES)
def test_visual_tokens_of_llava_onevision_are_those_of_a_model(size):
    description = tiled("llava_onevision", "siglip_vision_model", "qwen2")
    model = LlavaOnevisionForConditionalGeneration(model_config(description)).eval()
    processor = LlavaOnevisionImageProcessorPil(size={"height": 42, "width": 42}, image_grid_pinpoints=GRID)
    assert visual_tokens(description, (size,)) == (tokens_of(model, processor, size),)


@torch.no_grad()
def tokens_of(model, processor, size):
    """Length of the image features that a model makes of a picture."""
    batch = processor(images=[tiny.picture(*size)], return_tensors="pt")
    features = model.get_image_features(batch["pixel_values"].float(), image_sizes=batch["image_sizes"]).pooler_output
    return sum(len(part) for part in features)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_those_that_the_processor_cuts(size):
    picture = Image.new("RGB", size)
    name = "OpenGVLab/InternVL3-1B-hf"
    cutter = GotOcr2ImageProcessorPil.from_dict(dict(published()[name]["preprocessor"]))
    tiles = len(cutter(images=[picture], crop_to_patches=True, return_tensors="np")["pixel_values"])
    assert visual_tokens(describe(name), (size,)) == (256 * tiles,)
    name = "HuggingFaceTB/SmolVLM-256M-Instruct"
    cutter = Idefics3ImageProcessorPil.from_dict(dict(published()[name]["preprocessor"]))
    tiles = cutter(images=[picture], return_tensors="np")["pixel_values"].shape[1]
    assert visual_tokens(describe(name), (size,)) == (64 * tiles,)


def test_gemma_cuts_nothing_unless_it_is_asked_to():
    cut = Gemma3ImageProcessorPil()(images=[Image.new("RGB", (500, 3000))], return_tensors="np")["pixel_values"]
    assert len(cut) == 1
    assert visual_tokens(describe("google/gemma-3-4b-it"), ((500, 3000),)) == (256,)


def test_no_rule_or_no_bounds_is_no_number():
    config = json.loads((tiny.checkpoint() / "config.json").read_text())
    assert visual_tokens(described(config), ((224, 224),)) == (None,)
    pixtral = {
        "model_type": "llava",
        "vision_config": {"model_type": "pixtral"},
        "text_config": {"model_type": "mistral"},
    }
    assert visual_tokens(described(pixtral), ((224, 224), (10, 10))) == (None, None)
    assert "paligemma" not in RULES


def test_sizes_that_no_picture_has():
    for size in ((0, 10), (10, 100_001)):
        with pytest.raises(UsageError, match="1 to 100000 pixels"):
            visual_tokens(describe(SEVEN), (size,))
    with pytest.raises(UsageError, match="takes no picture of 2000x2"):
        visual_tokens(describe(SEVEN), ((2000, 2),))


def test_image_settings_of_another_kind_are_named():
    with pytest.raises(BackboneError, match=r"preprocessor_config.json"):
        visual_tokens(described(dict(describe(SEVEN).config), {"size": [1, 2], "patch_size": None}), ((224, 224),))
