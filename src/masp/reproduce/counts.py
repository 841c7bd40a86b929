"""What is trained, in numbers (paper, Table 4)."""

from typing import Any

from masp.backbones.base import Backbone
from masp.core.config import MethodConfig
from masp.core.flops import QWEN2_VL_7B, Sizes
from masp.core.settings import Variant
from masp.model.param_count import trained_size

RANK = 8


def lora_numbers(sizes: Sizes, rank: int = RANK) -> int:
    """Numbers in LoRA layers on the query and value projections of every block: rank · (in + out) for each."""
    query, value = sizes.dim + sizes.dim, sizes.dim + sizes.kv_dim
    return sizes.layers * rank * (query + value)


def of_paper_backbone(prompt_length: int = 32) -> dict[str, int]:
    """The counts for Qwen2-VL-7B, by arithmetic."""
    counts = _method(QWEN2_VL_7B.dim, None, "paper", prompt_length)
    del counts["aspects"]  # the same as those of the paper
    return {"lora": lora_numbers(QWEN2_VL_7B), **counts}


def of_backbone(backbone: Backbone, method: MethodConfig) -> dict[str, Any]:
    """The counts for a loaded backbone."""
    from masp.baselines.lora_layers import LoraLayers, LoraSettings

    counted = _method(backbone.dim, method.queries, method.variant, method.prompt_length)
    return {"lora": LoraLayers(backbone, LoraSettings(rank=RANK)).count, **counted}


def _method(dim: int, queries: int | None, variant: Variant, length: int) -> dict[str, int]:
    paper, released = trained_size("paper", dim), trained_size("released", dim)
    here = trained_size(variant, dim, queries, length)
    return {
        "prompt": here.prompt,
        "aspects": here.aspects,
        "aspects paper": paper.aspects,
        "aspects released": released.aspects,
    }
