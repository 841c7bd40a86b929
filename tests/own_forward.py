"""transformers' own model of each family's folder, loaded apart and untouched: what the contract is held against.

It has its own vision tower, its own position index, its own forward pass.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

import tiny
from masp.core.types import ImageLayout, VisualTokens
from masp.model.masp_model import ActiveParts
from small_models import QUESTIONS

SIZES = ((90, 62), (58, 140), (118, 90))  # 2×3, 5×2 and 3×4 visual tokens in Qwen2-VL
OFF = ActiveParts(aspects=(), prompt=False)


def pictures() -> list[Any]:
    return [tiny.picture(*size, seed) for seed, size in enumerate(SIZES)]


@functools.cache
def reference(family: str, dtype: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(family), dtype=getattr(torch, dtype)).eval()


def own_inputs(
    family: str, dtype: str, rows: Sequence[int], pad: int = 0, nudge: float = 0, tail: Sequence[int] = ()
) -> dict[str, Any]:
    """Arguments of the reference's forward pass for the prompts of `rows`, as one batch padded left.

    Args:
        family: which one.
        dtype: of its weights.
        rows: images with the questions of the same number.
        pad: columns more than needed.
        nudge: moves every pixel by that share of itself.
        tail: ids behind every prompt.
    """
    backbone, model = tiny.backbone(family, dtype), reference(family, dtype)
    pixels = backbone.preprocess([pictures()[row] for row in rows])
    pixels = replace(pixels, values=pixels.values * (1 + nudge))
    questions = [QUESTIONS[row] for row in rows]
    images = backbone.condition_on(backbone.visual_tokens(pixels), questions).layouts
    asked = zip(questions, images, strict=True)
    prompts = [[*backbone.template(question, image).ids, *tail] for question, image in asked]
    width = max(map(len, prompts)) + pad
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    inputs = tiny.KINDS[family].inputs(model, pixels, ids, questions)
    if backbone.positions(1, 0, ImageLayout(0), native=True).shape[0] == 1:  # M-RoPE families count by themselves
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, **inputs}


@torch.no_grad()
def own_logits(family: str, dtype: str, rows: list[int], pad: int = 0, nudge: float = 0) -> Tensor:
    """The reference's logits after the prompts of `rows`."""
    return reference(family, dtype)(**own_inputs(family, dtype, rows, pad, nudge)).logits[:, -1].float()


@torch.no_grad()
def own_log_p(family: str, row: int, tail: Sequence[int]) -> Tensor:
    """The reference's log-probability of `tail` behind the prompt of `row`."""
    logits = reference(family, "float32")(**own_inputs(family, "float32", [row], tail=tail)).logits[0]
    log_p = logits.float().log_softmax(-1)
    return log_p[-len(tail) - 1 : -1].gather(1, torch.tensor(tail)[:, None]).sum()


@functools.cache
def tolerance(family: str, dtype: str) -> float:
    """What two results may differ by, relative to the largest logit.

    In bf16: three times what the backbone's own logits differ by between batches of other sizes and paddings and for
    pixels that differ in the last place, and at least one unit in the last place, as its kernels may happen to agree.
    """
    if dtype == "float32":
        return 1e-5
    single = torch.cat([own_logits(family, dtype, [row]) for row in range(3)])
    others = [own_logits(family, dtype, [0, 1, 2]), own_logits(family, dtype, [0, 1, 2], pad=7)]
    others.append(torch.cat([own_logits(family, dtype, [row], pad=5) for row in range(3)]))
    others.append(torch.cat([own_logits(family, dtype, [row], nudge=2**-8) for row in range(3)]))
    noise = max(distance(other[row], single[row]) for other in others for row in range(3))
    return max(3 * noise, 2**-7)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def tokens_of(family: str, dtype: str, rows: list[int]) -> VisualTokens:
    backbone = tiny.backbone(family, dtype)
    return backbone.visual_tokens(backbone.preprocess([pictures()[row] for row in rows]))
