"""Which visual tokens some words of a question attend to, and rows that go without the others."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from masp.backbones.base import Backbone
from masp.core.types import ImageLayout, ModelInputs


def cue_span(backbone: Backbone, question: str, cue: str, image: ImageLayout) -> tuple[int, int]:
    """Where the tokens of a cue stand in the chat turn of a question that ends with it: first, and one past the last.

    They are what the turn has more than the turn without the cue, so no family need be known here; a token in which
    the cue and its surroundings have merged counts as the cue's.
    """
    assert question.endswith(cue)
    long = backbone.template(question, image).ids
    short = backbone.template(question.removesuffix(cue).rstrip(), image).ids
    first = _same(long, short)
    behind = _same(long[first:][::-1], short[first:][::-1])
    assert first < len(long) - behind, "the cue has tokens of its own"
    return first, len(long) - behind


def _same(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading numbers are equal."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def least_attended(
    attention: Float[Tensor, "batch sequence"], visual: Bool[Tensor, "batch sequence"], share: float
) -> list[Int[Tensor, " _"]]:
    """For each image the numbers of its visual tokens with least attention: `share` of them, rounded down."""
    found = []
    for weights, columns in zip(attention, visual, strict=True):
        own = weights[columns]
        count = math.floor(share * len(own) + 1e-9)  # 0.29 · 100 is 28.999…
        found.append(own.argsort(stable=True)[:count])
    return found


def without(rows: ModelInputs, dropped: Sequence[Int[Tensor, " _"]]) -> ModelInputs:
    """The rows without some of their visual tokens; all that is left keeps its position.

    The columns are taken out, not only masked: a family whose visual tokens see each other would see them still, and a
    sliding window would count them. Padding on the left takes their room.
    """
    gone = torch.zeros_like(rows.attention_mask)
    for number, tokens in enumerate(dropped):
        gone[number, rows.visual_columns[number].nonzero().flatten()[tokens]] = True
    end = rows.prefix_end
    assert not gone[:, end:].any(), "visual tokens stand in the prefix"
    staying = rows.attention_mask & ~gone
    order = staying[:, :end].int().argsort(dim=1, stable=True)
    rest = torch.arange(end, rows.attention_mask.shape[1], device=order.device).expand(len(order), -1)
    place = torch.cat([order, rest], dim=1)
    row = torch.arange(len(place), device=place.device)[:, None]
    stays = staying[row, place]

    def moved(values: Tensor, padding: int) -> Tensor:
        picked = values[row, place]
        return picked.masked_fill(~stays.reshape(*stays.shape, *[1] * (picked.ndim - 2)), padding)

    positions = rows.position_ids[:, row, place].masked_fill(~stays, 0)
    return replace(
        rows,
        inputs_embeds=moved(rows.inputs_embeds, 0),
        position_ids=positions,
        attention_mask=stays,
        labels=rows.labels[row, place],
        aspect_columns=moved(rows.aspect_columns, 0),
        visual_columns=moved(rows.visual_columns, 0),
        prompt_columns=moved(rows.prompt_columns, 0),
        aspect_of=moved(rows.aspect_of, -1),
        common=0,
        deep=None if rows.deep is None else moved(rows.deep, 0),
        prefix_hashes=(),
    )
