"""Visual tokens counted from an image's size, by hand and against loaded models and the processors themselves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration, LlavaOnevisionForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from fixtures import tiny
from masp.backbones.base import Backbone
from masp.backbones.known_models import Description, describe, published
from masp.backbones.loading import FAMILIES, load_backbone
from masp.backbones.model_stats import model_config, visual_tokens
from masp.core.errors import BackboneError, UsageError

SEVEN = "Qwen/Qwen2-VL-7B-Instruct"
SIZES = ((224, 224), (90, 62), (58, 140), (1920, 1080), (500, 3000), (336, 1000))


def described(config, preprocessor=None):
    return Description("made up", "folder", config, preprocessor)


COUNTS = {
    "qwen2_vl": (16, 6, 10, 18, 24, 16),  # 4 × 4, 2 × 3, 5 × 2, 3 × 6, 12 × 2, 8 × 2 cells
    "qwen2_5_vl": (16, 6, 10, 18, 24, 16),
    "qwen3_vl": (16, 6, 8, 18, 24, 16),  # of 32 pixels: 4 × 2 in the third
    "llava": (9,) * 6,
    "llava_next": (24, 24, 37, 30, 27, 45),  # 9, and 3 × 4, 3 × 4, 7 × 3, 3 × 6, 9 × 1, 9 × 3 and newlines
    "llava_onevision": (25, 24, 27, 30, 27, 27),  # 9, and 4 × 3, 3 × 4, 6 × 2, 3 × 6, 9 × 1, 6 × 2 and newlines
    "internvl": (20, 20, 16, 12, 20, 16),  # 4 each of 2 × 2, 2 × 2, 3 × 1, 1 × 2, 4 × 1, 3 × 1 tiles and the whole
    "idefics3": (20, 20, 12, 20, 12, 12),  # 4 each of 2 × 2 or 2 × 1 tiles and the whole
    "smolvlm": (20, 20, 12, 20, 12, 12),
    "gemma3": (9,) * 6,
    "photo": (11,) * 6,  # 3 × 3 cells and 2 of the whole image
    "instructblip": (5,) * 6,  # queries; the vision tower has 10 features for them to look at
}
"""Visual tokens of `SIZES`, worked out by hand from the settings of the tiny checkpoints."""


def loaded(backbone: Backbone, sizes) -> tuple[int, ...]:
    """Visual tokens that a loaded backbone puts before its language model."""
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(*size) for size in sizes]))
    return tuple(backbone.condition_on(visual, ["Why?"] * len(sizes)).counts)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_visual_tokens_are_those_of_the_loaded_backbone(family):
    found = visual_tokens(describe(str(tiny.checkpoint(family))), SIZES)
    assert found == loaded(tiny.backbone(family), SIZES) == COUNTS[family]


@pytest.mark.parametrize(
    ("family", "changes", "counts"),
    [
        ("idefics3", {"do_image_splitting": False}, (4, 4, 4)),
        ("smolvlm", {"do_image_splitting": False}, (4, 4, 4)),
        ("idefics3", {"max_image_size": {"longest_edge": 8}}, (17, 13, 9)),  # 4 × 4, 3 × 4, 4 × 2 and the whole, 1 each
        ("internvl", {"max_patches": 1}, (4, 4, 4)),
        ("internvl", {"size": {"height": 24, "width": 24}}, (45, 45, 36)),  # 9 in a tile
    ],
)
def test_settings_of_pictures_count_and_not_what_the_configuration_expects(family, changes, counts, tmp_path):
    folder = Path(shutil.copytree(tiny.checkpoint(family), tmp_path / "changed"))
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    backbone = load_backbone(str(folder), dtype="float32", device="cpu")
    assert visual_tokens(describe(str(folder)), SIZES[:3]) == loaded(backbone, SIZES[:3]) == counts


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
    """Length of the image features that a model makes of an image."""
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


def test_no_rule_or_no_bounds_is_no_number():
    config = json.loads((tiny.checkpoint() / "config.json").read_text())
    assert visual_tokens(described(config), ((224, 224),)) == (None,)
    pixtral = {
        "model_type": "llava",
        "vision_config": {"model_type": "pixtral"},
        "text_config": {"model_type": "mistral"},
    }
    assert visual_tokens(described(pixtral), ((224, 224), (10, 10))) == (None, None)
    unserved = described({"model_type": "paligemma"}, {"size": {"height": 224, "width": 224}})
    assert visual_tokens(unserved, ((224, 224),)) == (None,)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_image_settings_only_fixed_counts_are_known(family):
    config = json.loads((tiny.checkpoint(family) / "config.json").read_text())
    expected = (None,) if FAMILIES[family].sized else COUNTS[family][:1]
    assert visual_tokens(described(config), SIZES[:1]) == expected


def test_sizes_that_no_picture_has():
    for size in ((0, 10), (10, 100_001)):
        with pytest.raises(UsageError, match="1 to 100000 pixels"):
            visual_tokens(describe(SEVEN), (size,))
    with pytest.raises(UsageError, match="takes no image of 2000x2"):
        visual_tokens(describe(SEVEN), ((2000, 2),))


def test_image_settings_of_another_kind_are_named():
    with pytest.raises(BackboneError, match=r"preprocessor_config.json"):
        visual_tokens(described(dict(describe(SEVEN).config), {"size": [1, 2], "patch_size": None}), ((224, 224),))
