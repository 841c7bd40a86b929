"""The two losses against plain oracles: one pass over the whole sequence, all logits, autograd through everything."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fixtures import tiny
from fixtures.models import QUESTIONS, full_model, kept_bytes, parts, visual_tokens
from masp.backbones.loading import load_backbone
from masp.core.config import MethodConfig
from masp.core.errors import UsageError
from masp.core.types import ModelInputs
from masp.model.aspect_attention import AspectModules, SingleAttention
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import label_loss, score
from masp.model.soft_prompt import SoftPrompt

ANSWERS = ["joy", "very low", "they sing and dance"]
VARIANTS = pytest.mark.parametrize("variant", ["paper", "released"])


def plain_loss(model: MaspModel, assembled: ModelInputs) -> Tensor:
    """Mean cross-entropy of every row by one pass without prefix, cache or selection."""
    hidden = model.backbone.forward(assembled.inputs_embeds, assembled.position_ids, assembled.attention_mask).hidden
    logits = model.backbone.logits(hidden)[:, :-1]
    targets = assembled.labels[:, 1:]
    losses = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return losses.sum(1) / (targets != -100).sum(1)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@VARIANTS
@pytest.mark.parametrize("family", tiny.QWEN)
def test_prompt_gradient_equals_the_full_backward(family: str, variant: str) -> None:
    model = full_model.__wrapped__(family, variant=variant)
    visual = visual_tokens(model)
    expected = plain_loss(model, model.build_inputs(visual, QUESTIONS, ANSWERS))
    (wanted,) = torch.autograd.grad(expected.sum(), parts(model)[1].vectors)
    found = model.prompt_loss(visual, QUESTIONS, ANSWERS)
    (gradient,) = torch.autograd.grad(found.sum(), parts(model)[1].vectors)
    assert relative(found, expected) <= 1e-5
    assert relative(gradient, wanted) <= 1e-5
    assert wanted.norm() > 1e-3


@VARIANTS
def test_loss_over_the_labels_is_what_they_are_ranked_by(variant: str) -> None:
    """Its value from `score`, its gradient from one plain pass for each label over everything."""
    one = full_model.__wrapped__(variant=variant)
    method = one.method.model_copy(update={"supervised": "answer_end"})  # `released` learns without the end
    model = MaspModel(one.backbone, method, one.aspects, one.prompt)
    visual, labels = visual_tokens(model), ("sad", *ANSWERS)
    rows = [model.build_inputs(visual, QUESTIONS, [label] * 3) for label in labels]
    sums = [-plain_loss(model, row) * (row.labels != -100).sum(1) for row in rows]
    targets = torch.tensor([1, 2, 3])
    expected = functional.cross_entropy(torch.stack(sums, 1), targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), parts(model)[1].vectors)
    found = label_loss(model, visual, QUESTIONS, ANSWERS, labels)
    (gradient,) = torch.autograd.grad(found.sum(), parts(model)[1].vectors)
    assert relative(found, expected) <= 1e-5
    assert relative(gradient, wanted) <= 1e-5
    assert wanted.norm() > 1e-3
    model.again = nullcontext
    again = torch.autograd.grad(label_loss(model, visual, QUESTIONS, ANSWERS, labels).sum(), parts(model)[1].vectors)
    assert torch.equal(gradient, again[0])
    ranked = torch.cat([score(model, visual.select([i]), QUESTIONS[i], labels) for i in range(3)])
    assert relative(found, -ranked[range(3), targets]) <= 1e-5


def test_loss_over_the_labels_continues_a_cached_prefix() -> None:
    model = full_model.__wrapped__()
    visual, labels = visual_tokens(model), ("sad", *ANSWERS)
    expected = label_loss(model, visual, QUESTIONS, ANSWERS, labels)
    found = label_loss(model, model.prefix(visual, QUESTIONS), QUESTIONS, ANSWERS, labels)
    assert relative(found, expected) <= 1e-5
    (gradient,) = torch.autograd.grad(found.sum(), parts(model)[1].vectors)
    (wanted,) = torch.autograd.grad(expected.sum(), parts(model)[1].vectors)
    assert relative(gradient, wanted) <= 1e-5


@VARIANTS
def test_aspect_gradients_equal_the_full_backward(variant: str) -> None:
    model = full_model.__wrapped__(variant=variant)
    visual, index = visual_tokens(model), torch.tensor([4, 1, 4])
    parameters = [p for name in ("object", "brightness") for p in parts(model)[0].module(name).parameters()]
    tokens, _ = parts(model)[0].per_example(visual, index)
    expected = plain_loss(model, model.sequence_builder(QUESTIONS, ANSWERS, aspects=tokens[:, None]))
    wanted = torch.autograd.grad(expected.sum(), parameters)
    found = model.aspect_loss(visual, index, QUESTIONS, ANSWERS)
    gradients = torch.autograd.grad(found.sum(), parameters)
    assert relative(found, expected) <= 1e-5
    for gradient, want in zip(gradients, wanted, strict=True):
        assert relative(gradient, want) <= 2e-5


@VARIANTS
def test_a_batch_is_its_singles(variant: str) -> None:
    model = full_model.__wrapped__(variant=variant)
    visual = visual_tokens(model)
    together = model.prompt_loss(visual, QUESTIONS, ANSWERS)
    alone = [model.prompt_loss(visual.select([i]), [QUESTIONS[i]], [ANSWERS[i]]) for i in range(3)]
    assert relative(together, torch.cat(alone)) <= 1e-5
    (gradient,) = torch.autograd.grad(together.mean(), parts(model)[1].vectors)
    (wanted,) = torch.autograd.grad(torch.cat(alone).mean(), parts(model)[1].vectors)
    assert relative(gradient, wanted) <= 1e-5


def test_aspect_examples_of_a_batch_are_their_singles() -> None:
    model = full_model()
    visual, index = visual_tokens(model), torch.tensor([3, 0, 5])
    together = model.aspect_loss(visual, index, QUESTIONS, ANSWERS)
    alone = [model.aspect_loss(visual.select([i]), index[[i]], [QUESTIONS[i]], [ANSWERS[i]]) for i in range(3)]
    assert relative(together, torch.cat(alone)) <= 1e-5


IMAGES, ASPECT_OF = [1, 1, 0, 1, 2], [3, 0, 5, 4, 3]  # pairs: several aspects of one image, one image with one


def pair_texts() -> tuple[list[str], list[str]]:
    return [QUESTIONS[place % 3] for place in range(5)], [ANSWERS[(place + 1) % 3] for place in range(5)]


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3", "qwen3_vl", "instructblip"])
def test_image_major_pairs_equal_the_full_backward_of_each_alone(family: str) -> None:
    """The oracle: one pair at a time, its own copy of the image, one plain pass over the whole row."""
    model, (questions, answers) = full_model.__wrapped__(family), pair_texts()
    visual, modules = visual_tokens(model), parts(model)[0]
    expected = []
    for image, aspect, question, answer in zip(IMAGES, ASPECT_OF, questions, answers, strict=True):
        own = model.backbone.condition_on(visual.select([image]), [question])
        tokens = modules(own, [modules.aspects[aspect]]).tokens
        expected.append(plain_loss(model, model.sequence_builder([question], [answer], aspects=tokens)))
    found = model.aspect_loss(visual, torch.tensor(ASPECT_OF), questions, answers, IMAGES)
    assert relative(found, torch.cat(expected)) <= 1e-5
    found.mean().backward()
    gradients = {name: parameter.grad for name, parameter in modules.named_parameters()}
    modules.zero_grad()
    torch.cat(expected).mean().backward()
    touched = {name: parameter.grad for name, parameter in modules.named_parameters() if parameter.grad is not None}
    assert touched.keys() == {name for name, gradient in gradients.items() if gradient is not None}
    assert {name.split(".")[1] for name in touched} == {modules.aspects[place] for place in ASPECT_OF}
    for aspect in {name.split(".")[1] for name in touched}:
        own = [name for name in touched if name.split(".")[1] == aspect]
        found, wanted = (torch.cat([part[name].flatten() for name in own]) for part in (gradients, touched))
        assert relative(found, wanted) <= 1e-5, aspect
        assert wanted.norm() > 0


def test_stage_1_sees_nothing_of_the_image_but_its_aspect() -> None:
    """With the aspect's tokens held fixed, another image gives the same loss."""
    model = full_model.__wrapped__()
    module = parts(model)[0].module("scene")
    with torch.no_grad():
        assert isinstance(module, SingleAttention)
        module.value.zero_()
    visual = visual_tokens(model)
    losses = [
        model.aspect_loss(visual.select([row]), torch.tensor([2]), QUESTIONS[:1], ANSWERS[:1]) for row in (0, 1, 2)
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("use", [ActiveParts(prompt=False), ActiveParts((), prompt=False)])
def test_without_a_prompt_the_loss_is_the_plain_one(use: ActiveParts) -> None:
    model = full_model()
    visual = visual_tokens(model)
    found = model.prompt_loss(visual, QUESTIONS, ANSWERS, use)
    assert relative(found, plain_loss(model, model.build_inputs(visual, QUESTIONS, ANSWERS, use))) <= 1e-5
    assert not found.requires_grad


def test_a_prompt_of_length_0_is_no_prompt() -> None:
    model = full_model()
    empty = MaspModel(model.backbone, model.method, model.aspects, SoftPrompt(0, tiny.DIM))
    visual = visual_tokens(model)
    found = empty.prompt_loss(visual, QUESTIONS, ANSWERS)
    assert torch.equal(found, model.prompt_loss(visual, QUESTIONS, ANSWERS, ActiveParts(prompt=False)))


@pytest.mark.parametrize("start", [0, 1, 11])
def test_sparing_the_final_layer_changes_nothing_that_is_read(start: int) -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
    parts_of = (assembled.inputs_embeds, assembled.position_ids, assembled.attention_mask)
    whole = model.backbone.forward(*parts_of)
    before = (parts_of[0][:, :start], parts_of[1][:, :, :start], parts_of[2][:, :start])
    cache = model.backbone.forward(*before).cache if start else None
    length = parts_of[0].shape[1]
    read = torch.tensor([[length - 1 - start, 3], [30, 20], [29, 29]])
    cut = (parts_of[0][:, start:], parts_of[1][:, :, start:], parts_of[2])
    found = model.backbone.forward(*cut, cache, output_positions=read)
    expected = whole.hidden[torch.arange(3)[:, None], read + start]
    assert relative(found.hidden[1:], expected[1:]) <= 1e-5
    for (key, value), (whole_key, whole_value) in zip(found.cache.layers, whole.cache.layers, strict=True):
        real = assembled.attention_mask[:, None, :, None]
        assert relative(key * real, whole_key * real) <= 1e-5
        assert relative(value * real, whole_value * real) <= 1e-5
    nothing = model.backbone.forward(*cut, cache, output_positions=read[:, :0])
    assert nothing.hidden.shape == (3, 0, tiny.DIM)


def test_stored_keys_and_values_stay_as_they_are() -> None:
    model = full_model()
    assembled = model.build_inputs(visual_tokens(model), QUESTIONS, ANSWERS)
    end = assembled.prefix_end
    cut = (
        assembled.inputs_embeds[:, :end].detach(),
        assembled.position_ids[:, :, :end],
        assembled.attention_mask[:, :end],
    )
    cache = model.backbone.forward(*cut).cache
    copies = [(k.clone(), v.clone()) for k, v in cache.layers]
    rest = (assembled.inputs_embeds[:, end:], assembled.position_ids[:, :, end:], assembled.attention_mask)
    first, second = (model.backbone.forward(*rest, cache).hidden for _ in range(2))
    assert torch.equal(first, second)
    for (key, value), (old_key, old_value) in zip(cache.layers, copies, strict=True):
        assert torch.equal(key, old_key)
        assert torch.equal(value, old_value)
        assert not key.requires_grad


def test_modules_of_another_width_are_refused() -> None:
    model = full_model()
    with pytest.raises(UsageError, match="width 31"):
        MaspModel(model.backbone, model.method, prompt=SoftPrompt(3, tiny.DIM + 1))
    with pytest.raises(UsageError, match="width 29"):
        MaspModel(model.backbone, model.method, aspects=AspectModules(tiny.DIM - 1, ["scene"], 1))


def test_stage_1_needs_aspects() -> None:
    model = full_model()
    bare = MaspModel(model.backbone, model.method)
    with pytest.raises(UsageError, match="no aspects"):
        bare.aspect_loss(visual_tokens(model), torch.tensor([0, 0, 0]), QUESTIONS, ANSWERS)


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_that_are_computed_again_give_the_same_bits(family: str) -> None:
    """Sequence of stage 2, behind a prefix that is computed without a graph."""
    model = full_model.__wrapped__(family)
    visual, found = visual_tokens(model), []
    for again in (None, nullcontext):
        model.again = again
        losses = model.prompt_loss(visual, QUESTIONS, ANSWERS)
        found.append((losses.detach(), *torch.autograd.grad(losses.sum(), parts(model)[1].vectors)))
    assert all(map(torch.equal, *found))
    assert found[0][1].norm() > 1e-3


@VARIANTS
def test_aspects_are_learned_to_the_same_bits_with_layers_computed_again(variant: str) -> None:
    model = full_model.__wrapped__(variant=variant)
    visual, index, found = visual_tokens(model), torch.tensor([4, 1, 4]), []
    parameters = [p for name in ("object", "brightness") for p in parts(model)[0].module(name).parameters()]
    for again in (None, nullcontext):
        model.again = again
        found.append(torch.autograd.grad(model.aspect_loss(visual, index, QUESTIONS, ANSWERS).sum(), parameters))
    assert all(map(torch.equal, *found))


def test_a_kept_prefix_is_gone_on_from_with_layers_computed_again() -> None:
    model = full_model.__wrapped__()
    visual = visual_tokens(model)
    kept = model.prefix(visual, QUESTIONS)
    (wanted,) = torch.autograd.grad(model.prompt_loss(kept, QUESTIONS, ANSWERS).sum(), parts(model)[1].vectors)
    model.again = nullcontext
    (found,) = torch.autograd.grad(model.prompt_loss(kept, QUESTIONS, ANSWERS).sum(), parts(model)[1].vectors)
    assert torch.equal(found, wanted)


def test_layers_that_are_computed_again_keep_their_input_alone() -> None:
    """In the layout of the authors' code, where nearly the whole row has a graph; on a backbone of some layers."""
    backbone = load_backbone("embedded", dtype="float32", device="cpu")
    pixels = backbone.preprocess([tiny.picture(84, 112, seed=number) for number in range(3)])
    visual, sizes = backbone.visual_tokens(pixels), []
    prompt = SoftPrompt(5, backbone.dim)
    for again in (None, nullcontext):
        model = MaspModel(backbone, MethodConfig(variant="released"), None, prompt, None, again)
        sizes.append(kept_bytes(lambda model=model: model.prompt_loss(visual, QUESTIONS, ANSWERS), backbone))
    assert sizes[1] < 0.4 * sizes[0]
