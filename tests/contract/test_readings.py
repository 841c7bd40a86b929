"""What is read from every family: label scores, answers, losses over a reused prefix, attention.

Without aspects and prompt against transformers' own forward pass and generation; with them against plain passes over
whole sequences, without a cache, without branches, one row at a time.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from fixtures import tiny
from fixtures.models import OFF, QUESTIONS, distance, full_model, own_inputs, own_log_p, parts, reference, tokens_of
from masp.core.types import IGNORED, ModelInputs, VisualTokens
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import generate, last_real, score

FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
LABELS = ["sad", "sadness", "awe", "a long label"]
VARIANTS = pytest.mark.parametrize("variant", ["paper", "released"])


def whole_log_p(model: MaspModel, assembled: ModelInputs, words: Sequence[int] = ()) -> Tensor:
    """Log-probabilities behind each column of one row and of words behind it, in one plain pass."""
    last = assembled.position_ids[:, :1, int(last_real(assembled)[0]), None]
    hidden = model.backbone.forward(
        torch.cat([assembled.inputs_embeds, model.backbone.embed(torch.tensor([words], dtype=torch.long))], dim=1),
        torch.cat([assembled.position_ids, last + torch.arange(1, len(words) + 1)], dim=2),
        torch.cat([assembled.attention_mask, torch.ones(1, len(words)).bool()], dim=1),
        extras=assembled.extras(0).followed_by(len(words)),
    ).hidden
    return model.backbone.logits(hidden)[0].float().log_softmax(-1)


def supervised_log_p(model: MaspModel, assembled: ModelInputs) -> Tensor:
    """Log-probabilities of the supervised columns of one row."""
    columns = (assembled.labels[0] != IGNORED).nonzero()[:, 0]
    return whole_log_p(model, assembled)[columns - 1, assembled.labels[0, columns]]


@FAMILIES
def test_scores_are_the_backbones_own(family: str) -> None:
    model = full_model(family)
    visual = tokens_of(family, "float32", [0, 1, 2])
    for row in range(3):
        found = score(model, visual, QUESTIONS[row], LABELS, OFF)[row]
        tails = [model.backbone.answer_ids(label, end=True) for label in LABELS]
        expected = torch.stack([own_log_p(family, row, tail) for tail in tails]).log_softmax(0)
        assert torch.allclose(found, expected, atol=2e-4)


@FAMILIES
@VARIANTS
@torch.no_grad()
def test_scores_with_all_parts_are_those_of_plain_passes(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    ends = replace(model.sequence_builder.layout, supervised="answer_end")
    plain = MaspModel(model.backbone, model.method, model.aspects, model.prompt)
    plain.sequence_builder.layout = ends
    visual = tokens_of(family, "float32", [0, 1, 2])
    found = score(model, visual, QUESTIONS[0], LABELS)
    for row in range(3):
        one = tokens_of(family, "float32", [row])
        rows = [plain.build_inputs(one, QUESTIONS[:1], [label]) for label in LABELS]
        expected = torch.stack([supervised_log_p(plain, assembled).sum() for assembled in rows]).log_softmax(0)
        assert torch.allclose(found[row], expected, atol=2e-4)


@FAMILIES
def test_answers_are_the_backbones_own(family: str) -> None:
    model = full_model(family)
    visual = tokens_of(family, "float32", [0, 1, 2])
    network = reference(family, "float32")
    for row in range(3):
        found = generate(model, visual, QUESTIONS[row], OFF, max_new_tokens=5)[row]
        inputs = own_inputs(family, "float32", [row])
        inputs.pop("position_ids", None)
        end = model.backbone.end_of_turn
        rules = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        ids = network.generate(**inputs, **rules)[0].tolist()
        ids = ids[inputs["input_ids"].shape[1] :] if len(ids) > 5 else ids
        assert found == model.backbone.decode(ids[: ids.index(end)] if end in ids else ids)


@FAMILIES
@torch.no_grad()
def test_answers_with_all_parts_are_those_of_plain_passes(family: str) -> None:
    model = full_model(family)
    visual = tokens_of(family, "float32", [0, 1, 2])
    found = generate(model, visual, QUESTIONS[1], max_new_tokens=4)
    for row in range(3):
        assembled = model.build_inputs(tokens_of(family, "float32", [row]), QUESTIONS[1:2])
        words: list[int] = []
        while len(words) < 4 and (not words or words[-1] != model.backbone.end_of_turn):
            words.append(int(whole_log_p(model, assembled, words)[-1].argmax()))
        ids = [word for word in words if word != model.backbone.end_of_turn]
        assert found[row] == model.backbone.decode(ids)


@FAMILIES
@VARIANTS
def test_a_reused_prefix_changes_neither_loss_nor_gradient(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    supervised = replace(model.sequence_builder.layout, supervised="answer_end")
    plain = MaspModel(model.backbone, model.method, *parts(model))
    plain.sequence_builder.layout = supervised
    vectors = parts(model)[1].vectors
    visual, answers = tokens_of(family, "float32", [0, 1, 2]), ["awe", "sadness", "a long label"]
    found = plain.prompt_loss(visual, QUESTIONS, answers)
    (gradient,) = torch.autograd.grad(found.sum(), vectors)
    expected = []
    for row in range(3):
        one = plain.build_inputs(tokens_of(family, "float32", [row]), QUESTIONS[row : row + 1], answers[row : row + 1])
        expected.append(-supervised_log_p(plain, one).mean())
    (plain_gradient,) = torch.autograd.grad(torch.stack(expected).sum(), vectors)
    assert torch.allclose(found, torch.stack(expected), atol=2e-5)
    assert distance(gradient, plain_gradient) <= 1e-4


@FAMILIES
@torch.no_grad()
def test_attention_is_the_final_layers_own(family: str) -> None:
    model = full_model(family)
    network = AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(family), attn_implementation="eager").eval()
    for row in range(3):
        assembled = model.build_inputs(tokens_of(family, "float32", [row]), QUESTIONS[row : row + 1], use=OFF)
        found = model.backbone.last_attention(assembled, 3)
        output = network(**own_inputs(family, "float32", [row]), output_attentions=True)
        answer = output.language_model_outputs if family == "instructblip" else output
        assert torch.allclose(found, answer.attentions[-1][:, :, 3:], atol=1e-5)


@FAMILIES
@torch.no_grad()
def test_aspect_tokens_are_read_causally(family: str) -> None:
    """Keys of the aspects' columns do not depend on the visual tokens behind them, whatever these see."""
    model = full_model(family)
    visual = tokens_of(family, "float32", [0])
    assembled = model.build_inputs(visual, QUESTIONS[:1], use=ActiveParts(prompt=False))
    vectors = assembled.inputs_embeds.clone()
    vectors[assembled.visual_columns] += 1
    deep = None if assembled.deep is None else assembled.deep + 1.0 * assembled.visual_columns[..., None, None]
    changed = replace(assembled, inputs_embeds=vectors, deep=deep)
    before, after = (keys_of(model, one) for one in (assembled, changed))
    columns = assembled.aspect_columns[0]
    assert torch.equal(before[:, :, columns], after[:, :, columns])
    assert not torch.equal(before[:, :, ~columns], after[:, :, ~columns])


def keys_of(model: MaspModel, assembled: ModelInputs) -> Tensor:
    """The final layer's keys of one row's columns."""
    whole = (assembled.inputs_embeds, assembled.position_ids, assembled.attention_mask)
    return model.backbone.forward(*whole, extras=assembled.extras(0)).cache.layers[-1][0]


@torch.no_grad()
def test_only_gemma_sees_an_image_as_a_whole() -> None:
    for family in tiny.FAMILIES:
        model = full_model(family)
        assembled = model.build_inputs(tokens_of(family, "float32", [0]), QUESTIONS[:1], use=OFF)
        first, last = assembled.visual_columns[0].nonzero()[[0, -1], 0].tolist()
        vectors = assembled.inputs_embeds.clone()
        vectors[:, last] += 1
        before, after = (
            keys_of(model, replace(assembled, inputs_embeds=one)) for one in (assembled.inputs_embeds, vectors)
        )
        assert torch.equal(before[:, :, first], after[:, :, first]) == (family != "gemma3")


def test_instructblip_asks_each_aspect_its_own_question() -> None:
    model = full_model("instructblip")
    backbone, modules = model.backbone, parts(model)[0]
    seen = tokens_of("instructblip", "float32", [0, 1])
    assert model.questions is not None
    found = model.aspect_tokens(seen, ["scene", "object"])
    for place, name in enumerate(found.aspects):
        asked = backbone.condition_on(seen, [model.questions.aspect(name)[0]] * 2)
        assert torch.equal(found.tokens[:, place], modules(asked, [name]).tokens[:, 0])
    whole = model.build_inputs(seen, QUESTIONS[:2])
    expected = backbone.condition_on(seen, QUESTIONS[:2])
    assert torch.equal(whole.inputs_embeds[whole.visual_columns], expected.tokens.flatten(0, 1))
    other = backbone.condition_on(seen, QUESTIONS[1:3])
    assert not torch.allclose(expected.tokens, other.tokens, atol=1e-2)


def test_instructblip_trains_an_aspect_on_its_examples_question() -> None:
    model = full_model("instructblip")
    seen, number = tokens_of("instructblip", "float32", [0]), torch.tensor([2])
    found = model.aspect_loss(seen, number, ["Where was it?"], ["beach"])
    asked = model.backbone.condition_on(seen, ["Where was it?"])
    tokens, _ = parts(model)[0].per_example(asked, number)
    assembled = model.sequence_builder(["Where was it?"], ["beach"], aspects=tokens[:, None])
    assert torch.allclose(found, -supervised_log_p(model, assembled).mean(), atol=1e-5)


def test_what_instructblip_keeps_is_shared_by_all_questions() -> None:
    seen = tokens_of("instructblip", "float32", [0, 1])
    assert isinstance(seen, VisualTokens)
    assert seen.tokens.shape == (2, 10, 22)  # class token and 9 patches of the vision tower, in its own width
    assert tiny.backbone("qwen2_vl").condition_on(seen, ["a", "b"]) is seen
