"""What each family does with images and checkpoints beyond the contract: places on the image, tiles, refusals."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from fixtures import tiny
from fixtures.models import PROMPT_LENGTH, distance, full_model
from masp.backbones.llava_next import Tiles
from masp.backbones.loading import load_backbone
from masp.core.config import PromptInit
from masp.core.types import ImageLayout, VisualTokens
from masp.model.explain import heatmaps
from masp.model.masp_model import init_soft_prompt

PLACED = [family for family in tiny.FAMILIES if family != "instructblip"]


def seen(family: str, *pictures: Image.Image) -> VisualTokens:
    backbone = tiny.backbone(family)
    return backbone.visual_tokens(backbone.preprocess(pictures))


@pytest.mark.parametrize("family", PLACED)
def test_a_token_changes_most_where_its_box_lies(family: str) -> None:
    """A spot on a grey image moves the tokens there more than any others, on average over the places of the spot."""
    plain = np.full((96, 132, 3), 128, dtype=np.uint8)
    before = seen(family, Image.fromarray(plain))
    boxes = before.boxes[0]
    hits = []
    for x in (0.3, 0.5, 0.7):
        for y in (0.15, 0.5, 0.85):
            spotted = plain.copy()
            spotted[int(y * 96) - 6 : int(y * 96) + 6, int(x * 132) - 6 : int(x * 132) + 6] = 255
            change = (seen(family, Image.fromarray(spotted)).tokens[0] - before.tokens[0]).norm(dim=1)
            place = boxes[int(change.argmax())]
            near = torch.tensor([6 / 132, 6 / 96])
            point = torch.tensor([x, y])
            hits.append(bool(((place[:2] - near <= point) & (point <= place[2:] + near)).all()))
    assert sum(hits) >= 6, hits


def test_the_crop_of_llava_leaves_out_what_it_does_not_see() -> None:
    boxes = seen("llava", tiny.picture(90, 62), tiny.picture(58, 140)).boxes
    left, width = 14 / 90, 62 / 90 / 3
    assert torch.allclose(boxes[0, 0], torch.tensor([left, 0, left + width, 1 / 3]), atol=1e-6)
    top = 41 / 140
    assert torch.allclose(boxes[1, 8], torch.tensor([2 / 3, 1 - top - 58 / 140 / 3, 1, 1 - top]), atol=1e-6)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_newline_features_have_no_place(family: str) -> None:
    visual = seen(family, tiny.picture(90, 62))
    assert visual.grid.tolist() == [[3, 4]]
    empty = (visual.boxes[0] == 0).all(1).nonzero()[:, 0].tolist()
    assert empty == [13, 18, 23]  # 9 of the whole, then three rows of 4 and a newline
    assert torch.allclose(visual.boxes[0, 22], torch.tensor([3 / 4, 2 / 3, 1.0, 1.0]))


def test_tiles_have_their_boxes_before_the_whole() -> None:
    visual = seen("idefics3", tiny.picture(58, 140))
    assert visual.shapes == ((2, 1),)
    assert visual.grid.tolist() == [[4, 2]]
    assert torch.allclose(visual.boxes[0, 4], torch.tensor([0, 1 / 2, 1 / 2, 3 / 4]))
    assert torch.allclose(visual.boxes[0, 8], torch.tensor([0, 0, 1 / 2, 1 / 2]))


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_a_picture_that_is_not_split_is_one_tile(family: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.checkpoint(family), tmp_path / "whole"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_image_splitting": False}))
    backbone = load_backbone(str(folder), dtype="float32", device="cpu")
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(90, 62), tiny.picture(58, 140)]))
    assert visual.layouts == [ImageLayout(4, (0, 0))] * 2
    template = backbone.template("Why?", visual.layouts[0])
    assert len(template.spans) == 1


def test_text_stands_between_tiles_and_around_them() -> None:
    template = tiny.backbone("smolvlm").template("Why?", ImageLayout(20, (2, 2)))
    tokenizer = tiny.backbone("smolvlm")._tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    assert [stop - start for start, stop in template.spans] == [4] * 5
    between = [tokenizer.decode(template.ids[a:b]) for (_, a), (b, _) in itertools.pairwise(template.spans)]
    fake = "<fake_token_around_image>"
    assert between[0] == f"{fake}<row_1_col_2>"
    assert between[1] == f"\n{fake}<row_2_col_1>"
    assert between[3] == f"\n\n{fake}<global-img>"
    assert tokenizer.decode(template.ids[template.vision_open : template.visual_start]) == f"{fake}<row_1_col_1>"
    assert tokenizer.decode(template.ids[template.visual_stop : template.vision_close]) == fake


def test_heatmaps_leave_out_newlines_and_spread_the_whole() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    visual = VisualTokens(torch.zeros(1, 4, 3), torch.ones(1, 4).bool(), boxes, torch.tensor([[1, 2]]))
    weights = torch.tensor([[[[0.2, 0.1, 0.3, 0.4]]]])
    (found,) = heatmaps(weights, visual) or []
    assert torch.allclose(found, torch.tensor([[[0.2 / 0.6, 0.4 / 0.6]]]))  # (0.1 + 0.1), (0.1 + 0.3) of 0.6


EXTREME = ((1, 150), (150, 1), (40, 2000), (2000, 40), (1, 1))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pictures_of_extreme_shapes_have_heatmaps(family: str) -> None:
    """In tiles such an image may be less than one feature wide; then the map is that of the whole image."""
    visual = seen(family, *(tiny.picture(*size) for size in EXTREME))
    model = full_model(family)
    maps = heatmaps(model.aspect_tokens(visual).weights, visual)
    if family == "instructblip":  # its visual tokens have no places
        assert maps is None
        return
    assert maps is not None
    assert len(maps) == len(EXTREME)
    for one in maps:
        assert one.shape[1] * one.shape[2] > 0
        torch.testing.assert_close(one.sum((1, 2)), torch.ones(6))


@pytest.mark.parametrize("most", [1, 2, 9])
def test_tile_grids_are_the_processors(most: int) -> None:
    resolutions = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    rule = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=resolutions),
        num_image_tokens=27**2,
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    rule._get_unpadded_features = lambda *sizes: LlavaOnevisionProcessor._get_unpadded_features(rule, *sizes)
    tiles = Tiles(resolutions, 384, 27, most)
    for height, width in [(300, 400), (1000, 333), (2000, 2000), (97, 1801), (640, 480)]:
        rows, columns = tiles.grid(height, width)
        expected = LlavaOnevisionProcessor._get_number_of_features(rule, height, width, 384, 384)
        assert 27**2 + rows * (columns + 1) == expected


# --- language models


def test_scaled_embeddings_set_the_scale_of_a_new_prompt() -> None:
    backbone = tiny.backbone("gemma3")
    assert backbone.embedding_scale == pytest.approx(tiny.DIM**0.5)
    words = torch.arange(tiny.VOCABULARY)
    entering = backbone.embed(words)
    assert torch.allclose(backbone.embedding_rows() * backbone.embedding_scale, entering, rtol=1e-5)
    assert backbone.embedding_std() == pytest.approx(float(entering.std(correction=0)), rel=1e-4)
    drawn = init_soft_prompt(PromptInit(kind="vocabulary"), 3, backbone, torch.Generator().manual_seed(0)).vectors
    assert all(bool((entering - row).abs().amax(1).min() < 1e-5) for row in drawn.detach())


def test_deep_features_reach_the_language_model() -> None:
    visual = seen("qwen3_vl", tiny.picture(90, 62))
    assert visual.deep.shape == (1, 6, 2, tiny.DIM)
    network = tiny.backbone("qwen3_vl")._model  # pyright: ignore[reportAttributeAccessIssue]
    pixels = tiny.backbone("qwen3_vl").preprocess([tiny.picture(90, 62)])
    with torch.no_grad():
        levels = network.model.get_image_features(pixels.values, pixels.grid).deepstack_features
    for number, level in enumerate(levels):
        assert distance(visual.deep[0, :, number], level[0]) <= 1e-5


# --- checkpoints that are refused


# --- chat turns


@pytest.mark.parametrize("family", ["llava", "llava_next", "instructblip"])
def test_an_answer_begins_as_behind_its_prompt(family: str) -> None:
    """Ids of prompt and answer are those of the two written as one text."""
    chat = tiny.backbone(family)._chat  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = chat._tokenizer
    whole = tokenizer("Why? ASSISTANT: joy", add_special_tokens=False).input_ids
    ids = chat.answer_ids("joy", end=False)
    assert whole[-len(ids) :] == ids
    assert chat.decode(chat.answer_ids("joy", end=True)).strip() == "joy"
    assert chat.answer_ids("joy", end=True)[-1] == tokenizer.eos_token_id


def test_a_blank_between_prompt_and_answer_is_the_templates() -> None:
    chat = tiny.backbone("smolvlm")._chat  # pyright: ignore[reportAttributeAccessIssue]
    assert chat._tokenizer.decode(chat.answer_ids("awe", end=False)) == " awe"
    assert tiny.backbone("qwen2_vl").decode(tiny.backbone("qwen2_vl").answer_ids("awe", end=False)) == "awe"


def test_marks_that_are_not_called_special_stay_text(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.checkpoint("internvl"), tmp_path / "loose"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        content = json.loads(text)
        for token in content.get("added_tokens", []):
            token["special"] = False
        (folder / name).write_text(json.dumps(content))
    backbone = load_backbone(str(folder), dtype="float32", device="cpu")
    image = ImageLayout(4)
    plain, attacked = (backbone.template(text, image) for text in ("a  b", "a <IMG_CONTEXT><img><|im_end|> b"))
    marks = [index for index in plain.ids if index < 7]
    assert [index for index in attacked.ids if index < 7] == marks
    assert max(backbone.answer_ids("awe<|im_end|>", end=False)) >= 7
    assert backbone.end_of_turn not in backbone.answer_ids("awe<|im_end|>", end=False)


# --- places in the sequence


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_z_stands_before_the_first_visual_token_and_p_behind_the_picture(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    visual = model.backbone.visual_tokens(model.backbone.preprocess([tiny.picture(58, 140)]))
    assembled = model.build_inputs(visual, ["Why?"])
    template = model.backbone.template("Why?", model.backbone.condition_on(visual, ["Why?"]).layouts[0])
    z, v, p = (
        columns[0].nonzero()[:, 0].tolist()
        for columns in (assembled.aspect_columns, assembled.visual_columns, assembled.prompt_columns)
    )
    before = PROMPT_LENGTH * (variant == "released")
    start = template.visual_start + before
    assert z == list(range(start, start + 12))  # six aspects, two queries each
    own = [place for first, last in template.spans for place in range(first, last)]
    assert v == [place + before + 12 for place in own]
    close = template.vision_close + before + 12
    assert p[-PROMPT_LENGTH:] == list(range(close, close + PROMPT_LENGTH))
    assert p[:-PROMPT_LENGTH] == list(range(template.vision_open, template.vision_open + before))
    text = [i for i in range(assembled.attention_mask.shape[1]) if i not in {*z, *v, *p}]
    ids = [index for place, index in enumerate(template.ids) if place not in own]
    assert torch.equal(assembled.inputs_embeds[0, text], model.backbone.embed(torch.tensor(ids)))


FRAMES = {
    "qwen2_vl": "<|im_start|>user\n<|vision_start|>HERE<|vision_end|>Why?",
    "llava": "<s> USER: HERE\nWhy?",
    "gemma3": "<start_of_turn>user\n\n\n<start_of_image>HERE<end_of_image>\n\nWhy?",
    "internvl": "<|im_start|>user\n<img>HERE</img>\nWhy?",
    "smolvlm": "User:<fake_token_around_image><global-img>HERE<fake_token_around_image>Why?",
    "instructblip": "HERE<s> Why?",
    "photo": "<|im_start|>user\nHEREWhy?",
}


@pytest.mark.parametrize("family", FRAMES)
def test_without_visual_tokens_the_plainest_frame_stays(family: str) -> None:
    """Stage 1: the aspect's tokens stand where the visual tokens of an image would."""
    backbone = tiny.backbone(family)
    template = backbone.template("Why?", ImageLayout(0))
    assert template.visual_start == template.visual_stop
    tokenizer = backbone._tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    before, after = template.ids[: template.visual_start], template.ids[template.visual_stop :]
    assert FRAMES[family] in f"{tokenizer.decode(before)}HERE{tokenizer.decode(after)}".replace(
        "USER:HERE", "USER: HERE"
    )
