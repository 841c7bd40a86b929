"""Attention masks for a language model that is fed in pieces, with padding and branches."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def attention_masks(
    mask: Bool[Tensor, "batch total"],
    new: int,
    branches: Int[Tensor, " total"] | None,
    window: int | None,
    layer_types: Sequence[str],
) -> dict[str, Bool[Tensor, "rows 1 new total"] | None]:
    """For each type of layer, which of all columns each of the last `new` columns sees.

    A column sees the real columns up to itself, of branch 0 and its own; padding sees itself, so that no row of the
    softmax is empty. None stands for the plain causal mask, which kernels apply faster by themselves.

    Args:
        mask: which columns are real.
        new: number of columns that are queries.
        branches: branch of every column; None if there is only one.
        window: number of columns a sliding layer looks back.
        layer_types: the types of all layers.
    """
    total = mask.shape[1]
    sliding = "sliding_attention" in layer_types and window is not None and window < total
    plain = branches is None and (new == total or new == 1) and bool(mask.all())
    if plain and not sliding:
        return dict.fromkeys(layer_types)
    columns = torch.arange(total, device=mask.device)
    queries = columns[-new:, None]
    visible = columns <= queries
    if branches is not None:
        visible &= (branches == 0) | (branches == branches[-new:, None])
    seen = ((visible & mask[:, None]) | (columns == queries))[:, None]
    masks: dict[str, Bool[Tensor, "rows 1 new total"] | None] = dict.fromkeys(layer_types, seen)
    if sliding:
        assert window is not None
        masks["sliding_attention"] = seen & (columns > queries - window)
    return masks
