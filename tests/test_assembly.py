"""Assembly: what stands where, in both layouts, and what is padding, prefix and target."""

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from masp import assembly
from masp.assembly import Layout, RecentPlans, RowPlan, Spliced
from masp.config import MethodConfig
from masp.errors import UsageError
from masp.model import Use
from masp.types import IGNORED, Assembled, ImageLayout
from small_models import PROMPT_LENGTH, QUESTIONS, full_model, parts, visual_tokens

ANSWERS = ["joy", "very low", "they sing and dance"]


def runs(assembled: Assembled, row: int) -> list[tuple[str, int]]:
    """What a row's real columns hold, as runs of (kind, length)."""
    kinds = np.full(assembled.mask.shape[1], "text", dtype=object)
    kinds[assembled.aspect_columns[row].numpy()] = "Z"
    kinds[assembled.visual_columns[row].numpy()] = "V"
    kinds[assembled.prompt_columns[row].numpy()] = "P"
    found: list[tuple[str, int]] = []
    for kind in kinds[assembled.mask[row].numpy()]:
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
    assembled = model.assemble(visual_tokens(model), QUESTIONS)
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
    assembled = model.assemble(visual_tokens(model), QUESTIONS)
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
    assembled = model.assemble(visual, QUESTIONS)
    z, p = parts(model)[0](visual).tokens, parts(model)[1]()
    for row in range(3):
        columns = assembled.embeddings[row]
        assert torch.equal(columns[assembled.aspect_columns[row]], z[row].flatten(0, 1))
        assert torch.equal(columns[assembled.visual_columns[row]], visual.tokens[row, visual.mask[row]])
        assert torch.equal(columns[assembled.prompt_columns[row]], torch.cat([p, p]))
        expected = torch.arange(6).repeat_interleave(2)
        assert torch.equal(assembled.aspect_of[row][assembled.aspect_columns[row]], expected)
        assert not columns[~assembled.mask[row]].any()


def test_text_columns_are_the_template() -> None:
    model = full_model()
    assembled = model.assemble(visual_tokens(model), QUESTIONS, use=Use((), prompt=False))
    for row, image in enumerate(visual_tokens(model).layouts):
        ids = torch.tensor(model.backbone.template(QUESTIONS[row], image).ids)
        text = assembled.mask[row] & ~assembled.visual_columns[row]
        placeholder = ids == ids[model.backbone.template(QUESTIONS[row], image).visual_start]
        assert torch.equal(assembled.embeddings[row][text], model.backbone.embed(ids[~placeholder]))


def axes_of(assembled: Assembled, row: int) -> Tensor:
    return assembled.positions[:, row, assembled.mask[row]]


def test_native_positions_keep_the_grid_and_count_everything_else() -> None:
    model = full_model()
    assembled = model.assemble(visual_tokens(model), QUESTIONS)
    before, _ = head_and_question(QUESTIONS[1])
    found, start = axes_of(assembled, 1), before + 12
    assert torch.equal(found[:, :start], torch.arange(start).expand(3, -1))  # text, then Z
    cells = found[:, start : start + 10] - start  # 5 rows of 2
    assert cells.tolist() == [[0] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 1] * 5]
    rest = found[:, start + 10 :]
    assert torch.equal(rest, torch.arange(start + 5, start + 5 + rest.shape[1]).expand(3, -1))


def test_sequential_positions_count_every_column() -> None:
    model = full_model(variant="released")
    assembled = model.assemble(visual_tokens(model), QUESTIONS, ANSWERS)
    for row in range(3):
        found = axes_of(assembled, row)
        assert torch.equal(found, torch.arange(found.shape[1]).expand(3, -1))


def test_prefixes_end_together_and_padding_is_at_the_ends() -> None:
    model = full_model()
    assembled = model.assemble(visual_tokens(model), QUESTIONS, ANSWERS)
    mask, end = assembled.mask.int(), assembled.prefix_end
    assert (mask[:, :end].diff(dim=1) >= 0).all()
    assert (mask[:, end:].diff(dim=1) <= 0).all()
    assert mask[:, end - 1 : end + 1].all()
    assert mask[:, :end].sum(1).tolist() == [head_and_question("")[0] + 12 + count + 1 for count in (6, 10, 12)]
    assert assembled.common == 0  # the rows' padding differs


def test_rows_of_one_size_share_the_text_before_the_image() -> None:
    model = full_model()
    visual = visual_tokens(model, [(90, 62), (90, 62)])
    assert model.assemble(visual, QUESTIONS[:2]).common == head_and_question("")[0]
    assert model.assemble(visual.select([0]), QUESTIONS[:1]).common == 0  # nobody to share it with


def test_targets_of_the_paper_are_answer_and_end() -> None:
    model = full_model()
    assembled = model.assemble(visual_tokens(model), QUESTIONS, ANSWERS)
    for row, answer in enumerate(ANSWERS):
        supervised = assembled.targets[row] != IGNORED
        assert assembled.targets[row][supervised].tolist() == model.backbone.answer_ids(answer, end=True)
        assert torch.equal(
            assembled.embeddings[row][supervised], model.backbone.embed(assembled.targets[row][supervised])
        )
        assert supervised.nonzero().max() == assembled.mask[row].nonzero().max()


def test_targets_of_the_released_code_are_newline_and_answer() -> None:
    model = full_model(variant="released")
    assembled = model.assemble(visual_tokens(model), QUESTIONS, ANSWERS)
    newline = model.backbone.text_ids("\n")
    for row, answer in enumerate(ANSWERS):
        found = assembled.targets[row][assembled.targets[row] != IGNORED].tolist()
        assert found == newline + model.backbone.answer_ids(answer, end=False)


def test_aspect_tokens_stand_in_for_the_image() -> None:
    model = full_model()
    tokens = torch.randn(2, 1, 3, tiny.DIM)
    assembled = model.assembler(QUESTIONS[:2], ANSWERS[:2], aspects=tokens)
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
    assembled = model.assemble(visual_tokens(model), QUESTIONS, ANSWERS, Use(prompt=False))
    assert assembled.prefix_end == head_and_question("")[0] + 12 + 12 + 1
    assert not assembled.prompt_columns.any()


def test_leaving_an_aspect_out_closes_the_gap() -> None:
    model = full_model()
    visual = visual_tokens(model)
    assembled = model.assemble(visual, QUESTIONS, use=Use(("brightness", "object")))
    expected = parts(model)[0](visual, ["object", "brightness"]).tokens  # the model's order, not the request's
    assert torch.equal(assembled.embeddings[0][assembled.aspect_columns[0]], expected[0].flatten(0, 1))


def test_gradients_reach_the_prompt_but_not_the_aspects() -> None:
    model = full_model()
    assert model.assemble(visual_tokens(model), QUESTIONS).embeddings.requires_grad
    assert not model.assemble(visual_tokens(model), QUESTIONS, use=Use(prompt=False)).embeddings.requires_grad


def test_something_to_look_at_is_needed() -> None:
    with pytest.raises(UsageError, match="nothing to look at"):
        full_model().assembler(QUESTIONS)


def test_an_unknown_aspect_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'scene'"):
        Use(("scen",))


@pytest.mark.parametrize(
    ("variant", "layout"),
    [
        ("paper", Layout("after_image", native=True, supervised="answer_end")),
        ("released", Layout("both", native=False, supervised="newline_answer")),
    ],
)
def test_variants_name_their_layout(variant: str, layout: Layout) -> None:
    assert Layout.of(MethodConfig(variant=variant)) == layout  # pyright: ignore[reportArgumentType]


def columns(plans: RecentPlans) -> int:
    return sum(len(plan.kind) for plan in plans.kept())


def test_plans_are_kept_by_their_columns() -> None:
    """8,192 plans of long rows, as shuffled labels ask for them, once took half a gigabyte."""
    made: list[str] = []

    def make(question: str, answer: str | None, spliced: Spliced) -> RowPlan:
        made.append(question)
        row = np.zeros(spliced.image.count, dtype=np.int64)
        return RowPlan(row, row, row[None], row, 0)

    plans = RecentPlans(make, limit=100)
    usual = Spliced(ImageLayout(7), 0, 0, 0)
    first = plans("the usual one", None, usual)
    for number in range(50):
        plans(f"question {number}", None, Spliced(ImageLayout(11), 0, 0, 0))
        assert plans("the usual one", None, usual) is first  # used again and again, it stays
        assert columns(plans) <= 100
    assert made.count("the usual one") == 1
    assert columns(plans) > 50
    plans("question 0", None, Spliced(ImageLayout(11), 0, 0, 0))
    assert made.count("question 0") == 2
    huge = Spliced(ImageLayout(1000), 0, 0, 0)
    assert plans("huge", "joy", huge) is plans("huge", "joy", huge)  # too long for the limit, but just used


def test_rows_that_are_planned_again_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = full_model()
    expected = usual.assemble(visual_tokens(usual), QUESTIONS, ANSWERS)
    monkeypatch.setattr(assembly, "COLUMNS_KEPT", 1)  # nothing fits
    model = full_model()
    for _ in range(2):
        found = model.assemble(visual_tokens(model), QUESTIONS, ANSWERS)
        for name in ("embeddings", "positions", "mask", "targets", "aspect_of"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert (found.prefix_end, found.signs) == (expected.prefix_end, expected.signs)
