"""Prefixes that are kept: every way to use one against a plain pass over the whole sequence, in several families."""

import pytest
import torch
from test_losses import ANSWERS, relative
from test_scoring import LABELS, plain_score
from torch import Tensor
from torch.nn import functional

from fixtures import tiny
from fixtures.models import QUESTIONS, full_model, last_logits, parts, visual_tokens
from masp.core.aspects import ASPECTS
from masp.core.errors import UsageError
from masp.core.types import CachedPrefix, ModelInputs
from masp.model.explain import prompt_attention
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import LabelQuestion, first_word, generate, score, score_tasks
from masp.model.soft_prompt import SoftPrompt

TASKS = [(QUESTIONS[0], LABELS), (QUESTIONS[1], ["low", "high"]), (QUESTIONS[2], LABELS[::-1])]


def asked(model: MaspModel) -> list[LabelQuestion]:
    return [LabelQuestion(model, question, labels) for question, labels in TASKS]


def plain_loss(model: MaspModel, assembled: ModelInputs) -> Tensor:
    """Mean cross-entropy of every row by one pass without prefix, cache or selection."""
    whole = (assembled.inputs_embeds, assembled.position_ids, assembled.attention_mask)
    hidden = model.backbone.forward(*whole, extras=assembled.extras(0)).hidden
    logits = model.backbone.logits(hidden)[:, :-1]
    targets = assembled.labels[:, 1:]
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return losses.sum(1) / (targets != -100).sum(1)


def kept(model: MaspModel, order: list[int], use: ActiveParts | None = None) -> CachedPrefix:
    """The prefixes of the small images in this order, each computed with the others in another order."""
    rows = model.prefix(visual_tokens(model), QUESTIONS, use).rows()
    return CachedPrefix.stack([rows[place] for place in order])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_and_gradient_behind_a_kept_prefix_equal_the_full_backward(family: str) -> None:
    model, order = full_model(family), [2, 0, 1]
    visual, questions = visual_tokens(model).select(order), [QUESTIONS[place] for place in order]
    expected = plain_loss(model, model.build_inputs(visual, questions, ANSWERS))
    (wanted,) = torch.autograd.grad(expected.sum(), parts(model)[1].vectors)
    prefix = kept(model, order)
    found = model.prompt_loss(prefix, questions, ANSWERS)
    (gradient,) = torch.autograd.grad(found.sum(), parts(model)[1].vectors)
    assert relative(found, expected) <= 1e-5
    assert relative(gradient, wanted) <= 1e-5
    assert wanted.norm() > 1e-3
    again = model.prompt_loss(prefix, questions, ANSWERS)  # it is read, never changed
    assert torch.equal(found, again)


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "llava", "instructblip"])
def test_a_batch_behind_kept_prefixes_is_the_mean_of_its_singles(family: str) -> None:
    model, vectors = full_model(family), parts(full_model(family))[1].vectors
    rows = model.prefix(visual_tokens(model), QUESTIONS).rows()
    together = model.prompt_loss(CachedPrefix.stack(rows), QUESTIONS, ANSWERS)
    alone = torch.cat([model.prompt_loss(rows[i], [QUESTIONS[i]], [ANSWERS[i]]) for i in range(3)])
    assert relative(together.mean(), alone.mean()) <= 1e-5
    (gradient,) = torch.autograd.grad(together.mean(), vectors)
    (wanted,) = torch.autograd.grad(alone.mean(), vectors)
    assert relative(gradient, wanted) <= 1e-5


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3", "llava_next"])
def test_scores_behind_a_kept_prefix_are_the_plain_ones_whatever_the_batch(family: str) -> None:
    model = full_model(family)
    visual, order = visual_tokens(model), [1, 2, 2, 0]
    rows = model.prefix(visual, [QUESTIONS[0]] * 3).rows()
    found = score(model, CachedPrefix.stack([rows[place] for place in order]), QUESTIONS[0], LABELS)
    assert (found - score(model, visual, QUESTIONS[0], LABELS)[order]).abs().max() <= 1e-4
    alone = torch.cat([score(model, rows[place], QUESTIONS[0], LABELS) for place in order])
    assert (found - alone).abs().max() <= 1e-4
    assert found.std() > 0.1


def test_the_answer_behind_a_kept_prefix_is_the_same() -> None:
    model = full_model()
    visual = visual_tokens(model)
    prefix = model.prefix(visual, [QUESTIONS[2]] * 3)
    assert generate(model, prefix, QUESTIONS[2]) == generate(model, visual, QUESTIONS[2])


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("qwen2_vl", "paper"),
        ("qwen2_vl", "released"),
        ("llava", "paper"),
        ("idefics3", "paper"),
        ("instructblip", "paper"),
    ],
)
def test_tasks_that_share_an_image_score_as_one_by_one(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    visual = visual_tokens(model)
    for found, (question, labels) in zip(score_tasks(visual, asked(model)), TASKS, strict=True):
        assert (found - score(model, visual, question, labels)).abs().max() <= 1e-4
        if family == "qwen2_vl":
            assembled = model.build_inputs(visual, [question] * 3)
            assert (found[1] - plain_score(model, assembled, 1, list(labels))).abs().max() <= 1e-4


def columns_fed(model: MaspModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every later pass of the language model adds its number of columns, all rows together."""
    seen, run = [], type(model.backbone).forward

    def counted(self, embeddings, *rest, **more):
        seen.append(embeddings.shape[0] * embeddings.shape[1])
        return run(self, embeddings, *rest, **more)

    monkeypatch.setattr(type(model.backbone), "forward", counted)
    return seen


def test_tasks_on_one_image_pass_its_prefix_once(monkeypatch) -> None:
    model = full_model()
    visual = visual_tokens(model).select([2])
    length = model.build_inputs(visual, [QUESTIONS[0]]).prefix_end
    suffixes = [model.build_inputs(visual, [question]).attention_mask.shape[1] - length for question, _ in TASKS]
    branches = [sum(len(model.backbone.answer_ids(label, end=False)) for label in labels) for _, labels in TASKS]
    seen = columns_fed(model, monkeypatch)
    score_tasks(visual, asked(model))
    assert sum(seen) == length + sum(suffixes) + sum(branches)


def test_soft_prompts_over_the_same_aspects_share_a_prefix(monkeypatch) -> None:
    """Prompts of several lengths; one that stands before the image has a pass of its own, and so have other aspects."""
    model, released = full_model(), full_model(variant="released")
    longer = MaspModel(model.backbone, model.method, model.aspects, SoftPrompt(11, tiny.DIM, torch.randn(11, tiny.DIM)))
    fewer = ActiveParts(ASPECTS[:2])
    asking = [LabelQuestion(one, QUESTIONS[0], LABELS) for one in (model, longer, released)]
    asking += [LabelQuestion(model, QUESTIONS[1], LABELS, fewer)]
    visual = visual_tokens(model)
    expected = [score(one.model, visual, one.question, one.labels, one.use) for one in asking]
    passed = []
    prefix = MaspModel.prefix
    monkeypatch.setattr(MaspModel, "prefix", lambda self, *given: (passed.append(self), prefix(self, *given))[1])
    for found, wanted in zip(score_tasks(visual, asking), expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-4
    assert passed == [model]


def test_a_step_behind_a_kept_prefix_feeds_the_suffix_only(monkeypatch) -> None:
    model = full_model()
    visual = visual_tokens(model)
    prefix, whole = model.prefix(visual, QUESTIONS), model.build_inputs(visual, QUESTIONS, ANSWERS)
    seen = columns_fed(model, monkeypatch)
    model.prompt_loss(prefix, QUESTIONS, ANSWERS)
    assert seen == [3 * (whole.attention_mask.shape[1] - 1 - whole.prefix_end)]


def test_a_prefix_serves_other_prompts_and_prompt_lengths() -> None:
    model = full_model()
    prefix = model.prefix(visual_tokens(model), QUESTIONS)
    longer = MaspModel(model.backbone, model.method, model.aspects, SoftPrompt(11, tiny.DIM, torch.randn(11, tiny.DIM)))
    expected = plain_loss(longer, longer.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS))
    assert relative(longer.prompt_loss(prefix, QUESTIONS, ANSWERS), expected) <= 1e-5


def test_rows_are_cut_out_without_padding() -> None:
    prefix = full_model().prefix(visual_tokens(full_model()), QUESTIONS)
    assert not prefix.mask.all()
    for number, row in enumerate(prefix.rows()):
        assert row.mask.all()
        assert torch.equal(row.states[:, :, 0], prefix.states[:, :, number, :, prefix.mask[number]])


def test_a_prefix_of_other_aspects_is_refused() -> None:
    model = full_model()
    prefix = model.prefix(visual_tokens(model), QUESTIONS, ActiveParts(ASPECTS[:2]))
    with pytest.raises(UsageError, match="holds the aspects: facial_expression, object"):
        model.prompt_loss(prefix, QUESTIONS, ANSWERS)


def test_a_prefix_of_another_layout_is_refused() -> None:
    model, other = full_model(), full_model()
    sequential = other.method.model_copy(update={"positions": "sequential"})
    other = MaspModel(model.backbone, sequential, model.aspects, model.prompt)
    prefix = other.prefix(visual_tokens(model), QUESTIONS)
    with pytest.raises(UsageError, match="do not continue"):
        model.prompt_loss(prefix, QUESTIONS, ANSWERS)


def test_a_prefix_for_another_question_is_refused_where_the_image_depends_on_it() -> None:
    model = full_model("instructblip")
    prefix = model.prefix(visual_tokens(model), QUESTIONS)
    with pytest.raises(UsageError, match="do not continue"):
        score(model, prefix, QUESTIONS[0], LABELS)


def test_the_released_layout_has_nothing_to_keep() -> None:
    model = full_model(variant="released")
    with pytest.raises(UsageError, match="stands behind the first trained vector"):
        model.prefix(visual_tokens(model), QUESTIONS)


def test_no_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="there are no tasks"):
        score_tasks(visual_tokens(full_model()), [])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3", "llava_next"])
def test_the_first_word_behind_a_kept_prefix_is_the_plain_one(family: str) -> None:
    model, order = full_model(family), [2, 0, 1]
    questions = [QUESTIONS[place] for place in order]
    behind = model.build_inputs(kept(model, order), questions)
    assert behind.cached_prefix is not None
    expected = last_logits(model, visual_tokens(model).select(order), questions).log_softmax(-1)
    assert (first_word(model, behind) - expected).abs().max() <= 1e-4
    assert expected.std() > 0.1


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "gemma3", "llava_next", "instructblip"])
def test_the_attention_behind_a_kept_prefix_is_that_of_a_whole_row(family: str) -> None:
    model, order = full_model(family), [2, 0, 1]
    questions = [QUESTIONS[place] for place in order]
    whole = model.build_inputs(visual_tokens(model).select(order), questions)
    behind = model.build_inputs(kept(model, order), questions)
    start = whole.prefix_end + 2
    expected = model.backbone.last_attention(whole, start)
    assert (model.backbone.last_attention(behind, start) - expected).abs().max() <= 1e-5
    assert expected.std() > 1e-2
    with pytest.raises(UsageError, match=rf"from column {start - 3} on.*expected {start - 2} or later"):
        model.backbone.last_attention(behind, start - 3)


def test_what_the_prompt_looks_at_behind_a_kept_prefix_is_the_same() -> None:
    model = full_model()
    visual = visual_tokens(model)
    expected = prompt_attention(model, visual, QUESTIONS[0])
    assert expected.shape == (3, len(ASPECTS))
    found = prompt_attention(model, model.prefix(visual, [QUESTIONS[0]] * 3), QUESTIONS[0])
    assert (found - expected).abs().max() <= 1e-5
    assert expected.std() > 1e-3
