"""Attention from the soft prompt to the aspects (paper, Figure 4). It shows attention, not causes."""

import torch
from jaxtyping import Float
from torch import Tensor

from masp.core.errors import UsageError
from masp.core.types import ImageInput
from masp.model.masp_model import ActiveParts, MaspModel


@torch.no_grad()
def prompt_attention(
    model: MaspModel, visual: ImageInput, question: str, use: ActiveParts | None = None
) -> Float[Tensor, "batch aspects"]:
    """Final-layer attention from the soft prompt to each aspect of the model that takes part, in the model's order.

    Mean over heads and prompt tokens, summed over an aspect's tokens. Raw weights: they sum to less than 1, as the rest
    goes to other columns. Where the soft prompt stands twice, the second place is read, as the first precedes the
    aspects and cannot see them. The weights come from a pass of their own; the pass that predicts is not touched.

    Raises:
        UsageError: no soft prompt or no aspects take part.
    """
    assembled = model.build_inputs(visual, [question] * len(visual), use=use)
    if not assembled.prompt_columns.any() or not assembled.aspect_columns.any():
        raise UsageError(
            "attention from the soft prompt to the aspects was asked for, but one of them takes no part",
            "a model with both",
        )
    start = assembled.prefix_end
    columns = torch.arange(assembled.attention_mask.shape[1], device=assembled.attention_mask.device)
    behind = columns > (columns * assembled.aspect_columns).amax(1, keepdim=True)
    asking = (assembled.prompt_columns & behind)[:, start:]
    weights = model.backbone.last_attention(assembled, start).mean(1)  # (batch, rest, sequence)
    mean = (weights * asking[..., None]).sum(1) / asking.sum(1, keepdim=True)
    aspects = int(assembled.aspect_of.max()) + 1
    return torch.stack([(mean * (assembled.aspect_of == aspect)).sum(1) for aspect in range(aspects)], dim=1)
