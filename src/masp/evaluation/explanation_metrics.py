"""Explanations against the truth, which only a made world knows: what caused each label, and where each thing lies.

Emoji scenes carry it as `Record.extra["emoji"]`: `cause`, the aspect of the main cue; `cells`, for each field of a grid
over the image the [aspect, name] of the glyph that covers it, or null; `probabilities`, the true chance of each label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from masp.core.errors import DataError
from masp.core.types import VisualTokens
from masp.data.bad_files import Quarantine
from masp.data.records import Record
from masp.evaluation import metrics
from masp.evaluation.batches import Batching, labelled, visual_batches
from masp.evaluation.metrics import Interval
from masp.model.explain import ATTRIBUTIONS, DEFAULT_ATTRIBUTION, Attribution, heatmaps, taking_part
from masp.predictor import Masp

PLACED = ("facial_expression", "object", "scene", "human_action")
"""Aspects whose cue lies somewhere on the picture; brightness and colorfulness are everywhere."""


@dataclass(frozen=True)
class Truth:
    """What is known of one made picture.

    Attributes:
        cause: the aspect that did most for the drawn label.
        cells: for each field, rows from the top, the aspect of the glyph that covers it; None for background.
        probabilities: the true chance of each label.
    """

    cause: str
    cells: tuple[tuple[str | None, ...], ...]
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Ceiling:
    """The best that anyone could reach where labels are drawn by chance.

    Attributes:
        expected: mean of the largest true probability (Bayes accuracy).
        achieved: how often the truly most probable label was the one drawn.
    """

    expected: float
    achieved: Interval


@dataclass(frozen=True)
class Explanations:
    """How often the explanations are right.

    Attributes:
        accuracy: of the predictions themselves.
        cause: share of correct predictions whose largest effect is the true main cause; None without correct ones.
        cause_by_guess: the same share for always naming the commonest cause among them.
        pointing: for each aspect, share of the images that show it whose heatmap peaks on it.
        pointing_by_guess: for each aspect, the mean share of the image that it covers there.
    """

    accuracy: Interval
    cause: Interval | None
    cause_by_guess: float | None
    pointing: Mapping[str, Interval]
    pointing_by_guess: Mapping[str, float]


@dataclass(frozen=True)
class Explained:
    """One picture: its truth, and what the model said. `peaks` holds the aspect found under each heatmap's maximum."""

    truth: Truth
    label: str
    predicted: str
    strongest: str
    peaks: Mapping[str, str | None]


def truth_of(record: Record) -> Truth:
    """What is known of a made picture.

    Raises:
        DataError: the record carries no such truth.
    """
    known = record.extra.get("emoji")
    try:
        if not isinstance(known, Mapping):
            raise TypeError("no key 'emoji'")
        cells = tuple(tuple(cell[0] if cell else None for cell in row) for row in known["cells"])
        chances = {str(label): float(p) for label, p in known["probabilities"].items()}
        return Truth(str(known["cause"]), cells, chances)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        expected = "the truth that `masp data make` writes beside each picture"
        raise DataError(f"{record.path} does not say what caused its label ({error})", expected) from None


def ceiling(records: Sequence[Record]) -> Ceiling:
    """The best accuracy that anyone could reach on made pictures.

    Raises:
        DataError: a record carries no truth.
    """
    chances = [truth_of(record).probabilities for record in records]
    best = [max(table, key=lambda label, table=table: table[label]) for table in chances]
    hits = sum(label == record.label for label, record in zip(best, records, strict=True))
    return Ceiling(sum(max(table.values()) for table in chances) / len(chances), metrics.share(hits, len(records)))


def measure_explanations(
    masp: Masp,
    records: Sequence[Record],
    batching: Batching | None = None,
    attribution: Attribution = DEFAULT_ATTRIBUTION,
) -> Explanations:
    """Compares effects and heatmaps with the truth of made pictures.

    The effects are found by an attribution; those of a concept bottleneck are its own.

    Raises:
        DataError: a record carries no truth, or too many images cannot be read.
        UsageError: the model has no aspects.
    """
    batching = batching or Batching(longest_side=masp.task.longest_side, rounding=masp.task.rounding)
    masp.model.aspect_module()
    known = labelled(records, masp.labels)
    found: list[Explained] = []
    for batch, visual in visual_batches(masp.backbone, known, batching, Quarantine(total=len(known))):
        found += _explained(masp, batch, visual, attribution)
    return agreement(found)


def agreement(found: Sequence[Explained]) -> Explanations:
    """The figures over pictures that were explained."""
    right = [one for one in found if one.predicted == one.label]
    causes = Counter(one.truth.cause for one in right)
    hits = sum(one.strongest == one.truth.cause for one in right)
    pointing: dict[str, Interval] = {}
    guess: dict[str, float] = {}
    for aspect in PLACED:
        covered = [(one, _covered(one.truth, aspect)) for one in found if aspect in one.peaks]
        covered = [(one, share) for one, share in covered if share]
        if covered:
            pointing[aspect] = metrics.share(sum(one.peaks[aspect] == aspect for one, _ in covered), len(covered))
            guess[aspect] = sum(share for _, share in covered) / len(covered)
    return Explanations(
        metrics.share(len(right), len(found)),
        metrics.share(hits, len(right)) if right else None,
        max(causes.values()) / len(right) if right else None,
        pointing,
        guess,
    )


def aspect_under_peak(heatmap: Sequence[Sequence[float]], cells: Sequence[Sequence[str | None]]) -> str | None:
    """The aspect of the glyph under a heatmap's maximum; the two grids may be of different sizes."""
    rows, columns = len(heatmap), len(heatmap[0])
    row, column = max(((r, c) for r in range(rows) for c in range(columns)), key=lambda at: heatmap[at[0]][at[1]])
    return cells[(2 * row + 1) * len(cells) // (2 * rows)][(2 * column + 1) * len(cells[0]) // (2 * columns)]


def _covered(truth: Truth, aspect: str) -> float:
    """Share of the image that glyphs of an aspect cover."""
    cells = [cell for row in truth.cells for cell in row]
    return cells.count(aspect) / len(cells)


@torch.no_grad()
def _explained(masp: Masp, batch: Sequence[Record], visual: VisualTokens, attribution: Attribution) -> list[Explained]:
    model, task = masp.model, masp.task
    names = taking_part(model, task.use)
    log_p = masp.log_probabilities(visual)
    best = log_p.argmax(dim=1)
    if masp.concepts is None:
        effects = ATTRIBUTIONS[attribution](model, visual, task.question, task.labels, task.use, log_p)
    else:
        effects = masp.concepts.effects(masp.concepts.read(model, visual, task.question, task.labels), names)
    strongest = effects[torch.arange(len(batch)), :, best].argmax(dim=1).tolist()
    maps = heatmaps(model.aspect_tokens(visual, names).weights, visual)
    found = []
    for index, record in enumerate(batch):
        truth = truth_of(record)
        drawn = dict(zip(names, maps[index].tolist(), strict=True)) if maps is not None else {}
        peaks = {name: aspect_under_peak(drawn[name], truth.cells) for name in PLACED if name in drawn}
        label = task.labels[int(best[index])]
        found.append(Explained(truth, record.label or "", label, names[strongest[index]], peaks))
    return found
