"""Routing: gates that start at one, learn from stage 2 alone, and travel with the adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fixtures import tiny
from fixtures import training as small
from masp.adapters import combine, load_adapter, read_prompt
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig
from masp.core.errors import AdapterError, MaspError, UsageError
from masp.core.types import AspectTokens, VisualTokens
from masp.model.aspect_attention import AspectModules, AspectRouting
from masp.model.cost_estimate import numbers
from masp.model.masp_model import ActiveParts, MaspModel, init_soft_prompt
from masp.model.scoring import label_loss, score
from masp.predictor import Masp
from masp.training import train_aspects, train_prompt

LABELS = ("joy", "fear", "awe")
METHOD = MethodConfig(prompt_length=7, queries=2, routing=True)


def model(routing: bool = True) -> MaspModel:
    backbone, generator = tiny.backbone(), torch.Generator().manual_seed(0)
    aspects = AspectModules(backbone.dim, ASPECTS, 2, "single", generator)
    with torch.no_grad():
        for name in ASPECTS:
            aspects.module(name).value.mul_(9)  # tokens that matter
    prompt = init_soft_prompt(small.config().prompt.init, 7, backbone, generator)
    method = METHOD if routing else METHOD.model_copy(update={"routing": False})
    gates = AspectRouting(ASPECTS, torch.Generator().manual_seed(1)) if routing else None
    return MaspModel(backbone, method, aspects.requires_grad_(False), prompt, routing=gates)


def pictures(backbone) -> VisualTokens:
    return backbone.visual_tokens(backbone.preprocess([tiny.picture(84, 112, seed=seed) for seed in range(2)]))


def opened(one: MaspModel) -> MaspModel:
    """The same model with gates that are not 1."""
    with torch.no_grad():
        one.routing.gate_weight.copy_(torch.randn(one.routing.gate_weight.shape, generator=torch.manual_seed(3)))
    return one


def test_the_gates_are_few_and_start_at_one():
    routing = AspectRouting(ASPECTS)
    assert numbers(routing) == 32 * 27 + 32 + 6 * 32 + 6 <= 2000
    one = model()
    visual = pictures(one.backbone)
    read = one.aspect_tokens(visual)
    assert one.routing is not None
    assert torch.equal(one.routing.gates(read, visual), torch.ones(2, 6))
    assert torch.equal(one.routing(read, visual), read.tokens)
    torch.testing.assert_close(score(one, visual, "which?", LABELS), score(model(False), visual, "which?", LABELS))


def test_a_closed_gate_leaves_the_mean_visual_token_and_gates_depend_on_the_other_aspects():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    visual = VisualTokens(torch.randn(2, 5, 11, generator=generator), mask)
    weights = torch.rand(2, 2, 3, 5, generator=generator) * mask[:, None, None]
    tokens = torch.randn(2, 2, 3, 11, generator=generator)
    read = AspectTokens(tokens, weights / weights.sum(-1, keepdim=True), ("scene", "object"))
    routing = AspectRouting(("object", "scene", "brightness"))
    with torch.no_grad():
        routing.gate_bias.copy_(torch.tensor([0.0, -200.0, 0.0]))
    found = routing(read, visual)
    torch.testing.assert_close(found[:, 1], tokens[:, 1])
    torch.testing.assert_close(found[1, 0], visual.tokens[1, :3].mean(0).expand(3, 11))
    with torch.no_grad():
        routing.gate_bias.zero_()
        routing.gate_weight.fill_(1.0)
    other = tokens.clone()
    other[:, 1] = -other[:, 1].flip(-1)
    changed = routing.gates(replace(read, tokens=other), visual)[:, 0] - routing.gates(read, visual)[:, 0]
    assert changed.abs().min() > 1e-4  # what another aspect shows moves the gate of the scene
    alone = routing.gates(AspectTokens(tokens[:, :1], read.weights[:, :1], ("scene",)), visual)
    assert alone.shape == (2, 1)


@pytest.mark.parametrize("over", ["answer", "labels"])
def test_a_loss_reaches_the_gates_exactly_and_nothing_of_the_aspects(over):
    one = opened(model())
    visual, asked, answers = pictures(one.backbone), ["which?", "which one?"], ["joy", "fear"]

    def loss():
        if over == "labels":
            return label_loss(one, visual, asked, answers, ("fear", "joy", "sad")).double().sum()
        return one.prompt_loss(visual, asked, answers).double().sum()

    loss().backward()
    assert all(parameter.grad is None for parameter in one.aspects.parameters())
    assert all(parameter.grad is not None for parameter in (one.prompt.vectors, *one.routing.parameters()))
    weight, found, step = one.routing.gate_weight, [], 0.05
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            found.append(float(loss()))
            weight -= sign * step * direction
    slope = (found[0] - found[1]) / (2 * step)
    assert slope == pytest.approx(float(weight.grad.norm()), rel=0.05)


def test_nothing_of_the_image_is_kept_where_gates_stand_before_it():
    one = opened(model())
    visual = pictures(one.backbone)
    with pytest.raises(UsageError, match=r"method\.routing to false"):
        one.prefix(visual, ["which?"] * 2)
    assert not one.shares_prefix(visual, ["which?", "what?"])
    assert one.shares_prefix(visual, ["which?", "what?"], ActiveParts(()))  # no aspects, no gates
    batch = score(one, visual, "which?", LABELS)
    single = torch.cat([score(one, visual.select([row]), "which?", LABELS) for row in range(2)])
    torch.testing.assert_close(batch, single, atol=1e-4, rtol=1e-4)


def test_stage_2_learns_the_gates_and_the_adapter_carries_them(tmp_path: Path):
    settings = small.config("aspects.max_steps=2", "prompt.max_steps=3", "method.routing=true")
    dataset, backbone = small.write_dataset(tmp_path / "data"), tiny.backbone()
    train_aspects(settings, dataset, backbone, tmp_path / "aspects")
    run = train_prompt(settings, dataset, backbone, tmp_path / "aspects", tmp_path / "prompt")
    parts = load_adapter(run.adapter, backbone)
    assert parts.info.method.routing
    assert parts.routing.gate_weight.abs().max() > 1e-4
    masp = Masp.from_pretrained(run.adapter, backbone)
    visual = pictures(backbone)
    own = masp.log_probabilities(visual)
    plain = MaspModel(backbone, parts.info.method, parts.aspects, parts.prompt, parts.info.asked())
    assert (own - score(plain, visual, masp.task.question, masp.labels)).abs().max() > 1e-6
    again = Masp.from_pretrained(masp.save_pretrained(tmp_path / "copy"), backbone)
    assert torch.equal(again.log_probabilities(visual), own)
    with pytest.raises(AdapterError, match=r"gates of its own \(method\.routing\)"):
        combine(tmp_path / "both", [f"a={run.adapter}", f"b={run.adapter}"])
    with pytest.raises(AdapterError, match=r"answers with gates \(method\.routing\) too"):
        read_prompt(run.adapter)
    alone = train_prompt(settings, dataset, backbone, None, tmp_path / "alone")  # V+S has nothing to gate
    assert load_adapter(alone.adapter, backbone).routing is None
    kept = small.config("prompt.max_steps=3", "method.routing=true", "prompt.store=prefix")
    with pytest.raises(MaspError, match=r"gates of method\.routing stand before the image"):
        train_prompt(kept, dataset, backbone, tmp_path / "aspects", tmp_path / "kept")
