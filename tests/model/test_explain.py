"""Heatmaps on the image's own grid, effects that are differences of scores, and attention from prompt to aspects."""

import itertools

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from fixtures.models import QUESTIONS, full_model, visual_tokens
from masp.core.errors import UsageError
from masp.core.types import VisualTokens
from masp.model.explain import (
    attention_to_aspects,
    heatmaps,
    leave_one_out,
    prompt_attention,
    read_aspects,
    shapley_values,
)
from masp.model.masp_model import ActiveParts
from masp.model.scoring import score
from masp.predictor import Masp

ONE_OUT = ("facial_expression", "object", "scene", "brightness", "colorfulness")


@pytest.fixture(scope="module")
def masp(tmp_path_factory):
    return Masp.from_pretrained(write_adapter(tmp_path_factory.mktemp("a") / "adapter"), dtype="float32")


@pytest.fixture(scope="module")
def visual(masp):
    """Two images of different sizes, so that one is padded."""
    return masp.visual_tokens(masp.backbone.preprocess([tiny.picture(140, 112, 1), tiny.picture(84, 84, 2)]))


def tokens(grid, boxes=None):
    counts = [rows * columns for rows, columns in grid]
    mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
    return VisualTokens(torch.zeros(len(grid), max(counts), 3), mask, boxes, torch.tensor(grid))


def test_a_heatmap_is_the_mean_of_the_queries_in_reading_order():
    weights = torch.tensor([[[[0.1, 0.2, 0.3, 0.4, 0.0, 0.0], [0.5, 0.0, 0.1, 0.2, 0.1, 0.1]]]])
    (found,) = heatmaps(weights, tokens([(2, 3)])) or []
    expected = torch.tensor([[[0.3, 0.1, 0.2], [0.3, 0.05, 0.05]]])
    torch.testing.assert_close(found, expected)


def test_images_of_a_batch_keep_their_own_grids():
    weights = torch.rand(2, 5, 3, 6)
    found = heatmaps(weights, tokens([(2, 3), (2, 2)])) or []
    assert [tuple(one.shape) for one in found] == [(5, 2, 3), (5, 2, 2)]
    torch.testing.assert_close(found[1], weights[1, :, :, :4].mean(1).reshape(5, 2, 2))


def test_boxes_say_where_a_token_lies_whatever_its_number():
    columns_first = [(row, column) for column in range(3) for row in range(2)]
    boxes = torch.tensor([[[c / 3, r / 2, (c + 1) / 3, (r + 1) / 2] for r, c in columns_first]])
    weights = torch.tensor([[[[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]]]])
    (found,) = heatmaps(weights, tokens([(2, 3)], boxes)) or []
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.2, 0.4], [0.1, 0.3, 0.5]]]))


def test_tokens_without_a_grid_have_no_heatmap():
    plain = VisualTokens(torch.zeros(1, 6, 3), torch.ones(1, 6, dtype=torch.bool))
    assert heatmaps(torch.rand(1, 5, 2, 6), plain) is None


def test_a_real_heatmap_sums_to_one_and_its_boxes_agree_with_reading_order(masp, visual):
    weights = masp.model.aspects(visual).weights
    assert visual.boxes is not None
    found = heatmaps(weights, visual) or []
    in_order = heatmaps(weights, VisualTokens(visual.tokens, visual.mask, None, visual.grid)) or []
    assert [tuple(one.shape) for one in found] == [(6, 4, 5), (6, 3, 3)]
    for one, other in zip(found, in_order, strict=True):
        torch.testing.assert_close(one.sum((1, 2)), torch.ones(6))
        torch.testing.assert_close(one, other)


def test_effects_are_what_is_lost_without_an_aspect(masp, visual):
    task = masp.task
    effects = leave_one_out(masp.model, visual, task.question, LABELS, task.use)
    assert effects.shape == (2, 6, 3)
    full = score(masp.model, visual, task.question, LABELS)
    without = score(masp.model, visual, task.question, LABELS, ActiveParts(ONE_OUT))
    torch.testing.assert_close(effects[:, 3], full - without)
    assert effects.abs().amax() > 1e-3
    assert not torch.equal(effects[:, 2], effects[:, 3])
    torch.testing.assert_close(leave_one_out(masp.model, visual, task.question, LABELS, task.use, full), effects)


def test_shapley_values_are_the_mean_over_all_orders_of_joining(masp, visual):
    use = ActiveParts(("object", "scene", "brightness"), prompt=False)
    found = shapley_values(masp.model, visual, masp.task.question, LABELS, use)

    def value(names):
        return score(masp.model, visual, masp.task.question, LABELS, ActiveParts(tuple(names), prompt=False))

    names = masp.model.active_aspects(use)
    orders = list(itertools.permutations(names))
    for place, name in enumerate(names):
        joins = [value(order[: (at := order.index(name)) + 1]) - value(order[:at]) for order in orders]
        torch.testing.assert_close(found[:, place], torch.stack(joins).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), value(names) - value(()), atol=1e-5, rtol=1e-4)
    known = score(masp.model, visual, masp.task.question, LABELS, use)
    torch.testing.assert_close(shapley_values(masp.model, visual, masp.task.question, LABELS, use, known), found)
    assert shapley_values(masp.model, visual, masp.task.question, LABELS, ActiveParts(())).shape == (2, 0, 3)


def test_effects_of_a_part_are_relative_to_that_part(masp, visual):
    use = ActiveParts(("scene", "object"), prompt=False)
    effects = leave_one_out(masp.model, visual, masp.task.question, LABELS, use)
    with_both = score(masp.model, visual, masp.task.question, LABELS, use)
    without_object = score(masp.model, visual, masp.task.question, LABELS, ActiveParts(("scene",), prompt=False))
    torch.testing.assert_close(effects[:, 0], with_both - without_object)  # the model's order: object before scene


def test_readings_carry_each_aspects_own_answer_map_and_effect(masp, visual):
    use = ActiveParts(("scene", "object"))
    given = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = read_aspects(masp.model, visual, masp.task.questions, use, given)
    assert [list(one) for one in found] == [["object", "scene"], ["object", "scene"]]
    assert [[reading.effect for reading in one.values()] for one in found] == [[1.0, 2.0], [3.0, 4.0]]
    maps = heatmaps(masp.model.aspects(visual, ("object", "scene")).weights, visual) or []
    assert found[1]["scene"].attention == tuple(map(tuple, maps[1][1].tolist()))
    assert len({reading.answer for one in found for reading in one.values()}) > 1


def test_attention_to_aspects_is_named_and_normalised(masp, visual):
    found = attention_to_aspects(masp.model, visual, masp.task.question, masp.task.use)
    assert found is not None
    for one in found:
        assert tuple(one.raw) == masp.model.active_aspects(masp.task.use)
        assert 0 < sum(one.raw.values()) < 1
        assert sum(one.normalised.values()) == pytest.approx(1)
        assert one.normalised["scene"] == pytest.approx(one.raw["scene"] / sum(one.raw.values()))
    for use in (ActiveParts(()), ActiveParts(prompt=False)):
        assert attention_to_aspects(masp.model, visual, masp.task.question, use) is None


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("family", tiny.QWEN)
def test_weights_equal_the_eager_ones(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    visual = visual_tokens(model)
    found = prompt_attention(model, visual, QUESTIONS[0])
    eager = AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(family), attn_implementation="eager").eval()
    assembled = model.build_inputs(visual, [QUESTIONS[0]] * 3)
    with torch.no_grad():
        weights = eager.model.language_model(
            inputs_embeds=assembled.inputs_embeds,
            position_ids=assembled.position_ids,
            attention_mask=assembled.attention_mask.long(),
            output_attentions=True,
        ).attentions[-1]
    for row in range(3):
        asking = assembled.prompt_columns[row].nonzero().flatten()[-7:]  # of two places the second
        mean = weights[row, :, asking].mean((0, 1))
        expected = torch.stack([mean[assembled.aspect_of[row] == aspect].sum() for aspect in range(6)])
        assert (found[row] - expected).abs().max() <= 1e-5
    assert (found > 0).all()
    assert (found.sum(1) < 1).all()


def test_only_aspects_that_take_part_are_counted() -> None:
    model = full_model()
    found = prompt_attention(model, visual_tokens(model), QUESTIONS[0], ActiveParts(("scene", "brightness")))
    assert found.shape == (3, 2)


def test_the_pass_that_predicts_is_untouched() -> None:
    model = full_model()
    visual = visual_tokens(model)
    before = score(model, visual, QUESTIONS[0], ["joy", "fear"])
    prompt_attention(model, visual, QUESTIONS[0])
    assert torch.equal(score(model, visual, QUESTIONS[0], ["joy", "fear"]), before)


@pytest.mark.parametrize("use", [ActiveParts(()), ActiveParts(prompt=False)])
def test_both_must_take_part(use: ActiveParts) -> None:
    model = full_model()
    with pytest.raises(UsageError, match="takes no part"):
        prompt_attention(model, visual_tokens(model), QUESTIONS[0], use)
