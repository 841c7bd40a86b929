"""Attention masks for a language model that is fed in pieces, with padding, branches and images seen as a whole."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def attention_masks(
    mask: Bool[Tensor, "batch total"],
    new: int,
    branch_ids: Int[Tensor, " total"] | None,
    window: int | None,
    layer_types: Sequence[str],
    visual: Bool[Tensor, "batch new"] | None = None,
) -> dict[str, Bool[Tensor, "rows 1 new total"] | None]:
    """For each type of layer, which of all columns each of the last `new` columns sees.

    A column sees the real columns up to itself, of branch 0 and its own; padding sees itself, so that no row of the
    softmax is empty. None stands for the plain causal mask, which kernels apply faster by themselves.

    Args:
        mask: which columns are real.
        new: number of columns that are queries.
        branch_ids: branch of every column; None if there is only one.
        window: number of columns a sliding layer looks back, padding and other branches not counted.
        layer_types: the types of all layers.
        visual: which of the new columns see the whole run of such columns that they stand in.
    """
    total = mask.shape[1]
    sliding = "sliding_attention" in layer_types and window is not None and window < total
    whole = visual is not None and bool(visual.any())
    plain = branch_ids is None and not whole and (new == total or new == 1) and bool(mask.all())
    if plain and not sliding:
        return dict.fromkeys(layer_types)
    columns = torch.arange(total, device=mask.device)
    queries = columns[-new:, None]
    visible = columns <= queries
    if branch_ids is not None:
        visible &= (branch_ids == 0) | (branch_ids == branch_ids[-new:, None])
    seen = (visible & mask[:, None]) | (columns == queries)
    if visual is not None and whole:
        seen[:, :, total - new :] |= _same_run(visual)
    masks: dict[str, Bool[Tensor, "rows 1 new total"] | None] = dict.fromkeys(layer_types, seen[:, None])
    if sliding:
        assert window is not None
        ranks = _ranks(mask, branch_ids)
        masks["sliding_attention"] = (seen & (ranks[:, None] > ranks[:, -new:, None] - window))[:, None]
    return masks


def _same_run(visual: Bool[Tensor, "batch new"]) -> Bool[Tensor, "batch new new"]:
    """Which pairs of columns stand in the same unbroken run of visual columns."""
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    run = (visual & ~before).cumsum(1) * visual
    return (run[:, :, None] == run[:, None]) & visual[:, :, None]


def _ranks(mask: Bool[Tensor, "batch total"], branches: Int[Tensor, " total"] | None) -> Int[Tensor, "batch total"]:
    """Each column's number in its own sequence, which padding and other branches do not lengthen."""
    if branches is None:
        return mask.cumsum(1)
    trunk = (mask & (branches == 0)).cumsum(1)
    same = (branches == branches[:, None]).tril()
    along = (same & (branches != 0)).sum(1)
    return torch.where(branches == 0, trunk, trunk[:, -1:] + along)
