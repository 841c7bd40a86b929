"""Explanations against the truth: which aspect caused each label, where each cue lies, what each aspect shows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from masp.core.errors import DataError
from masp.core.labels import normalise_answer
from masp.core.prompts import Questions
from masp.core.types import VisualTokens
from masp.data.records import BadFiles, Record
from masp.evaluation import metrics
from masp.evaluation.metrics import Interval, SetScore, set_score
from masp.evaluation.predict_split import Batching, labelled, visual_batches
from masp.model.explain import ATTRIBUTIONS, DEFAULT_ATTRIBUTION, Attribution, heatmaps
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import describe_aspects, generate
from masp.predictor import Masp

PLACED = ("facial_expression", "object", "scene", "human_action")
"""Aspects whose cue lies somewhere on the image; brightness and colorfulness are everywhere."""


@dataclass(frozen=True)
class Truth:
    """What is known of one made image."""

    cause: str  # the aspect that did most for the drawn label
    # for each field, rows from the top, the aspect of the glyph that covers it; None for background
    cells: tuple[tuple[str | None, ...], ...]
    probabilities: Mapping[str, float]  # the true chance of each label


@dataclass(frozen=True)
class BayesAccuracy:
    """The best that anyone could reach where labels are drawn by chance."""

    expected: float  # mean of the largest true probability (Bayes accuracy)
    achieved: Interval  # how often the truly most probable label was the one drawn


@dataclass(frozen=True)
class Explanations:
    """How often the explanations are right."""

    accuracy: Interval  # of the predictions themselves
    # share of correct predictions where the largest effect among the aspects, however small, is that of the true main
    # cause; None without correct ones
    cause: Interval | None
    cause_by_guess: float | None  # the same share for always naming the commonest cause among them
    pointing: Mapping[str, Interval]  # for each aspect, share of the images that show it whose heatmap peaks on it
    pointing_by_guess: Mapping[str, float]  # for each aspect, the mean share of the image that it covers there


@dataclass(frozen=True)
class ExplainedImage:
    """One image: its truth, and what the model said. `peaks` holds the aspect found under each heatmap's maximum."""

    truth: Truth
    label: str
    predicted: str
    strongest: str
    peaks: Mapping[str, str | None]


def truth_of(record: Record) -> Truth:
    """What is known of a made image.

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
        expected = "the truth that `masp data make` writes beside each image"
        raise DataError(f"{record.path} does not say what caused its label ({error})", expected) from None


def ceiling(records: Sequence[Record]) -> BayesAccuracy:
    """The best accuracy that anyone could reach on made images.

    Raises:
        DataError: a record carries no truth.
    """
    chances = [truth_of(record).probabilities for record in records]
    best = [max(table, key=lambda label, table=table: table[label]) for table in chances]
    hits = sum(label == record.label for label, record in zip(best, records, strict=True))
    return BayesAccuracy(
        sum(max(table.values()) for table in chances) / len(chances), metrics.share(hits, len(records))
    )


def measure_explanations(
    masp: Masp,
    records: Sequence[Record],
    batching: Batching | None = None,
    attribution: Attribution = DEFAULT_ATTRIBUTION,
) -> Explanations:
    """Compares effects and heatmaps with the truth of made images.

    The effects are found by an attribution; those of a concept bottleneck are its own.

    Raises:
        DataError: a record carries no truth, or too many images cannot be read.
        UsageError: the model has no aspects.
    """
    batching = batching or Batching(longest_side=masp.task.longest_side, rounding=masp.task.rounding)
    masp.model.aspect_module()
    known = labelled(records, masp.labels)
    images: list[ExplainedImage] = []
    for batch, visual in visual_batches(masp.backbone, known, batching, BadFiles(total=len(known))):
        images += _explained(masp, batch, visual, attribution)
    return agreement(images)


def agreement(images: Sequence[ExplainedImage]) -> Explanations:
    """The figures over images that were explained."""
    right = [one for one in images if one.predicted == one.label]
    causes = Counter(one.truth.cause for one in right)
    hits = sum(one.strongest == one.truth.cause for one in right)
    pointing: dict[str, Interval] = {}
    guess: dict[str, float] = {}
    for aspect in PLACED:
        covered = [(one, _covered(one.truth, aspect)) for one in images if aspect in one.peaks]
        covered = [(one, share) for one, share in covered if share]
        if covered:
            pointing[aspect] = metrics.share(sum(one.peaks[aspect] == aspect for one, _ in covered), len(covered))
            guess[aspect] = sum(share for _, share in covered) / len(covered)
    return Explanations(
        metrics.share(len(right), len(images)),
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


def _covered(targets: Truth, aspect: str) -> float:
    """Share of the image that glyphs of an aspect cover."""
    cells = [cell for row in targets.cells for cell in row]
    return cells.count(aspect) / len(cells)


@torch.no_grad()
def _explained(
    masp: Masp, batch: Sequence[Record], visual: VisualTokens, attribution: Attribution
) -> list[ExplainedImage]:
    model, task = masp.model, masp.task
    names = model.active_aspects(task.use)
    log_p = masp.log_probabilities(visual)
    best = log_p.argmax(dim=1)
    concepts = masp.handle().concepts
    if concepts is None:
        effects = ATTRIBUTIONS[attribution](model, visual, task.question, task.labels, task.use, log_p)
    else:
        effects = concepts.effects(concepts.read(model, visual, task.question, task.labels), names)
    strongest = effects[torch.arange(len(batch)), :, best].argmax(dim=1).tolist()
    maps = heatmaps(model.aspect_tokens(visual, names).weights, visual)
    result = []
    for index, record in enumerate(batch):
        targets = truth_of(record)
        drawn = dict(zip(names, maps[index].tolist(), strict=True)) if maps is not None else {}
        peaks = {name: aspect_under_peak(drawn[name], targets.cells) for name in PLACED if name in drawn}
        label = task.labels[int(best[index])]
        result.append(ExplainedImage(targets, record.label or "", label, names[strongest[index]], peaks))
    return result


LONGEST = 24
"""Tokens that an aspect's answer may have; a list of objects needs some."""


@dataclass(frozen=True)
class AspectQuality:
    """How well one aspect is named, over the images where it is annotated."""

    aspect: str  # its name
    images: int  # how many were read
    exact: Interval  # share of answers that are the annotation (see `normalise_answer`), from the aspect's own tokens
    things: SetScore  # the same answers as sets; a list in another order is right here
    backbone_exact: Interval  # as `exact`, for the frozen backbone that sees all visual tokens and no adapter
    backbone_things: SetScore  # as `things`, for the frozen backbone


def aspect_quality(
    model: MaspModel, records: Sequence[Record], questions: Questions, batching: Batching | None = None
) -> tuple[AspectQuality, ...]:
    """Quality of each aspect of a model on annotated images.

    Raises:
        UsageError: the model has no aspects.
        DataError: no image is annotated, or too many cannot be read.
    """
    names = model.aspect_module().aspects
    annotated = [record for record in records if any(name in record.annotations for name in names)]
    if not annotated:
        todo = "Name a data set in EmoSet's layout, or one that `masp data make` wrote."
        raise DataError("no image has annotated aspects", "annotations beside the images", todo)
    targets: dict[str, list[str]] = {name: [] for name in names}
    ours: dict[str, list[str]] = {name: [] for name in names}
    plain: dict[str, list[str]] = {name: [] for name in names}
    account = BadFiles(total=len(annotated))
    for batch, visual in visual_batches(model.backbone, annotated, batching or Batching(), account):
        read = describe_aspects(model, visual, questions, LONGEST, [record.annotations for record in batch])
        for name in names:
            known = [index for index, record in enumerate(batch) if name in record.annotations]
            if not known:
                continue
            targets[name] += [batch[index].annotations[name] for index in known]
            ours[name] += [read[index][name] for index in known]
            seen = visual.select(known)
            plain[name] += generate(model, seen, questions.aspect(name)[0], ActiveParts((), prompt=False), LONGEST)
    return tuple(_quality(name, targets[name], ours[name], plain[name]) for name in names if targets[name])


def _quality(name: str, targets: Sequence[str], ours: Sequence[str], plain: Sequence[str]) -> AspectQuality:
    scores = (_exact(targets, ours), set_score(targets, ours), _exact(targets, plain), set_score(targets, plain))
    return AspectQuality(name, len(targets), *scores)


def _exact(targets: Sequence[str], answers: Sequence[str]) -> Interval:
    return metrics.accuracy([normalise_answer(t) for t in targets], [normalise_answer(a) for a in answers])
