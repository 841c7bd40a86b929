"""NF4 weights through bitsandbytes, on the CPU: held against a model whose weights are rounded here, by hand."""

import functools
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from fixtures import tiny
from fixtures.models import OFF, QUESTIONS, distance, full_model, last_logits, own_inputs, own_logits, tokens_of
from fixtures.nf4 import packs, rounded
from masp.model.scoring import score

FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)
pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason='needs pip install "masp[4bit]"')
LABELS = ["sad", "sadness", "awe"]


@functools.cache
def rounded_reference(family: str) -> tuple[Any, set[str]]:
    """transformers' model with every linear layer that is packed rounded, and the names of those layers."""
    model = AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(family), dtype=torch.float32).eval()
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("lm_head") and packs(module.in_features):
            module.weight.data = rounded(module.weight.data)
            names.add(name)
    return model, names


@FAMILIES
@torch.no_grad()
def test_four_bit_logits_are_those_of_rounded_weights(family: str) -> None:
    model, (own, names) = full_model(family, "nf4"), rounded_reference(family)
    network = model.backbone._model  # pyright: ignore[reportAttributeAccessIssue]
    packed = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.uint8}
    assert {name.removesuffix(".weight") for name in packed} == names
    assert (model.backbone.dtype, model.backbone.weight_dtype) == (torch.float32, "nf4/float32")
    for row in range(3):
        found = last_logits(model, tokens_of(family, "nf4", [row]), [QUESTIONS[row]], OFF)
        expected = own(**own_inputs(family, "float32", [row])).logits[:, -1]
        assert distance(found, expected) <= 1e-4
        assert distance(found, own_logits(family, "float32", [row])) > 1e-2  # of the weights that are not rounded


@FAMILIES
def test_four_bit_scores_are_near_those_of_fp32(family: str) -> None:
    """Random weights stand up to rounding worse than trained ones; their logits still point the same way."""
    visual = tokens_of(family, "nf4", [0, 1, 2])
    scores = score(full_model(family, "nf4"), visual, QUESTIONS[0], LABELS)
    assert torch.isfinite(scores).all()
    assert torch.allclose(scores.exp().sum(1), torch.ones(3), atol=1e-4)
    found, full = (
        last_logits(full_model(family, kind), tokens_of(family, kind, [0]), QUESTIONS[:1], OFF)
        for kind in ("nf4", "float32")
    )
    assert torch.cosine_similarity(found, full) > 0.5


@FAMILIES
def test_four_bit_step_changes_only_the_prompt(family: str) -> None:
    model = full_model.__wrapped__(family, "nf4")  # one of its own
    network = model.backbone._model  # pyright: ignore[reportAttributeAccessIssue]
    visual = tokens_of(family, "nf4", [0, 1, 2])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modules = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert {tensor.dtype for tensor in modules.values()} == {torch.float32}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    first = model.prompt_loss(visual, QUESTIONS, ["awe", "fear", "sadness"]).sum()
    first.backward()
    optimizer.step()
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, modules[name])}
    assert changed == {"prompt.vectors"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@FAMILIES
def test_four_bit_gradients_are_those_of_rounded_weights(family: str) -> None:
    """A pass without gradients before does not cut them, and their size is that of a finite difference."""
    model = full_model.__wrapped__(family, "nf4")
    visual = tokens_of(family, "nf4", [0])
    model.zero_grad()

    def loss() -> Tensor:
        return model.prompt_loss(visual, QUESTIONS[:1], ["awe"]).sum()

    with torch.no_grad():
        loss()
    loss().backward()
    prompt = model.prompt.vectors
    direction, step = prompt.grad / prompt.grad.norm(), 1e-2
    slope = float(prompt.grad.norm())
    with torch.no_grad():
        prompt += step * direction
        above = loss()
        prompt -= 2 * step * direction
        below = loss()
    assert float(above - below) / (2 * step) == pytest.approx(slope, rel=0.05)


@FAMILIES
def test_four_bit_keeps_the_fingerprint(family: str) -> None:
    assert tiny.backbone(family, "nf4").fingerprint() == tiny.backbone(family).fingerprint()
