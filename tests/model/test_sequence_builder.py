"""Assembly: what stands where, in both layouts, and what is padding, prefix and target."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fixtures import tiny
from fixtures.models import PROMPT_LENGTH, QUESTIONS, full_model, parts, visual_tokens
from masp.backbones.base import LRUCache
from masp.backbones.loading import load_backbone
from masp.core.errors import UsageError
from masp.core.types import IGNORED, ImageLayout, ModelInputs
from masp.model.masp_model import ActiveParts
from masp.model.sequence_builder import Layout, SequenceBuilder, SequenceParts

ANSWERS = ["joy", "very low", "they sing and dance"]


def runs(assembled: ModelInputs, row: int) -> list[tuple[str, int]]:
    """What a row's real columns hold, as runs of (kind, length)."""
    kinds = np.full(assembled.attention_mask.shape[1], "text", dtype=object)
    kinds[assembled.aspect_columns[row].numpy()] = "Z"
    kinds[assembled.visual_columns[row].numpy()] = "V"
    kinds[assembled.prompt_columns[row].numpy()] = "P"
    found: list[tuple[str, int]] = []
    for kind in kinds[assembled.attention_mask[row].numpy()]:
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + 1)
        else:
            found.append((kind, 1))
    return found


def head_and_question(question: str) -> tuple[int, int]:
    """Number of text columns before the image, its opening mark included, and after it."""
    template = tiny.backbone().template(question, ImageLayout(1, (1, 1)))
    return template.visual_start, len(template.ids) - template.vision_close


@pytest.mark.parametrize("row", [0, 1, 2])
def test_paper_layout(row: int) -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS)
    before, after = head_and_question(QUESTIONS[row])
    expected = [
        ("text", before),
        ("Z", 12),
        ("V", [6, 10, 12][row]),
        ("text", 1),
        ("P", PROMPT_LENGTH),
        ("text", after),
    ]
    assert runs(assembled, row) == expected
    assert int(assembled.prompt_columns[row].int().argmax()) == assembled.prefix_end


@pytest.mark.parametrize("row", [0, 1, 2])
def test_released_layout(row: int) -> None:
    model = full_model(variant="released")
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS)
    before, after = head_and_question(QUESTIONS[row])
    p = ("P", PROMPT_LENGTH)
    expected = [
        ("text", before - 1),
        p,
        ("text", 1),
        ("Z", 12),
        ("V", [6, 10, 12][row]),
        ("text", 1),
        p,
        ("text", after),
    ]
    assert runs(assembled, row) == expected
    assert assembled.prefix_end == before - 1
    assert assembled.common == assembled.prefix_end


def test_vectors_are_the_parts_themselves() -> None:
    model = full_model(variant="released")
    visual = visual_tokens(model)
    assembled = model.build_inputs(visual, QUESTIONS)
    z, p = parts(model)[0](visual).tokens, parts(model)[1]()
    for row in range(3):
        columns = assembled.inputs_embeds[row]
        assert torch.equal(columns[assembled.aspect_columns[row]], z[row].flatten(0, 1))
        assert torch.equal(columns[assembled.visual_columns[row]], visual.tokens[row, visual.mask[row]])
        assert torch.equal(columns[assembled.prompt_columns[row]], torch.cat([p, p]))
        expected = torch.arange(6).repeat_interleave(2)
        assert torch.equal(assembled.aspect_of[row][assembled.aspect_columns[row]], expected)
        assert not columns[~assembled.attention_mask[row]].any()


def test_text_columns_are_the_template() -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, use=ActiveParts((), prompt=False))
    for row, image in enumerate(visual_tokens(model).layouts):
        ids = torch.tensor(model.backbone.template(QUESTIONS[row], image).ids)
        text = assembled.attention_mask[row] & ~assembled.visual_columns[row]
        placeholder = ids == ids[model.backbone.template(QUESTIONS[row], image).visual_start]
        assert torch.equal(assembled.inputs_embeds[row][text], model.backbone.embed(ids[~placeholder]))


def axes_of(assembled: ModelInputs, row: int) -> Tensor:
    return assembled.position_ids[:, row, assembled.attention_mask[row]]


def test_native_positions_keep_the_grid_and_count_everything_else() -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS)
    before, _ = head_and_question(QUESTIONS[1])
    found, start = axes_of(assembled, 1), before + 12
    assert torch.equal(found[:, :start], torch.arange(start).expand(3, -1))  # text, then Z
    cells = found[:, start : start + 10] - start  # 5 rows of 2
    assert cells.tolist() == [[0] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 1] * 5]
    rest = found[:, start + 10 :]
    assert torch.equal(rest, torch.arange(start + 5, start + 5 + rest.shape[1]).expand(3, -1))


def test_sequential_positions_count_every_column() -> None:
    model = full_model(variant="released")
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
    for row in range(3):
        found = axes_of(assembled, row)
        assert torch.equal(found, torch.arange(found.shape[1]).expand(3, -1))


def test_prefixes_end_together_and_padding_is_at_the_ends() -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
    mask, end = assembled.attention_mask.int(), assembled.prefix_end
    assert (mask[:, :end].diff(dim=1) >= 0).all()
    assert (mask[:, end:].diff(dim=1) <= 0).all()
    assert mask[:, end - 1 : end + 1].all()
    assert mask[:, :end].sum(1).tolist() == [head_and_question("")[0] + 12 + count + 1 for count in (6, 10, 12)]
    assert assembled.common == 0  # the rows' padding differs


def test_rows_of_one_size_share_the_text_before_the_image() -> None:
    model = full_model()
    visual = visual_tokens(model, [(90, 62), (90, 62)])
    assert model.build_inputs(visual, QUESTIONS[:2]).common == head_and_question("")[0]
    assert model.build_inputs(visual.select([0]), QUESTIONS[:1]).common == 0  # nobody to share it with


def test_targets_of_the_paper_are_answer_and_end() -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
    for row, answer in enumerate(ANSWERS):
        supervised = assembled.labels[row] != IGNORED
        assert assembled.labels[row][supervised].tolist() == model.backbone.answer_ids(answer, end=True)
        assert torch.equal(
            assembled.inputs_embeds[row][supervised], model.backbone.embed(assembled.labels[row][supervised])
        )
        assert supervised.nonzero().max() == assembled.attention_mask[row].nonzero().max()


def test_targets_of_the_released_code_are_newline_and_answer() -> None:
    model = full_model(variant="released")
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
    newline = model.backbone.tokenize("\n")
    for row, answer in enumerate(ANSWERS):
        found = assembled.labels[row][assembled.labels[row] != IGNORED].tolist()
        assert found == newline + model.backbone.answer_ids(answer, end=False)


def test_aspect_tokens_stand_in_for_the_image() -> None:
    model = full_model()
    tokens = torch.randn(2, 1, 3, tiny.DIM)
    assembled = model.sequence_builder(QUESTIONS[:2], ANSWERS[:2], aspects=tokens)
    before, after = head_and_question(QUESTIONS[0])
    assert runs(assembled, 0) == [
        ("text", before),
        ("Z", 3),
        ("text", 1 + after + len(model.backbone.answer_ids("joy", True))),
    ]
    assert assembled.prefix_end == before
    assert assembled.common == before
    found = axes_of(assembled, 1)
    assert torch.equal(found, torch.arange(found.shape[1]).expand(3, -1))


def test_without_prompt_the_prefix_still_ends_after_the_image() -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS, ActiveParts(prompt=False))
    assert assembled.prefix_end == head_and_question("")[0] + 12 + 12 + 1
    assert not assembled.prompt_columns.any()


def test_leaving_an_aspect_out_closes_the_gap() -> None:
    model = full_model()
    visual = visual_tokens(model)
    assembled = model.build_inputs(visual, QUESTIONS, use=ActiveParts(("brightness", "object")))
    expected = parts(model)[0](visual, ["object", "brightness"]).tokens  # the model's order, not the request's
    assert torch.equal(assembled.inputs_embeds[0][assembled.aspect_columns[0]], expected[0].flatten(0, 1))


def test_gradients_reach_the_prompt_but_not_the_aspects() -> None:
    model = full_model()
    assert model.build_inputs(visual_tokens(model), QUESTIONS).inputs_embeds.requires_grad
    assert not model.build_inputs(
        visual_tokens(model), QUESTIONS, use=ActiveParts(prompt=False)
    ).inputs_embeds.requires_grad


def test_something_to_look_at_is_needed() -> None:
    with pytest.raises(UsageError, match="nothing to look at"):
        full_model().sequence_builder(QUESTIONS)


@dataclass(frozen=True)
class Heavy:
    """A value of so many bytes."""

    nbytes: int


def test_what_is_kept_is_bounded_by_its_bytes() -> None:
    """8,192 plans of long rows, as shuffled labels ask for them, once took half a gigabyte."""
    made: list[str] = []

    def make(key: str, nbytes: int) -> Heavy:
        made.append(key)
        return Heavy(nbytes)

    def total() -> int:
        return sum(one.nbytes for one in kept.kept())

    kept = LRUCache(limit=100)
    first = kept.get("the usual one", lambda: make("the usual one", 7))
    for number in range(50):
        kept.get(number, lambda: make("another", 11))
        assert kept.get("the usual one", lambda: make("the usual one", 7)) is first  # used again and again, it stays
        assert total() <= 100
    assert made.count("the usual one") == 1
    assert total() > 50
    kept.get(0, lambda: make("the first again", 11))
    assert made[-1] == "the first again"
    assert kept.get("huge", lambda: make("huge", 1000)) is kept.get(
        "huge", lambda: Heavy(1)
    )  # too large, but just used


def test_what_cannot_be_made_is_not_kept() -> None:
    kept = LRUCache(limit=100)

    def broken() -> Heavy:
        raise UsageError("nothing", "something")

    with pytest.raises(UsageError):
        kept.get("key", broken)
    assert kept.get("key", lambda: Heavy(1)) == Heavy(1)


def test_tasks_share_one_bound_and_never_a_plan_of_another_layout() -> None:
    """Row plans were once kept for each task: fifty tasks took 4 GB."""
    backbone = load_backbone(str(tiny.checkpoint()), dtype="float32", device="cpu")
    image = SequenceParts(ImageLayout(400, (20, 20)), 6, 2, 7)
    sizes: list[int] = []
    for task in range(3):
        for layout in (Layout(), Layout("both", native=False)):
            assembler = SequenceBuilder(backbone, layout)
            found = assembler.prefix_hashes([f"task {task}"], [image])
            assert found == SequenceBuilder(tiny.backbone(), layout).prefix_hashes([f"task {task}"], [image])
            sizes.append(len(backbone.plans.kept()))
    assert sizes == [1, 2, 3, 4, 5, 6]
    backbone.plans = LRUCache(3 * backbone.plans.kept()[0].nbytes)
    for task in range(50):
        SequenceBuilder(backbone, Layout()).prefix_hashes([f"task {task}"], [image])
    assert 0 < len(backbone.plans.kept()) <= 3


def test_rows_that_are_planned_again_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = full_model()
    expected = usual.build_inputs(visual_tokens(usual), QUESTIONS, ANSWERS)
    monkeypatch.setattr(usual.backbone, "plans", LRUCache(1))  # nothing fits
    model = full_model()
    for _ in range(2):
        found = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
        for name in ("inputs_embeds", "position_ids", "attention_mask", "labels", "aspect_of"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert (found.prefix_end, found.prefix_hashes) == (expected.prefix_end, expected.prefix_hashes)
