"""The output head of a backbone in half precision: the numbers and gradients of a float32 one, without its memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fixtures import tiny
from fixtures.models import QUESTIONS, full_model, visual_tokens
from masp.backbones import decoder
from masp.backbones.decoder import head_logits
from masp.model.scoring import first_word, score

ROWS, DIM, WORDS = 5, 37, 211
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
BIASED = pytest.mark.parametrize("bias", [False, True])


class Widest(TorchDispatchMode):
    """The most numbers that a float32 tensor had which an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        wide = [one.numel() for one in tree_leaves(found) if isinstance(one, Tensor) and one.dtype == torch.float32]
        self.numbers = max([self.numbers, *wide])
        return found


def made(dtype: torch.dtype, bias: bool) -> tuple[nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(3)
    head = nn.Linear(DIM, WORDS, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    hidden = torch.randn(2, ROWS, DIM, generator=generator)
    return head.to(dtype).requires_grad_(False), hidden.to(dtype).requires_grad_()


@HALVES
@BIASED
def test_logits_and_gradients_are_those_of_float32_weights(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "PART", 30 * DIM)  # eight parts, the last one smaller
    head, hidden = made(dtype, bias)
    found = head_logits(head, hidden)
    expected = hidden.float() @ head.weight.float().T + (head.bias.float() if bias else 0)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    rounded = (head(hidden).float() - expected).abs().max()
    assert rounded > 1e-4 * expected.abs().max(), "in half precision itself it is another number"
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad((found * towards).sum(), hidden)
    exact = towards @ head.weight.float()
    assert gradient.dtype == dtype
    assert torch.equal(gradient, exact.to(dtype)) or (gradient.float() - exact).abs().max() <= 5e-3 * exact.abs().max()


@HALVES
def test_the_weights_are_never_float32_all_at_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "PART", 30 * DIM)
    head, hidden = made(dtype, False)
    with Widest() as widest:
        head_logits(head, hidden).sum().backward()
    assert 30 * DIM <= widest.numbers < WORDS * DIM
    assert hidden.grad is not None


def test_a_float32_head_is_transformers_own() -> None:
    head, hidden = made(torch.float32, True)
    assert torch.equal(head_logits(head, hidden), head(hidden))


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "instructblip"])
def test_every_reading_of_a_half_precision_backbone_is_float32(family: str) -> None:
    model = full_model(family, "bfloat16")
    backbone, visual = model.backbone, visual_tokens(model)
    hidden = torch.randn(3, backbone.dim, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert backbone.logits(hidden).dtype == torch.float32
    rows = model.build_inputs(visual, [QUESTIONS[0]] * 3)
    for found in (first_word(model, rows), score(model, visual, QUESTIONS[0], ["joy", "fear"])):
        assert found.dtype == torch.float32
        assert (found != found.bfloat16().float()).any()


def test_the_loss_of_a_half_precision_backbone_reaches_the_prompt() -> None:
    model = full_model.__wrapped__("qwen2_vl", "bfloat16")
    loss = model.prompt_loss(visual_tokens(model), [QUESTIONS[0]] * 3, ["joy", "fear", "joy"])
    loss.sum().backward()
    assert loss.dtype == torch.float32
    gradient = model.prompt.vectors.grad
    exact = full_model.__wrapped__("qwen2_vl", "float32")
    exact.prompt_loss(visual_tokens(exact), [QUESTIONS[0]] * 3, ["joy", "fear", "joy"]).sum().backward()
    wanted = exact.prompt.vectors.grad
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), wanted.flatten(), 0) > 0.99


def test_nf4_does_not_pack_the_head() -> None:
    pytest.importorskip("bitsandbytes")
    backbone = tiny.backbone(dtype="nf4")
    hidden = torch.randn(3, backbone.dim, generator=torch.Generator().manual_seed(2))
    plain = tiny.backbone().logits(hidden)
    assert (backbone.logits(hidden) - plain).abs().max() <= 1e-5 * plain.abs().max()
