"""Figures about predicted labels, their bootstrap intervals, and their spread over seeds.

Nothing here knows of images or models. A predicted label may be `None` (an answer that names no label): it is counted
as wrong, never dropped. scikit-learn and scipy are imported where they are used.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from masp.core.labels import normalise_answer

BINS = 15
"""Bins of equal width of the calibration error."""

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature that is searched."""

CALIBRATION_IMAGES = 1_000
"""Images of the split val below which no temperature is put into an adapter: its interval would be too wide."""

_NOTHING: Any = 0  # a ratio with nothing below the line; scikit-learn's types know only the words for it


@dataclass(frozen=True)
class Interval:
    """A figure, mostly a share in [0, 1], with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Text such as `71.3 % [69.2, 73.2]`."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class ClassFigures:
    """Precision, recall and F1 of one label; `support` counts the examples that truly have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class PairedComparison:
    """Accuracy of `second` minus that of `first` on the same examples: 95 % bootstrap interval and exact p.

    Of single runs p is McNemar's, of several seeds that of the sign-flip test. `only_first` and `only_second` count the
    examples that one alone gets right, or that more of its seeds do.
    """

    difference: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int

    def points(self) -> str:
        """Text such as `+3.1 points [+1.0, +5.2]`."""
        return f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def share(correct: int, total: int) -> Interval:
    """`correct / total` with Wilson's score interval, which stays inside [0, 1] and is honest for small sets.

    Raises:
        ValueError: There is nothing to count.
    """
    from scipy.stats import binomtest

    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"a share needs 0 <= correct <= total and total >= 1, got {correct} of {total}")
    ends = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return Interval(correct / total, float(ends.low), float(ends.high))


def accuracy(targets: Sequence[str], predicted: Sequence[str | None]) -> Interval:
    """Share of examples whose predicted label is the true one."""
    return share(sum(t == p for t, p in zip(targets, predicted, strict=True)), len(targets))


def majority_accuracy(targets: Sequence[str]) -> Interval:
    """Accuracy of always answering the label that is most frequent among `targets`."""
    return share(max(Counter(targets).values(), default=0), len(targets))


def confusion(targets: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> list[list[int]]:
    """Counts, one row for each true label; columns are the labels in order and, last, answers without one."""
    from sklearn.metrics import confusion_matrix

    true, predictions = _numbers(targets, predicted, labels)
    if not true:
        return [[0] * (len(labels) + 1) for _ in labels]
    return confusion_matrix(true, predictions, labels=range(len(labels) + 1))[:-1].tolist()


def per_class(targets: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> list[ClassFigures]:
    """Figures of every label, in the order of `labels`; a ratio with nothing below the line is 0."""
    from sklearn.metrics import precision_recall_fscore_support

    true, predictions = _numbers(targets, predicted, labels)
    if not true:
        return [ClassFigures(label, 0.0, 0.0, 0.0, 0) for label in labels]
    columns = precision_recall_fscore_support(true, predictions, labels=range(len(labels)), zero_division=_NOTHING)
    rows = zip(labels, *(np.asarray(column).tolist() for column in columns), strict=True)
    return [ClassFigures(label, precision, recall, f1, int(count)) for label, precision, recall, f1, count in rows]


def macro_f1(targets: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> float:
    """Mean F1 over the labels that occur among the true or the predicted ones."""
    from sklearn.metrics import f1_score

    true, predictions = _numbers(targets, predicted, labels)
    seen = sorted({*true, *predictions} - {len(labels)})
    return float(f1_score(true, predictions, labels=seen, average="macro", zero_division=_NOTHING)) if seen else 0.0


def calibration_error(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray, bins: int = BINS
) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal bins, weighted by their size.

    Our own, since torchmetrics takes seconds to import and puts a confidence of 1 into a bin of its own; the tests
    compare the two.
    """
    if not len(confidences):
        return 0.0
    sure, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    gaps = np.bincount(bin_of(sure, bins), weights=sure - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def bin_of(confidences: np.ndarray, bins: int) -> np.ndarray:
    """Number of the bin of each confidence; a bin holds its lower end, and the last one holds 1 as well."""
    return np.minimum((confidences * bins).astype(int), bins - 1)


def compare(
    targets: Sequence[str],
    first: Sequence[str | None],
    second: Sequence[str | None],
    seed: int = 0,
    samples: int = 10_000,
) -> PairedComparison:
    """Compares two prediction vectors of the same examples; see `compare_seeds`."""
    return compare_seeds(targets, [first], [second], seed, samples)


def compare_seeds(
    targets: Sequence[str],
    first: Sequence[Sequence[str | None]],
    second: Sequence[Sequence[str | None]],
    seed: int = 0,
    samples: int = 10_000,
) -> PairedComparison:
    """Compares two systems, each with one prediction vector for every training seed, on the same examples.

    An example counts with the share of a system's seeds that got it right. So the difference is that of the mean
    accuracies, and interval and p belong to it: the bootstrap over examples, and the sign-flip test over examples,
    which of single seeds is McNemar's. They say nothing about seeds that were not trained.

    Args:
        targets: label of each example.
        first: for every seed what was said about each example.
        second: the same of the other system; it may have another number of seeds.
        seed: of the bootstrap.
        samples: of the bootstrap.

    Raises:
        ValueError: there is no example, or a system without seeds.
    """
    if not targets or not first or not second:
        raise ValueError("two prediction vectors without examples cannot be compared")
    whole = math.lcm(len(first), len(second))
    gains = _hits(targets, second) * (whole // len(second)) - _hits(targets, first) * (whole // len(first))
    gain = mean_share(gains.tolist(), whole, seed, samples)
    only_first, only_second = int((gains < 0).sum()), int((gains > 0).sum())
    sizes = Counter(np.abs(gains[gains != 0]).tolist())
    alike = len(sizes) < 2  # all differences have one size
    p_value = mcnemar(only_first, only_second) if alike else sign_flip(sizes, int(gains.sum()))
    return PairedComparison(gain.value, gain.low, gain.high, p_value, only_first, only_second)


def mean_share(parts: Sequence[int], whole: int, seed: int = 0, samples: int = 10_000) -> Interval:
    """Mean of `parts / whole` over examples, with the percentile bootstrap over examples.

    There are few different parts. Drawing examples with replacement is drawing how many have each of them, so each draw
    is a few numbers.

    Raises:
        ValueError: there is no example.
    """
    if not parts:
        raise ValueError("there is no mean without examples")
    counts = Counter(parts)
    sizes = [*sorted(counts.keys() - {0}), 0]
    chances = np.array([counts[size] for size in sizes]) / len(parts)
    drawn = np.random.default_rng(seed).multinomial(len(parts), chances, size=samples)
    low, high = np.percentile(drawn @ np.array(sizes) / (whole * len(parts)), [2.5, 97.5])
    return Interval(sum(parts) / (whole * len(parts)), float(low), float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: the discordant examples against a fair coin."""
    from scipy.stats import binomtest

    total = only_first + only_second
    return float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0


def sign_flip(sizes: Mapping[int, int], total: int) -> float:
    """Exact two-sided p of the sign-flip test: differences whose signs a fair coin might as well have chosen.

    The chances of all sums come from their Fourier transform, a product of cosines, to about 1e-10; nothing below that
    is returned. With one size it is McNemar's test.

    Args:
        sizes: size of a difference, 1 or more → how many examples have it.
        total: the sum of the differences with the signs that they have.
    """
    if total == 0:
        return 1.0
    furthest = sum(size * count for size, count in sizes.items())
    length = 2 * furthest + 1
    angles = 2 * np.pi / length * np.arange(furthest + 1)
    transformed = np.prod([np.cos(size * angles) ** count for size, count in sizes.items()], axis=0)
    chances = np.fft.irfft(transformed, length)  # of the sums 0, 1, 2 …; those of -1, -2 … are the same
    return float(np.clip(2 * chances[abs(total) : furthest + 1].sum(), 1e-10, 1))


def _hits(targets: Sequence[str], runs: Sequence[Sequence[str | None]]) -> np.ndarray:
    """How many of the seeds got each example right."""
    return np.array([[a == t for t, a in zip(targets, run, strict=True)] for run in runs]).sum(axis=0)


def _numbers(
    targets: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Both as numbers of labels; an answer that names none of them is the number after the last."""
    index_of = {label: index for index, label in enumerate(labels)}
    predictions = [len(labels) if answer is None else index_of.get(answer, len(labels)) for answer in predicted]
    true = [index_of[label] for label in targets]
    assert len(true) == len(predictions), "as many answers as examples"
    return true, predictions


Rows = Int[np.ndarray, "samples images"]
"""In every row the numbers of the images that one draw picked."""

Figures = Float[np.ndarray, "figures samples"]

_TOGETHER = 2_000_000  # picked images at a time: 16 MB


@dataclass(frozen=True)
class BootstrapSamples:
    """How often images are drawn with replacement, and the seed."""

    count: int = 1000
    seed: int = 0


def bootstrap(
    images: int,
    figures: Callable[[Rows], Figures],
    samples: BootstrapSamples | None = None,
    biased: Collection[int] = (),
) -> tuple[Interval, ...]:
    """Every figure with its interval; all figures are taken from the same samples.

    Args:
        images: how many there are.
        figures: computes the figures of each draw.
        samples: how many, with which seed.
        biased: indices of figures that resampling exaggerates, since noise can only add to them. Their percentiles are
            moved by as much as the mean of the samples lies beside the figure, so that the interval lies around it;
            at least 0.
    """
    from scipy.stats import bootstrap as drawn

    everything = np.arange(images)
    values = figures(everything[None])[:, 0].tolist()
    if images < 2:  # nothing to draw from
        return tuple(Interval(value, value, value) for value in values)
    samples = samples or BootstrapSamples()

    def statistic(rows: Int[np.ndarray, "*samples images"], axis: int) -> Float[np.ndarray, "figures *samples"]:
        return figures(rows) if rows.ndim > 1 else figures(rows[None])[:, 0]

    result = drawn(
        (everything,),
        statistic,
        n_resamples=samples.count,
        batch=max(1, _TOGETHER // images),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(samples.seed),
    )
    low, high = (np.atleast_1d(end).copy() for end in result.confidence_interval)
    for index in biased:
        shift = values[index] - result.bootstrap_distribution[index].mean()
        low[index], high[index] = max(0.0, low[index] + shift), max(0.0, high[index] + shift)
    return tuple(Interval(*ends) for ends in zip(values, low.tolist(), high.tolist(), strict=True))


def means_of(columns: Float[np.ndarray, "images columns"], rows: Rows) -> Float[np.ndarray, "samples columns"]:
    """Mean of every column over the images of each draw."""
    times_drawn = np.stack([np.bincount(row, minlength=len(columns)) for row in rows]).astype(float)
    return times_drawn @ columns / rows.shape[1]


@dataclass(frozen=True)
class SeedStats:
    """A figure over several runs; `deviation` is the standard deviation of the sample, None for one run."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def text(self) -> str:
        """A share in per cent, such as `71.3 ± 0.8`; `71.3` for one run."""
        around = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{around}"

    def percent(self) -> str:
        """The same with its unit: `71.3 ± 0.8 %`."""
        return f"{self.text()} %"


def spread_of(values: Sequence[float]) -> SeedStats:
    """Mean and standard deviation of one value or more."""
    return SeedStats(mean(values), stdev(values) if len(values) > 1 else None, tuple(values))


@dataclass(frozen=True)
class SetScore:
    """Answers as sets of things (a list is split at its commas), counted over all images together."""

    precision: float
    recall: float
    f1: float


def set_score(labels: Sequence[str], answers: Sequence[str]) -> SetScore:
    """Precision, recall and F1 of answers as sets, counted over all images (micro); repetition does not count."""
    hits = predicted = expected = 0
    for label, answer in zip(labels, answers, strict=True):
        true, named = ({normalise_answer(item) for item in text.split(",")} - {""} for text in (label, answer))
        hits, predicted, expected = hits + len(true & named), predicted + len(named), expected + len(true)
    f1 = 2 * hits / (predicted + expected) if predicted + expected else 0.0
    return SetScore(hits / predicted if predicted else 0.0, hits / expected if expected else 0.0, f1)


def fit_temperature(logs: Float[np.ndarray, "images labels"], targets: Int[np.ndarray, " images"]) -> float:
    """The temperature of least negative log-likelihood, within `TEMPERATURES` (Guo et al., ICML 2017).

    Args:
        logs: log-probabilities, in nats.
        targets: index of each image's true label.
    """
    from scipy.optimize import minimize_scalar

    images = np.arange(len(logs))

    def loss(log_temperature: float) -> float:
        return -float(scaled(logs, np.exp(log_temperature))[images, targets].mean())

    low, high = np.log(TEMPERATURES)
    optimum = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(optimum.x))


def scaled(logs: Float[np.ndarray, "images labels"], temperature: float) -> Float[np.ndarray, "images labels"]:
    """Log-probabilities divided by a temperature and normalised again."""
    from scipy.special import log_softmax

    return log_softmax(logs / temperature, axis=1)
