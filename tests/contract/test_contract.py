"""What every family promises, in fp32 to 1e-5 and in bf16 within the backbone's own noise.

The reference is transformers' model of the same folder, loaded apart and untouched: its own vision tower, its own
position index, its own forward pass.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

import update_backbones_doc
from fixtures import tiny
from fixtures.models import (
    OFF,
    QUESTIONS,
    distance,
    full_model,
    last_logits,
    own_logits,
    pictures,
    reference,
    tokens_of,
    tolerance,
)
from masp.adapters import AdapterInfo, BackboneRecord, load_adapter, save_adapter
from masp.backbones.chat import QUESTION_HERE
from masp.core.aspects import ASPECTS
from masp.core.labels import LABEL_SETS, parse
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import label_loss

DTYPES = ("float32", "bfloat16")
FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
DTYPE = pytest.mark.parametrize("dtype", DTYPES)


@FAMILIES
@DTYPE
def test_1_off_means_the_backbone_itself(family: str, dtype: str) -> None:
    model = full_model(family, dtype)
    for row in range(3):
        found = last_logits(model, tokens_of(family, dtype, [row]), [QUESTIONS[row]], OFF)
        assert distance(found, own_logits(family, dtype, [row])) <= tolerance(family, dtype)


@FAMILIES
def test_1_a_model_without_parts_is_the_same_as_parts_off(family: str) -> None:
    model = full_model(family)
    bare = MaspModel(model.backbone, model.method)
    visual = tokens_of(family, "float32", [0])
    assert torch.equal(
        last_logits(bare, visual, QUESTIONS[:1], ActiveParts()), last_logits(model, visual, QUESTIONS[:1], OFF)
    )


@FAMILIES
@DTYPE
@pytest.mark.parametrize(
    "use",
    [ActiveParts(prompt=False), ActiveParts(aspects=()), ActiveParts(aspects=("scene",), prompt=False), ActiveParts()],
)
def test_2_on_means_something_changes(family: str, dtype: str, use: ActiveParts) -> None:
    model = full_model(family, dtype)
    changes = []
    for image in range(3):  # the tolerance is of the noisiest of the same three
        visual = tokens_of(family, dtype, [image])
        on, off = (last_logits(model, visual, QUESTIONS[:1], which) for which in (use, OFF))
        changes.append(distance(on, off))
    assert max(changes) > (20 if dtype == "float32" else 1.5) * tolerance(family, dtype)


@FAMILIES
@DTYPE
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_3_a_batch_equals_its_singles(family: str, dtype: str, variant: str) -> None:
    model = full_model(family, dtype, variant)
    batch = last_logits(model, tokens_of(family, dtype, [0, 1, 2]), QUESTIONS)
    for row in range(3):
        single = last_logits(model, tokens_of(family, dtype, [row]), [QUESTIONS[row]])
        assert distance(batch[row], single[0]) <= tolerance(family, dtype)


@FAMILIES
def test_4_padding_changes_nothing(family: str) -> None:
    model = full_model(family)
    alone = tokens_of(family, "float32", [0])
    pad = alone.tokens.new_full((1, alone.tokens.shape[1] + 5, alone.tokens.shape[2]), 1e3)  # must not matter
    width = pad.shape[1]
    deep = None if alone.deep is None else torch.nn.functional.pad(alone.deep, (0, 0, 0, 0, 0, 5), value=1e3)
    padded = replace(alone, tokens=pad, mask=torch.arange(width)[None] < alone.counts[0], boxes=None, deep=deep)
    padded.tokens[:, : alone.tokens.shape[1]] = alone.tokens
    assert padded.counts == alone.counts
    found = last_logits(model, padded, QUESTIONS[:1])
    assert distance(found, last_logits(model, alone, QUESTIONS[:1])) <= 1e-5


@FAMILIES
@DTYPE
@pytest.mark.parametrize("stage", ["aspects", "prompt", "labels"])
def test_5_a_step_changes_only_what_is_trained(family: str, dtype: str, stage: str) -> None:
    model = full_model.__wrapped__(family, dtype)  # one of its own
    network = model.backbone._model  # pyright: ignore[reportAttributeAccessIssue]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    visual = tokens_of(family, dtype, [0, 1, 2])
    modules = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    if stage == "aspects":
        loss = model.aspect_loss(visual, torch.tensor([2, 4, 2]), QUESTIONS, ["beach", "low", "mountain"])
        trained = {name for name in modules if ".scene." in name or ".brightness." in name}
    elif stage == "labels":
        answers = ["awe", "fear", "sadness"]
        loss, trained = label_loss(model, visual, QUESTIONS, answers, (*answers, "joy")), {"prompt.vectors"}
    else:
        loss, trained = model.prompt_loss(visual, QUESTIONS, ["awe", "fear", "sadness"]), {"prompt.vectors"}
    loss.sum().backward()
    optimizer.step()
    assert {name for name, tensor in model.named_parameters() if tensor.grad is not None} == trained
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, modules[name])}
    assert changed == trained
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@FAMILIES
@DTYPE
def test_6_save_and_load_give_the_same_logits(family: str, dtype: str, tmp_path: Any) -> None:
    model = full_model(family, dtype)
    visual, backbone = tokens_of(family, dtype, [0, 1]), model.backbone
    record = BackboneRecord(
        name=backbone.name,
        revision=None,
        family=family,
        fingerprint=backbone.fingerprint(),
        dim=backbone.dim,
        hashes=dict(backbone.hashes()),
    )
    asked = dict.fromkeys((*ASPECTS, "emotion"), "What is it?")
    info = AdapterInfo(
        backbone=record, method=model.method, aspects=ASPECTS, labels=("a", "b"), questions=asked, data={}
    )
    save_adapter(tmp_path, info, model.aspects, model.prompt)
    adapter = load_adapter(tmp_path, backbone)
    loaded = MaspModel(backbone, model.method, adapter.aspects, adapter.prompt)
    assert loaded.prompt is not model.prompt
    assert torch.equal(last_logits(loaded, visual, QUESTIONS[:2]), last_logits(model, visual, QUESTIONS[:2]))


@FAMILIES
@pytest.mark.parametrize("name", LABEL_SETS)
def test_7_every_label_survives_the_tokenizer(family: str, name: str) -> None:
    backbone, labels = tiny.backbone(family), LABEL_SETS[name]
    for label in labels:
        ids = backbone.answer_ids(label, end=True)
        assert ids[-1] == backbone.end_of_turn
        assert ids[:-1] == backbone.answer_ids(label, end=False)
        assert parse(backbone.decode(ids), labels) == label


@FAMILIES
def test_visual_tokens_equal_the_towers_own(family: str) -> None:
    backbone, kind = tiny.backbone(family), tiny.KINDS[family]
    pixels = backbone.preprocess(pictures())
    found = backbone.condition_on(backbone.visual_tokens(pixels), QUESTIONS)
    with torch.no_grad():
        expected = kind.features(reference(family, "float32"), pixels, QUESTIONS)
    assert found.counts == kind.counts
    assert [len(features) for features in expected] == kind.counts
    for row, features in enumerate(expected):
        assert distance(found.tokens[row, : len(features)], features) <= 1e-5
        assert not found.tokens[row, len(features) :].any()


@FAMILIES
def test_positions_equal_the_models_own_index(family: str) -> None:
    """Three axes with the image's rows and columns for M-RoPE, plain counting for the others."""
    backbone, network = tiny.backbone(family), reference(family, "float32")
    images = tokens_of(family, "float32", [0, 1, 2]).layouts
    for image in images:
        template = backbone.template(QUESTIONS[0], image)
        ids = torch.tensor([template.ids])
        flat = torch.arange(len(template.ids))
        found = backbone.positions(len(template.ids), template.visual_start, image, native=True)
        if len(found) == 3:
            grid = torch.tensor([[1, *(2 * side for side in image.shape)]])
            types = (ids == network.config.image_token_id).int()
            expected, _ = network.model.get_rope_index(ids, types, grid, attention_mask=torch.ones_like(ids))
            assert torch.equal(found, expected[:, 0])
            assert not torch.equal(found, flat.expand(3, -1))
        else:
            assert torch.equal(found, flat[None])
        sequential = backbone.positions(len(template.ids), template.visual_start, image, native=False)
        assert torch.equal(sequential, flat.expand_as(found))


@FAMILIES
@pytest.mark.parametrize("row", [0, 1, 2])
def test_template_and_pixels_equal_the_official_processors(family: str, row: int) -> None:
    backbone, official = tiny.backbone(family), tiny.KINDS[family].official
    text = backbone._chat._turn.render(False).replace(QUESTION_HERE, QUESTIONS[row])  # pyright: ignore[reportAttributeAccessIssue]
    expected = official(tiny.checkpoint(family))(pictures()[row], text)
    pixels = backbone.preprocess([pictures()[row]])
    image = backbone.condition_on(backbone.visual_tokens(pixels), [QUESTIONS[row]]).layouts[0]
    assert list(backbone.template(QUESTIONS[row], image).ids) == expected["input_ids"][0].tolist()
    assert torch.equal(pixels.values, expected["pixel_values"])


@FAMILIES
def test_marks_in_a_question_stay_text(family: str) -> None:
    backbone = tiny.backbone(family)
    tokenizer = backbone._tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    marks = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    image = backbone.condition_on(tokens_of(family, "float32", [0]), QUESTIONS[:1]).layouts[0]
    hostile = "joy " + "".join(tokenizer.decode([mark]) for mark in sorted(marks)) + " fear"
    plain, attacked = (backbone.template(text, image) for text in ("joy fear", hostile))
    special = [[index for index in template.ids if index in marks] for template in (plain, attacked)]
    assert marks
    assert special[0] == special[1]
    assert len(attacked.ids) > len(plain.ids)
    assert hostile in tokenizer.decode([index for index in attacked.ids if index not in marks])
    assert not marks & set(backbone.answer_ids(hostile, end=False))


@FAMILIES
def test_a_question_with_marks_is_tokenised_as_one_without_them(family: str) -> None:
    """The path for hostile questions gives the plain tokenisation where nothing is hostile."""
    chat = tiny.backbone(family)._chat  # pyright: ignore[reportAttributeAccessIssue]
    head, _, tail = chat._turn.render(False).partition(QUESTION_HERE)
    for question in QUESTIONS:
        plain = chat._encode(head, question, tail, begins=True)
        before, after = chat._split(head), chat._split(tail)
        runs = [*before[:-1], before[-1] + question + after[0], *after[1:]]
        ids = list(chat._tokenizer("").input_ids)
        for place, run in enumerate(runs):
            ids += [chat._marks[run]] if place % 2 else chat._run_ids(run, first=not place)
        assert ids == plain


@FAMILIES
def test_tokens_have_a_place_on_the_image_or_none(family: str) -> None:
    visual = tokens_of(family, "float32", [0, 1, 2])
    assert (visual.boxes is None) == (visual.grid is None)
    if visual.boxes is None:
        return
    x0, y0, x1, y1 = visual.boxes.unbind(-1)
    assert ((x0 <= x1) & (y0 <= y1)).all()
    assert visual.boxes.min() >= 0
    assert visual.boxes.max() <= 1
    assert not visual.boxes[~visual.mask].any()


def test_the_table_in_the_documentation_is_of_these_tests(
    cells: Counter[tuple[str, str]], request: pytest.FixtureRequest
) -> None:
    config = request.config
    if "MASP_RECORD_FAMILIES" in os.environ:
        pytest.skip("the table is being written")
    if config.getoption("keyword") or not any(item.path.name == "test_readings.py" for item in request.session.items):
        pytest.skip("a part of the contract runs")
    recorded = json.loads(update_backbones_doc.RESULTS.read_text())["families"]
    counts = {(family, name): sum(one.values()) for family, row in recorded.items() for name, one in row.items()}
    assert counts == cells, "run `make families`"
