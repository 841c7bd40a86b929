"""All figures of the answers on one split, from the answers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from masp.core.labels import spelled
from masp.data.records import Dataset
from masp.evaluation import metrics
from masp.evaluation import probabilistic_metrics as of_chances
from masp.evaluation.bootstrap import BootstrapSamples, Figures, Rows, bootstrap
from masp.evaluation.metrics import Interval
from masp.evaluation.predictions import LabelledPrediction
from masp.evaluation.result import Distribution, Evaluation, ExactMatch, Mode, ProbabilisticMetrics, SkippedImage

Votes = Mapping[str, Mapping[str, float]]
"""Image → label → share of the votes."""


@dataclass(frozen=True)
class ResultContext:
    """What a result says beside its figures; see `Evaluation`."""

    system: str
    dataset: str
    split: str
    mode: Mode
    labels: tuple[str, ...]
    provenance: Mapping[str, Any]
    quarantined: tuple[SkippedImage, ...] = ()
    unlabelled: int = 0
    unanswered: int = 0


@dataclass(frozen=True)
class Calibration:
    """Answers on another split, to fit a temperature on."""

    split: str
    answers: tuple[LabelledPrediction, ...]


def measured(
    about: ResultContext,
    answers: Sequence[LabelledPrediction],
    votes: Votes | None = None,
    calibration: Calibration | None = None,
    draws: BootstrapSamples | None = None,
) -> Evaluation:
    """Every figure of the answers; there is at least one."""
    draws = draws or BootstrapSamples()
    truth, predicted = [a.truth for a in answers], [a.predicted for a in answers]
    labels = about.labels
    counted, macro = label_intervals(truth, predicted, labels, draws)
    return Evaluation(
        system=about.system,
        dataset=about.dataset,
        split=about.split,
        mode=about.mode,
        labels=labels,
        accuracy=metrics.accuracy(truth, predicted),
        accuracy_bootstrap=counted,
        macro_f1=replace(macro, value=metrics.macro_f1(truth, predicted, labels)),
        majority=metrics.majority_accuracy(truth),
        classes=tuple(metrics.per_class(truth, predicted, labels)),
        confusion=tuple(map(tuple, metrics.confusion(truth, predicted, labels))),
        chances=_chances(answers, labels, calibration, draws),
        distribution=_distribution(answers, labels, votes or {}, draws),
        used=len(answers),
        quarantined=about.quarantined,
        unlabelled=about.unlabelled,
        unparsed=sum(label is None for label in predicted),
        unanswered=about.unanswered,
        answers=tuple(answers),
        provenance={**about.provenance, "bootstrap": asdict(draws)},
        exact=exact_match(answers),
    )


def exact_match(answers: Sequence[LabelledPrediction]) -> ExactMatch | None:
    """Exact match of generated texts (paper, Preliminaries); None unless it is known of every label that is named."""
    if any(answer.exact is None and answer.predicted is not None for answer in answers):
        return None
    if all(answer.answer is None for answer in answers):
        return None
    counted = [answer.counted for answer in answers]
    right = metrics.accuracy([answer.truth for answer in answers], counted)
    return ExactMatch(right, sum(label is None for label in counted))


def label_intervals(
    truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str], draws: BootstrapSamples | None = None
) -> tuple[Interval, Interval]:
    """Accuracy and macro-F1 with bootstrap intervals."""
    width = len(labels) + 1
    place = {label: index for index, label in enumerate(labels)}
    pairs = zip(truth, predicted, strict=True)
    cells = np.array([place[true] * width + place.get(said or "", len(labels)) for true, said in pairs])

    def figures(rows: Rows) -> Figures:
        counts = np.stack([np.bincount(cells[row], minlength=len(labels) * width) for row in rows])
        tables = counts.reshape(len(rows), len(labels), width)
        hits = np.diagonal(tables, axis1=1, axis2=2)
        seen = tables.sum(axis=2) + tables[:, :, :-1].sum(axis=1)  # (draws, labels): truly there, plus answered
        f1 = np.divide(2 * hits, seen, out=np.zeros(hits.shape), where=seen > 0)
        return np.stack([hits.sum(axis=1) / rows.shape[1], f1.sum(axis=1) / np.maximum((seen > 0).sum(axis=1), 1)])

    accuracy, macro = bootstrap(len(cells), figures, draws)
    return accuracy, macro


def votes_of(dataset: Dataset, split: str) -> Votes:
    """The votes of people on the images of a split, by image; empty where there are none."""
    records = dataset.splits.get(split, ())
    return {dataset.place(record.path): record.distribution for record in records if record.distribution is not None}


def _chances(
    answers: Sequence[LabelledPrediction],
    labels: Sequence[str],
    calibration: Calibration | None,
    draws: BootstrapSamples,
) -> ProbabilisticMetrics | None:
    logs, truth = of_chances.log_table(answers, labels)
    if not len(logs):
        return None
    found = of_chances.probabilistic_metrics(logs, truth, draws)
    if calibration is None:
        return found
    fitted_on = of_chances.log_table(calibration.answers, labels)
    if not len(fitted_on[0]):
        return found
    return replace(found, calibrated=of_chances.calibrated(fitted_on, calibration.split, logs, truth, draws))


def _distribution(
    answers: Sequence[LabelledPrediction], labels: Sequence[str], votes: Votes, draws: BootstrapSamples
) -> Distribution | None:
    rows = [(answer, _shares(votes[answer.image], labels)) for answer in answers if answer.image in votes]
    usable = [
        (answer, shares) for answer, shares in rows if shares is not None and answer.log_probabilities is not None
    ]
    if not usable:
        return None
    logs, _ = of_chances.log_table([answer for answer, _ in usable], labels)
    return of_chances.distribution(logs, np.stack([shares for _, shares in usable]), draws)


def _shares(votes: Mapping[str, float], labels: Sequence[str]) -> np.ndarray | None:
    """Votes for the labels in their order, scaled to sum to 1; None where nobody voted for any of them."""
    shares = np.zeros(len(labels))
    for name, share in votes.items():
        label = spelled(name, labels)
        if label is not None:
            shares[labels.index(label)] += share
    return shares / shares.sum() if shares.sum() > 0 else None
