"""Where weights go: the room that layers take, a backbone partly on the disk, fp16, and what is refused."""

import sys
from typing import Any

import pytest
import torch

from fixtures import tiny
from fixtures.models import QUESTIONS, distance, full_model, last_logits, pictures, tokens_of
from masp.backbones import device_map as placement
from masp.backbones.device_map import spread_layers
from masp.backbones.loading import choose_placement, load_backbone
from masp.core.errors import BackboneError
from masp.model.masp_model import MaspModel
from masp.model.scoring import generate

FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ({0: 100}, [0, 0, 0, 0]),  # 20 and four of 10: all of it fits
        ({0: 59, 1: 20, "cpu": 99}, [0, 1, 1, 0]),  # 59 - 20 - the last - one to pass through: one of 10 is left
        ({0: 45, 1: 10, "cpu": 10}, [1, "cpu", "disk", 0]),
        ({"cpu": 41}, ["disk", "disk", "disk", "cpu"]),
    ],
)
def test_layers_fill_one_device_after_the_other(room: dict[Any, int], expected: list[Any]) -> None:
    assert spread_layers("it", [10, 10, 10, 10], 20, room) == expected


def test_what_must_stay_together_needs_room() -> None:
    with pytest.raises(BackboneError, match=r"it needs 3.00 GiB on the first device.*2.00 GiB, which are free on 0"):
        spread_layers("it", [2**30] * 4, 2**30, {0: 2**31, "cpu": 2**40})


def beyond(family: str, monkeypatch: pytest.MonkeyPatch) -> MaspModel:
    """The full model in a memory that is half a layer too small."""
    plain = full_model(family)
    network: Any = plain.backbone._model  # pyright: ignore[reportAttributeAccessIssue]
    layer = plain.backbone._parts.language.layers[0]  # pyright: ignore[reportAttributeAccessIssue]
    total, one = (4 * sum(value.numel() for value in module.parameters()) for module in (network, layer))
    monkeypatch.setattr(placement, "get_max_memory", lambda: {"cpu": int((total - one / 2) / placement.USABLE)})
    backbone = load_backbone(str(tiny.checkpoint(family)), dtype="float32", device="spread")
    return MaspModel(backbone, plain.method, plain.aspects, plain.prompt)


@FAMILIES
def test_layers_on_the_disk_compute_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = full_model(family), beyond(family, monkeypatch)
    network: Any = model.backbone._model  # pyright: ignore[reportAttributeAccessIssue]

    def waiting() -> set[str]:
        return {name for name, value in network.named_parameters() if value.device.type == "meta"}

    before = waiting()
    assert before
    assert all(placement.LAYER.match(name) for name in before)
    assert model.backbone.device == torch.device("cpu")
    visual = model.backbone.visual_tokens(model.backbone.preprocess(pictures()))
    found, expected = last_logits(model, visual, QUESTIONS), last_logits(plain, visual, QUESTIONS)
    assert distance(found, expected) <= 1e-6
    assert waiting() == before  # the hooks took the weights away again


def test_gradients_pass_through_layers_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    visual = tokens_of("qwen2_vl", "float32", [0, 1])
    found = []
    for model in (beyond("qwen2_vl", monkeypatch), full_model("qwen2_vl")):
        loss = model.prompt_loss(visual, QUESTIONS[:2], ["awe", "fear"]).sum()
        found.append(torch.autograd.grad(loss, model.prompt.vectors)[0])
    assert found[1].abs().max() > 0
    assert distance(*found) <= 1e-6


def test_answers_pass_through_layers_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    visual = tokens_of("qwen2_vl", "float32", [0, 1])
    spread, plain = (generate(model, visual, QUESTIONS[0]) for model in (beyond("qwen2_vl", monkeypatch), full_model()))
    assert spread == plain


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "instructblip"])
def test_half_precision_works_on_the_cpu(family: str) -> None:
    model = full_model(family, "float16")
    assert model.backbone.weight_dtype == "float16"
    found = last_logits(model, tokens_of(family, "float16", [0, 1]), QUESTIONS[:2])
    expected = last_logits(full_model(family), tokens_of(family, "float32", [0, 1]), QUESTIONS[:2])
    assert 0 < distance(found, expected) <= 2**-6


def test_without_bitsandbytes_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BackboneError, match=r'bitsandbytes, which is not installed.*pip install "masp\[4bit\]"'):
        load_backbone(str(tiny.checkpoint()), dtype="nf4", device="cpu")


def test_packed_layers_do_not_wait_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(placement, "spread_layers", lambda name, sizes, *_: ["disk"] * (len(sizes) - 1) + ["cpu"])
    with pytest.raises(BackboneError, match="packed layers cannot wait elsewhere"):
        load_backbone(str(tiny.checkpoint()), dtype="nf4", device="spread")


def test_packed_layers_compute_in_the_dtype_that_is_chosen() -> None:
    pytest.importorskip("bitsandbytes")
    place = choose_placement("nf4", "cpu")
    assert place.four_bit
    assert place.dtype == choose_placement("auto", "cpu").dtype
