"""What the method trains beside a frozen backbone, in numbers and bytes (paper, Table 4, with stage 1 beside it)."""

from dataclasses import dataclass

import torch
from torch import nn

from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig
from masp.core.settings import Variant
from masp.model.aspect_attention import AspectModules
from masp.model.soft_prompt import SoftPrompt

FP32 = 4  # bytes of a number; what is trained is kept in fp32


@dataclass(frozen=True)
class TrainedSize:
    """The trained parts of one variant.

    Attributes:
        variant: which one.
        queries: aspect tokens per aspect.
        aspects: numbers in the six aspect modules.
        prompt: numbers in the soft prompt.
        added: places that aspect tokens and soft prompt take in the sequence of an image.
    """

    variant: str
    queries: int
    aspects: int
    prompt: int
    added: int


def trained_size(variant: Variant, dim: int, queries: int | None = None, prompt_length: int = 32) -> TrainedSize:
    """Sizes on a backbone of width `dim`, counted on the modules themselves.

    Args:
        variant: the method of the paper, or of the authors' code.
        dim: width of the language model.
        queries: per aspect; None: what the variant says.
        prompt_length: vectors in the soft prompt.
    """
    method = MethodConfig(variant=variant, queries=queries, prompt_length=prompt_length).resolved()
    assert method.queries is not None
    assert method.attention is not None
    with torch.device("meta"):
        aspects = AspectModules(dim, ASPECTS, method.queries, method.attention)
        prompt = SoftPrompt(prompt_length, dim)
    places = 2 if method.prompt_places == "both" else 1
    added = len(ASPECTS) * method.queries + places * prompt_length
    return TrainedSize(variant, method.queries, numbers(aspects), numbers(prompt), added)


def numbers(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
