"""Aspect attention: a number computed by hand, the plain formula, torch's own attention, masks and gradients."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from masp.core.errors import UsageError
from masp.core.types import VisualTokens
from masp.model.aspect_attention import AspectModules, SingleAttention

BATCH, VISUAL, QUERIES, DIM = 3, 5, 2, 11
NAMES = ("object", "scene", "brightness")


def made_up(scale: float = 1.0, seed: int = 0) -> VisualTokens:
    tokens = torch.randn(BATCH, VISUAL, DIM, generator=torch.Generator().manual_seed(seed)) * scale
    return VisualTokens(tokens, torch.arange(VISUAL) < torch.tensor([5, 3, 4])[:, None])


def modules(attention: str) -> AspectModules:
    generator = torch.Generator().manual_seed(1)
    made = AspectModules(DIM, NAMES, QUERIES, attention, generator)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def test_a_number_by_hand() -> None:
    """q = (1, 0), W_K = ((0, 1), (1, 0)), W_V = 2·I: scores are the second coordinates over √2."""
    made = AspectModules(2, ["scene"], 1)
    module = made.module("scene")
    assert isinstance(module, SingleAttention)
    with torch.no_grad():
        module.queries.copy_(torch.tensor([[1.0, 0.0]]))
        module.key.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        module.value.copy_(2 * torch.eye(2))
    visual = VisualTokens(torch.tensor([[[3.0, 0.0], [5.0, math.sqrt(2) * math.log(3)]]]), torch.ones(1, 2).bool())
    found = made(visual)
    assert torch.allclose(found.weights.flatten(), torch.tensor([0.25, 0.75]))
    expected = torch.tensor([9.0, 2 * 0.75 * math.sqrt(2) * math.log(3)])
    assert torch.allclose(found.tokens.flatten(), expected)


def test_single_equals_the_unfolded_formula() -> None:
    made, visual = modules("single"), made_up(3.0)
    found = made(visual)
    assert found.tokens.shape == (BATCH, len(NAMES), QUERIES, DIM)
    assert found.weights.shape == (BATCH, len(NAMES), QUERIES, VISUAL)
    for index, name in enumerate(NAMES):
        module = made.module(name)
        assert isinstance(module, SingleAttention)
        for row in range(BATCH):
            tokens = visual.tokens[row, visual.mask[row]]
            keys, values = tokens @ module.key.T, tokens @ module.value.T
            weights = (module.queries @ keys.T / math.sqrt(DIM)).softmax(-1)
            assert torch.allclose(found.weights[row, index, :, : len(tokens)], weights, atol=1e-6)
            assert torch.allclose(found.tokens[row, index], weights @ values, atol=1e-5)


def test_multihead_equals_torch() -> None:
    made, visual = modules("multihead"), made_up()
    found = made(visual)
    for index, name in enumerate(NAMES):
        state = dict(made.module(name).state_dict())
        queries = state.pop("queries")
        torchs = nn.MultiheadAttention(DIM, 1, batch_first=True)
        torchs.load_state_dict(state)
        expected, weights = torchs(
            queries.expand(BATCH, -1, -1), visual.tokens, visual.tokens, key_padding_mask=~visual.mask
        )
        assert torch.allclose(found.tokens[:, index], expected, atol=1e-5)
        assert torch.allclose(found.weights[:, index], weights, atol=1e-6)


@pytest.mark.parametrize("attention", ["single", "multihead"])
def test_padding_gets_no_weight_and_has_no_effect(attention: str) -> None:
    made, visual = modules(attention), made_up()
    changed = VisualTokens(visual.tokens.masked_fill(~visual.mask[..., None], 1e4), visual.mask)
    found, again = made(visual), made(changed)
    assert torch.equal(found.tokens, again.tokens)
    assert not found.weights[1, :, :, 3:].any()
    assert torch.allclose(found.weights.sum(-1), torch.ones(BATCH, len(NAMES), QUERIES))


@pytest.mark.parametrize("attention", ["single", "multihead"])
def test_per_example_picks_from_the_whole(attention: str) -> None:
    made, visual = modules(attention), made_up()
    index = torch.tensor([2, 0, 2])
    tokens, weights = made.per_example(visual, index)
    whole = made(visual)
    rows = torch.arange(BATCH)
    assert torch.allclose(tokens, whole.tokens[rows, index], atol=1e-6)
    assert torch.allclose(weights, whole.weights[rows, index], atol=1e-6)


@pytest.mark.parametrize("attention", ["single", "multihead"])
def test_gradients_reach_only_the_aspects_present_each_from_its_own_examples(attention: str) -> None:
    made, visual = modules(attention), made_up()
    made.per_example(visual, torch.tensor([2, 0, 2]))[0].square().sum().backward()
    assert all(parameter.grad is None for parameter in made.module("scene").parameters())
    alone = modules(attention)
    alone(visual.select([1]), ["object"]).tokens.square().sum().backward()
    for found, expected in zip(made.module("object").parameters(), alone.module("object").parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        assert torch.allclose(found.grad, expected.grad, atol=1e-4)


def test_order_follows_the_request() -> None:
    made, visual = modules("single"), made_up()
    found = made(visual, ["brightness", "object"])
    assert found.aspects == ("brightness", "object")
    whole = made(visual).tokens
    assert torch.allclose(found.tokens, whole[:, [2, 0]], atol=1e-6)


def test_low_precision_tokens_are_read_in_fp32() -> None:
    made, visual = modules("single"), made_up().to(dtype=torch.bfloat16)
    found = made(visual)
    assert found.tokens.dtype == found.weights.dtype == torch.float32
    assert torch.equal(found.tokens, made(visual.to(dtype=torch.float32)).tokens)


@pytest.mark.parametrize("attention", ["single", "multihead"])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_first_scores_spread_like_the_visual_tokens(scale: float, attention: Any) -> None:
    """Much less, and hardly a gradient reaches queries and keys; much more, and the softmax is saturated."""
    made = AspectModules(DIM * 20, NAMES, QUERIES, attention, torch.Generator().manual_seed(2))
    tokens = torch.randn(1, 7, DIM * 20, generator=torch.Generator().manual_seed(3)) * scale
    weights = made(VisualTokens(tokens, torch.ones(1, 7).bool())).weights.detach()
    assert weights.max() < 0.9
    assert float(weights.log().std(-1).mean()) == pytest.approx(scale, rel=0.5)


def test_the_start_depends_on_the_seed_alone() -> None:
    first, again, other = (AspectModules(DIM, NAMES, 2, generator=torch.Generator().manual_seed(s)) for s in (4, 4, 5))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.module("scene").queries, other.module("scene").queries)


@pytest.mark.parametrize("kind", ["single", "multihead"])
def test_the_queries_start_as_wide_as_is_asked_for(kind: Literal["single", "multihead"]) -> None:
    wide, usual = (
        AspectModules(400, NAMES, 30, kind, torch.Generator().manual_seed(2), std).module("scene") for std in (3.0, 1.0)
    )
    assert float(usual.queries.detach().std()) == pytest.approx(1.0, rel=0.05)
    assert torch.allclose(wide.queries, usual.queries * 3)


def test_an_unknown_aspect_is_named() -> None:
    with pytest.raises(UsageError, match="Did you mean 'scene'"):
        modules("single").module("scenes")
