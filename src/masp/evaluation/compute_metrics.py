"""All figures of the answers on one split, from the answers alone, and two results beside each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from masp.core.errors import DataError, UsageError
from masp.core.labels import spelled
from masp.data.records import Dataset
from masp.evaluation import metrics
from masp.evaluation.metrics import (
    BINS,
    TEMPERATURES,
    BootstrapSamples,
    Figures,
    Interval,
    PairedComparison,
    Rows,
    SeedStats,
    bin_of,
    bootstrap,
    calibration_error,
    compare,
    fit_temperature,
    means_of,
    scaled,
    spread_of,
)
from masp.evaluation.result import (
    Bin,
    Calibrated,
    CalibrationFloor,
    Distribution,
    Evaluation,
    ExactMatch,
    LabelledPrediction,
    Mode,
    ProbabilisticMetrics,
    RiskCoverage,
    SkippedImage,
)

POINTS = 100
"""Places of the risk–coverage curve that are kept at most."""

SIMULATED = 200
"""Draws of a perfectly calibrated system, for the floor of the calibration error."""

Logs = Float[np.ndarray, "images labels"]
Targets = Int[np.ndarray, " images"]


def log_table(answers: Sequence[LabelledPrediction], labels: Sequence[str]) -> tuple[Logs, Targets]:
    """Log-probabilities and number of the true label, of the answers that have log-probabilities."""
    rows = [(a.log_probabilities, labels.index(a.truth)) for a in answers if a.log_probabilities is not None]
    logs = np.array([[table[label] for label in labels] for table, _ in rows], dtype=float)
    return logs.reshape(len(rows), len(labels)), np.array([true for _, true in rows], dtype=int)


def probabilistic_metrics(
    logs: Logs, targets: Targets, samples: BootstrapSamples | None = None
) -> ProbabilisticMetrics:
    """All figures of log-probabilities; there is at least one image."""
    nll, brier, error = proper_scores(logs, targets, samples)
    return ProbabilisticMetrics(
        images=len(logs),
        top2=top2(logs, targets, samples) if logs.shape[1] > 2 else None,
        negative_log_likelihood=nll,
        brier=brier,
        calibration_error=error,
        calibration_floor=calibration_floor(logs, seed=(samples or BootstrapSamples()).seed),
        reliability=reliability(logs, targets),
        risk_coverage=risk_coverage(logs, targets, samples),
    )


def proper_scores(
    logs: Logs, targets: Targets, samples: BootstrapSamples | None = None
) -> tuple[Interval, Interval, Interval]:
    """Negative log-likelihood in nats, Brier score (0 to 2) and expected calibration error, with their intervals."""
    shares, right = np.exp(logs), _right(logs, targets)
    wanted = np.eye(logs.shape[1])[targets]
    sure = shares.max(axis=1)
    gaps = np.eye(BINS)[bin_of(sure, BINS)] * (sure - right)[:, None]
    scores = (-logs[np.arange(len(logs)), targets], np.square(shares - wanted).sum(axis=1))
    columns = np.column_stack([*scores, gaps])

    def figures(rows: Rows) -> Figures:
        means = means_of(columns, rows)
        return np.stack([means[:, 0], means[:, 1], np.abs(means[:, 2:]).sum(axis=1)])

    nll, brier, error = bootstrap(len(logs), figures, samples, biased=[2])
    return nll, brier, error


def calibration_floor(logs: Logs, samples: int = SIMULATED, seed: int = 0) -> CalibrationFloor:
    """The expected calibration error that a perfectly calibrated system with these confidences would show.

    It is right about image i with the probability c_i that it names, its confidence. So y_i, 1 where it is right and
    else 0, is drawn with that chance, again and again for the same n images, and each draw has the error

        E(y) = 1/n · Σ_bins | Σ_{i in bin} (c_i - y_i) |

    over the bins of the calibration error. (Consistency resampling: Bröcker and Smith 2007.)

    Args:
        logs: log-probabilities of the labels.
        samples: how many; two at least.
        seed: of the samples.
    """
    sure, dice = np.exp(logs).max(axis=1), np.random.default_rng(seed)
    errors = np.array([calibration_error(sure, dice.random(len(sure)) < sure) for _ in range(samples)])
    return CalibrationFloor(float(errors.mean()), float(errors.std(ddof=1)))


def top2(logs: Logs, targets: Targets, samples: BootstrapSamples | None = None) -> Interval:
    """Share whose true label is among the two most probable; of equal ones the first labels count."""
    best = np.argsort(-logs, axis=1, kind="stable")[:, :2]
    return _mean((best == targets[:, None]).any(axis=1)[:, None], samples)[0]


def reliability(logs: Logs, targets: Targets) -> tuple[Bin, ...]:
    """Answers by their confidence, in equal bins."""
    sure, right = np.exp(logs).max(axis=1), _right(logs, targets)
    bins = bin_of(sure, BINS)
    counts = np.bincount(bins, minlength=BINS)
    means = [np.bincount(bins, weights=values, minlength=BINS) / np.maximum(counts, 1) for values in (sure, right)]
    rows = zip(counts.tolist(), means[0].tolist(), means[1].tolist(), strict=True)
    return tuple(Bin(index / BINS, *row) for index, row in enumerate(rows))


def risk_coverage(logs: Logs, targets: Targets, samples: BootstrapSamples | None = None) -> RiskCoverage:
    """Risk at every coverage, the most confident images first, and its mean over all coverages.

    Images of equal confidence have no order: each counts with the share of them that is wrong, so that the curve does
    not depend on the order of the data.
    """
    sure, wrong = logs.max(axis=1), ~_right(logs, targets)
    _, group = np.unique(-sure, return_inverse=True)
    expected = np.bincount(group, weights=wrong) / np.bincount(group)
    order = np.argsort(group, kind="stable")
    sorted_risk = expected[group[order]]
    answered = np.arange(1, len(sure) + 1)

    def figures(rows: Rows) -> Figures:  # places in the order of confidence, so that sorting them is enough
        picked = sorted_risk[np.sort(rows, axis=1)]
        return (np.cumsum(picked, axis=1) / answered).mean(axis=1)[None]

    risk = np.cumsum(sorted_risk) / answered
    kept = np.unique(np.linspace(1, len(sure), min(len(sure), POINTS)).round().astype(int))
    area = bootstrap(len(sure), figures, samples)[0]
    return RiskCoverage(area, tuple((kept / len(sure)).tolist()), tuple(risk[kept - 1].tolist()))


def temperature_interval(logs: Logs, targets: Targets, temperature: float) -> Interval | None:
    """The 95 % interval of a fitted temperature T, from the images it was fitted on; None where they say nothing.

    With u = log T, each image's log-probabilities z and p = softmax(z / T), the mean negative log-likelihood has the
    slope g = (z_true - Σ p z) / T per image and the curvature h = mean of Σ p (z / T)² - (Σ p z / T)². So u has the
    standard error √(mean g² / n) / h, and the interval is T · exp(± 1.96 of them). (White 1982; it holds whether or
    not the scaled system is calibrated.)
    """
    z, shares = logs / temperature, np.exp(scaled(logs, temperature))
    mean = (shares * z).sum(axis=1)
    curvature = float(((shares * z * z).sum(axis=1) - mean * mean).mean())
    if not curvature > 0:
        return None
    slope = z[np.arange(len(z)), targets] - mean
    around = 1.96 * np.sqrt(np.square(slope).mean() / len(z)) / curvature
    return Interval(temperature, float(temperature * np.exp(-around)), float(temperature * np.exp(around)))


def calibrated(
    fitted_on: tuple[Float[np.ndarray, "fitted labels"], Int[np.ndarray, " fitted"]],
    split: str,
    logs: Logs,
    targets: Targets,
    samples: BootstrapSamples | None = None,
) -> Calibrated:
    """The figures of one split after a temperature was fitted on another."""
    chosen = fit_temperature(*fitted_on)
    after = scaled(logs, chosen)
    nll, brier, error = proper_scores(after, targets, samples)
    at_limit = min(chosen / TEMPERATURES[0], TEMPERATURES[1] / chosen) < 1.001
    return Calibrated(
        temperature=chosen,
        temperature_interval=None if at_limit else temperature_interval(*fitted_on, chosen),
        split=split,
        images=len(fitted_on[0]),
        at_limit=at_limit,
        negative_log_likelihood=nll,
        brier=brier,
        calibration_error=error,
        calibration_floor=calibration_floor(after, seed=(samples or BootstrapSamples()).seed),
        reliability=reliability(after, targets),
    )


def distribution(
    logs: Logs, votes: Float[np.ndarray, "images labels"], samples: BootstrapSamples | None = None
) -> Distribution:
    """Distance of the probabilities from the votes; both sum to 1 in every row, and there is at least one row."""
    from scipy.special import rel_entr

    shares = np.exp(logs)
    middle = (votes + shares) / 2
    apart = rel_entr(votes, shares).sum(axis=1)
    between = (rel_entr(votes, middle) + rel_entr(shares, middle)).sum(axis=1) / 2
    agree = votes[np.arange(len(votes)), logs.argmax(axis=1)] == votes.max(axis=1)
    return Distribution(len(logs), *_mean(np.column_stack([apart, between, agree]), samples))


def _right(logs: Logs, targets: Targets) -> Bool[np.ndarray, " images"]:
    return logs.argmax(axis=1) == targets


def _mean(columns: np.ndarray, samples: BootstrapSamples | None) -> tuple[Interval, ...]:
    columns = columns.astype(float)
    return bootstrap(len(columns), lambda rows: means_of(columns, rows).T, samples)


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
    samples: BootstrapSamples | None = None,
) -> Evaluation:
    """Every figure of the answers; there is at least one."""
    samples = samples or BootstrapSamples()
    targets, predicted = [a.truth for a in answers], [a.predicted for a in answers]
    labels = about.labels
    counted, macro = label_intervals(targets, predicted, labels, samples)
    return Evaluation(
        system=about.system,
        dataset=about.dataset,
        split=about.split,
        mode=about.mode,
        labels=labels,
        accuracy=metrics.accuracy(targets, predicted),
        accuracy_bootstrap=counted,
        macro_f1=replace(macro, value=metrics.macro_f1(targets, predicted, labels)),
        majority=metrics.majority_accuracy(targets),
        classes=tuple(metrics.per_class(targets, predicted, labels)),
        confusion=tuple(map(tuple, metrics.confusion(targets, predicted, labels))),
        chances=_chances(answers, labels, calibration, samples),
        distribution=_distribution(answers, labels, votes or {}, samples),
        used=len(answers),
        quarantined=about.quarantined,
        unlabelled=about.unlabelled,
        unparsed=sum(label is None for label in predicted),
        unanswered=about.unanswered,
        answers=tuple(answers),
        provenance={**about.provenance, "bootstrap": asdict(samples)},
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
    targets: Sequence[str],
    predicted: Sequence[str | None],
    labels: Sequence[str],
    samples: BootstrapSamples | None = None,
) -> tuple[Interval, Interval]:
    """Accuracy and macro-F1 with bootstrap intervals."""
    width = len(labels) + 1
    index_of = {label: index for index, label in enumerate(labels)}
    pairs = zip(targets, predicted, strict=True)
    cells = np.array(
        [index_of[target] * width + index_of.get(prediction or "", len(labels)) for target, prediction in pairs]
    )

    def figures(rows: Rows) -> Figures:
        counts = np.stack([np.bincount(cells[row], minlength=len(labels) * width) for row in rows])
        tables = counts.reshape(len(rows), len(labels), width)
        hits = np.diagonal(tables, axis1=1, axis2=2)
        seen = tables.sum(axis=2) + tables[:, :, :-1].sum(axis=1)  # (samples, labels): truly there, plus answered
        f1 = np.divide(2 * hits, seen, out=np.zeros(hits.shape), where=seen > 0)
        return np.stack([hits.sum(axis=1) / rows.shape[1], f1.sum(axis=1) / np.maximum((seen > 0).sum(axis=1), 1)])

    accuracy, macro = bootstrap(len(cells), figures, samples)
    return accuracy, macro


def votes_of(dataset: Dataset, split: str) -> Votes:
    """The votes of people on the images of a split, by image; empty where there are none."""
    records = dataset.splits.get(split, ())
    return {
        dataset.relative_path(record.path): record.distribution for record in records if record.distribution is not None
    }


def _chances(
    answers: Sequence[LabelledPrediction],
    labels: Sequence[str],
    calibration: Calibration | None,
    samples: BootstrapSamples,
) -> ProbabilisticMetrics | None:
    logs, targets = log_table(answers, labels)
    if not len(logs):
        return None
    result = probabilistic_metrics(logs, targets, samples)
    if calibration is None:
        return result
    fitted_on = log_table(calibration.answers, labels)
    if not len(fitted_on[0]):
        return result
    return replace(result, calibrated=calibrated(fitted_on, calibration.split, logs, targets, samples))


def _distribution(
    answers: Sequence[LabelledPrediction], labels: Sequence[str], votes: Votes, samples: BootstrapSamples
) -> Distribution | None:
    rows = [(answer, _shares(votes[answer.image], labels)) for answer in answers if answer.image in votes]
    usable = [
        (answer, shares) for answer, shares in rows if shares is not None and answer.log_probabilities is not None
    ]
    if not usable:
        return None
    logs, _ = log_table([answer for answer, _ in usable], labels)
    return distribution(logs, np.stack([shares for _, shares in usable]), samples)


def _shares(votes: Mapping[str, float], labels: Sequence[str]) -> np.ndarray | None:
    """Votes for the labels in their order, scaled to sum to 1; None without a vote for any of them."""
    shares = np.zeros(len(labels))
    for name, share in votes.items():
        label = spelled(name, labels)
        if label is not None:
            shares[labels.index(label)] += share
    return shares / shares.sum() if shares.sum() > 0 else None


Figure = Callable[[Evaluation], float | None]

FIGURES: Mapping[str, Figure] = {
    "accuracy": lambda one: one.accuracy.value,
    "macro_f1": lambda one: one.macro_f1.value,
    "top2": lambda one: one.chances.top2.value if one.chances and one.chances.top2 else None,
    "negative_log_likelihood": lambda one: one.chances.negative_log_likelihood.value if one.chances else None,
    "brier": lambda one: one.chances.brier.value if one.chances else None,
    "calibration_error": lambda one: one.chances.calibration_error.value if one.chances else None,
    "calibration_floor": lambda one: _value(one.chances.calibration_floor) if one.chances else None,
    "calibration_error_scaled": lambda one: (
        one.chances.calibrated.calibration_error.value if one.chances and one.chances.calibrated else None
    ),
    "calibration_floor_scaled": lambda one: (
        _value(one.chances.calibrated.calibration_floor) if one.chances and one.chances.calibrated else None
    ),
    "risk_coverage_area": lambda one: one.chances.risk_coverage.area.value if one.chances else None,
    "kl": lambda one: one.distribution.kl.value if one.distribution else None,
    "js": lambda one: one.distribution.js.value if one.distribution else None,
}
"""What results are compared by, where they have it."""


def compare_results(first: Evaluation, second: Evaluation) -> PairedComparison:
    """Accuracy of `second` minus that of `first`, image by image: bootstrap interval and McNemar's exact p.

    Raises:
        DataError: a result without its predictions, or two that are not of the same images with the same labels.
    """
    theirs = {answer.image: answer for answer in second.answers}
    pairs = [(answer, theirs[answer.image]) for answer in first.answers if answer.image in theirs]
    names = f"{first.system} and {second.system}"
    if not first.answers or not theirs:
        bare = second if first.answers else first
        raise DataError(f"the result of {bare.system} has no predictions beside it", "predictions.jsonl")
    if len(pairs) < max(len(first.answers), len(theirs)):
        got = f"the results of {names} share {len(pairs)} of {len(first.answers)} and {len(theirs)} images"
        raise DataError(got, "the same images", "Measure both on the same split of the same data set.")
    strange = next((one.image for one, other in pairs if one.truth != other.truth), None)
    if strange is not None:
        raise DataError(f"{strange} has different labels in the results of {names}", "the same data set")
    targets = [one.truth for one, _ in pairs]
    return compare(targets, [one.predicted for one, _ in pairs], [other.predicted for _, other in pairs])


def over_seeds(results: Sequence[Evaluation]) -> dict[str, SeedStats]:
    """Mean and standard deviation of every figure that all of the results have.

    Raises:
        UsageError: there are no results.
        DataError: they are not of the same images with the same labels.
    """
    if not results:
        raise UsageError("there are no results", "at least one")
    first, *others = results
    for other in others:
        if _measured_on(other) != _measured_on(first):
            got = f"results on {first.dataset}, split {first.split}, and on {other.dataset}, split {other.split}"
            raise DataError(got, "the same images and labels", "Measure all on the same split of the same data set.")
    result = {}
    for name, figure in FIGURES.items():
        values = [value for value in map(figure, results) if value is not None]
        if len(values) == len(results):
            result[name] = spread_of(values)
    return result


def _value(floor: CalibrationFloor | None) -> float | None:
    return None if floor is None else floor.value


def _measured_on(one: Evaluation) -> tuple[object, ...]:
    data = one.provenance.get("data") or {}
    return one.split, data.get("fingerprint"), frozenset(one.labels), one.used
