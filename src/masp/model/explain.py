"""Why a label was predicted: where each aspect looked, and how much the label depends on it.

Attention is not cause. The heatmaps and the prompt's attention show what was read; the effect of an aspect is found
by taking it away and reading what happens to the label: from all of them (`leave_one_out`), or from every set of them
(`shapley_values`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from masp.core.errors import UsageError
from masp.core.prompts import Questions
from masp.core.types import ImageInput, VisualTokens
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import Answer, aspect_answers, score


@dataclass(frozen=True)
class AspectReading:
    """What one aspect contributed to one image's label.

    Attributes:
        answer: its answer in words, from its aspect tokens alone; one that was cut ends with an ellipsis.
        attention: where it looked: rows from the top, columns from the left, summing to 1; None where the backbone's
            visual tokens form no grid.
        effect: what it adds to the predicted label's log-probability, in nats, by the prediction's `attribution`.
        cut: the answer went on for longer than is generated.
    """

    answer: str
    attention: tuple[tuple[float, ...], ...] | None
    effect: float
    cut: bool = False


@dataclass(frozen=True)
class PromptAttention:
    """Attention from the soft prompt to each aspect (Figure 4).

    Attributes:
        raw: as measured in the final layer.
        normalised: as shares of the aspects that sum to 1.
    """

    raw: Mapping[str, float]
    normalised: Mapping[str, float]


@torch.no_grad()
def read_aspects(
    model: MaspModel,
    visual: VisualTokens,
    questions: Questions,
    use: ActiveParts,
    effects: Float[Tensor, "batch aspects"],
    words: Sequence[Mapping[str, str]] | None = None,
) -> list[dict[str, AspectReading]]:
    """For every image what each aspect of `use` saw, where, and its given effect.

    What it saw are the given `words`; None: what the backbone answers to `questions` out of the aspect's tokens.
    """
    names = model.active_aspects(use)
    if words is None:
        answers = aspect_answers(model, visual, questions)
    else:
        answers = [{name: Answer(one.get(name, ""), cut=False) for name in names} for one in words]
    maps = heatmaps(model.aspect_tokens(visual, names).weights, visual)
    drawn = (
        [[_rows(one) for one in image] for image in maps] if maps is not None else [[None] * len(names)] * len(visual)
    )
    return [
        {
            name: _reading(answers[image][name], drawn[image][place], float(effects[image, place]))
            for place, name in enumerate(names)
        }
        for image in range(len(visual))
    ]


def _reading(answer: Answer, attention: tuple[tuple[float, ...], ...] | None, effect: float) -> AspectReading:
    return AspectReading(answer.text + "…" * answer.cut, attention, effect, answer.cut)


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


def attention_to_aspects(
    model: MaspModel, visual: VisualTokens, question: str, use: ActiveParts
) -> list[PromptAttention] | None:
    """For every image the soft prompt's attention to each aspect; None where one of the two takes no part."""
    names = model.active_aspects(use)
    if not names or not use.prompt or model.prompt is None:
        return None
    raw = prompt_attention(model, visual, question, use)
    shares = normalised(raw)
    rows = zip(raw.tolist(), shares.tolist(), strict=True)
    return [
        PromptAttention(dict(zip(names, one, strict=True)), dict(zip(names, part, strict=True))) for one, part in rows
    ]


def leave_one_out(
    model: MaspModel,
    visual: VisualTokens,
    question: str,
    labels: Sequence[str],
    use: ActiveParts,
    complete: Float[Tensor, "batch labels"] | None = None,
) -> Float[Tensor, "batch aspects labels"]:
    """Effect of each aspect that takes part on each label, in nats: log p with all of them minus log p without it.

    A positive effect speaks for the label, a negative one against it. `complete` is the score with all aspects, where
    it is known already.
    """
    if complete is None:
        complete = score(model, visual, question, labels, use)
    names = model.active_aspects(use)
    without = [score(model, visual, question, labels, without_aspect(use, name)) for name in names]
    if not without:
        return complete.new_zeros(complete.shape[0], 0, complete.shape[1])
    return complete[:, None] - torch.stack(without, dim=1)


def shapley_values(
    model: MaspModel,
    visual: VisualTokens,
    question: str,
    labels: Sequence[str],
    use: ActiveParts,
    complete: Float[Tensor, "batch labels"] | None = None,
) -> Float[Tensor, "batch aspects labels"]:
    """Share of each aspect that takes part in each label's log-probability, in nats: exact Shapley values.

    An aspect's value is the mean of what it adds to log p when it joins the others in a random order (Shapley, 1953).
    The values of one image and label sum to log p with all aspects minus log p with none. With n aspects every image is
    scored 2ⁿ times (64 for six), 2ⁿ - 1 where `complete`, the score with all of them, is known already.
    """
    names = model.active_aspects(use)
    scores: dict[tuple[str, ...], Tensor] = {} if complete is None else {names: complete}
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            if chosen not in scores:
                scores[chosen] = score(model, visual, question, labels, ActiveParts(chosen, use.prompt))
    values = scores[names].new_zeros(len(visual), len(names), len(labels))
    for place, name in enumerate(names):
        for chosen, before in scores.items():
            if name not in chosen:
                joined = tuple(one for one in names if one in (*chosen, name))
                share = 1 / (len(names) * comb(len(names) - 1, len(chosen)))
                values[:, place] += share * (scores[joined] - before)
    return values


Attribution = Literal["leave_one_out", "shapley"]
"""Name of a way to tell how much each aspect did for a label."""

ATTRIBUTIONS: Mapping[Attribution, Callable[..., Float[Tensor, "batch aspects labels"]]] = {
    "leave_one_out": leave_one_out,
    "shapley": shapley_values,
}
"""Each takes model, visual tokens, question, labels, use, and the score with all aspects."""

DEFAULT_ATTRIBUTION: Attribution = "leave_one_out"


def without_aspect(use: ActiveParts, aspect: str) -> ActiveParts:
    """The same use with one aspect fewer."""
    return ActiveParts(tuple(name for name in use.aspects if name != aspect), use.prompt)


def heatmaps(
    weights: Float[Tensor, "batch aspects queries visual"], visual: VisualTokens
) -> list[Float[Tensor, "aspects rows columns"]] | None:
    """Attention of the aspects on each image's own grid, averaged over the queries; each map sums to 1.

    Images may have different grids, hence a list. None where the visual tokens form no grid.
    """
    if visual.grid is None:
        return None
    mean = weights.float().mean(dim=2)
    return [_on_grid(row, visual, index) for index, row in enumerate(mean)]


def normalised(raw: Float[Tensor, "batch aspects"]) -> Float[Tensor, "batch aspects"]:
    """Each image's attention to the aspects as shares that sum to 1 (Figure 4)."""
    return raw / raw.sum(dim=1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)


def _rows(heatmap: Float[Tensor, "rows columns"]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in heatmap.tolist())


def _on_grid(
    weights: Float[Tensor, "aspects visual"], visual: VisualTokens, index: int
) -> Float[Tensor, "aspects rows columns"]:
    """One image's weights on its grid: spread over each token's box, or in reading order where no box is known."""
    assert visual.grid is not None
    rows, columns = (int(size) for size in visual.grid[index])
    kept = visual.mask[index]
    weights = weights[:, kept]
    if visual.boxes is None:
        return weights.reshape(-1, rows, columns)
    shares = _shares(visual.boxes[index][kept], rows, columns).to(weights)
    drawn = torch.einsum("av,vrc->arc", weights, shares)
    placed = drawn.sum(dim=(1, 2)) / weights.sum(1)  # what newline features draw has no place and is left out
    return drawn / placed.clamp_min(torch.finfo(drawn.dtype).tiny)[:, None, None]


def _shares(boxes: Float[Tensor, "visual 4"], rows: int, columns: int) -> Float[Tensor, "visual rows columns"]:
    """How much of each token's box lies in each cell of a grid; sums to 1, or to 0 for a token without a place."""
    across = _overlap(boxes[:, 0], boxes[:, 2], columns)
    down = _overlap(boxes[:, 1], boxes[:, 3], rows)
    area = down[:, :, None] * across[:, None]
    return area / area.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(area.dtype).tiny)


def _overlap(
    low: Float[Tensor, " visual"], high: Float[Tensor, " visual"], cells: int
) -> Float[Tensor, "visual cells"]:
    """How much of each of `cells` equal parts of [0, 1] lies in each interval; rounding errors do not count."""
    edges = torch.arange(cells, device=low.device)
    inside = torch.minimum(high[:, None] * cells, edges + 1) - torch.maximum(low[:, None] * cells, edges)
    return inside.masked_fill(inside < 1e-4, 0)
