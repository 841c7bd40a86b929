"""The output head in float32, whatever format its weights are stored in, and without a float32 copy of them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

PART = 2**24
"""Weights that are float32 at a time: 64 MiB. The head of a 7B has 545 million."""


def head_logits(head: nn.Linear, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocabulary"]:
    """Logits in float32: products and sums of a frozen head, as if its weights and the states were float32.

    A head in bfloat16 would round every logit to 8 bits: by up to 0.06 where logits are about 20, while labels often
    differ by less. Of an nf4 backbone the head is not packed, so it is one in half precision as well.
    """
    if head.weight.dtype == torch.float32:
        return functional.linear(hidden.float(), head.weight, head.bias)
    assert not head.weight.requires_grad, "the output head is frozen"
    found: Tensor = _WideProduct.apply(hidden.flatten(0, -2), head.weight)  # pyright: ignore[reportAssignmentType]
    found = found.unflatten(0, hidden.shape[:-1])
    return found if head.bias is None else found + head.bias


class _WideProduct(torch.autograd.Function):
    """hidden weightᵀ in float32 of weights in half precision, and the gradient of `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "rows dim"], weight: Float[Tensor, "vocabulary dim"]
    ) -> Float[Tensor, "rows vocabulary"]:
        ctx.save_for_backward(weight)
        ctx.dtype = hidden.dtype
        if weight.device.type == "cuda" and torch.version.hip is None and hidden.dtype == weight.dtype:
            return torch.mm(hidden, weight.T, out_dtype=torch.float32)  # tensor cores sum in float32 anyhow
        wide = hidden.float()
        found = wide.new_empty(len(hidden), len(weight))
        start = 0
        for part in _parts(weight):
            torch.mm(wide, part.float().T, out=found[:, start : start + len(part)])
            start += len(part)
        return found

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base takes any number of gradients)
        ctx: Any, gradient: Float[Tensor, "rows vocabulary"]
    ) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        found = gradient.new_zeros(len(gradient), weight.shape[1])
        start = 0
        for part in _parts(weight):
            found.addmm_(gradient[:, start : start + len(part)], part.float())
            start += len(part)
        return found.to(ctx.dtype), None


def _parts(weight: Float[Tensor, "vocabulary dim"]) -> tuple[Float[Tensor, "part dim"], ...]:
    return weight.split(max(1, PART // weight.shape[1]))
