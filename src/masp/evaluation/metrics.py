"""Figures about predicted labels. Plain Python and NumPy: nothing here knows of images or models.

A predicted label may be `None` (an answer that names no label): it is counted as wrong, never dropped.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution, so that intervals hold 95 %."""


@dataclass(frozen=True)
class Interval:
    """A share in [0, 1] with the two ends of its 95 % interval."""

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
class Paired:
    """Accuracy of `second` minus that of `first` on the same examples: 95 % bootstrap interval and McNemar's p."""

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
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"a share needs 0 <= correct <= total and total >= 1, got {correct} of {total}")
    value, weight = correct / total, Z_95**2 / total
    centre = (value + weight / 2) / (1 + weight)
    half = Z_95 / (1 + weight) * math.sqrt(value * (1 - value) / total + weight / (4 * total))
    return Interval(value, max(0.0, centre - half), min(1.0, centre + half))


def accuracy(truth: Sequence[str], predicted: Sequence[str | None]) -> Interval:
    """Share of examples whose predicted label is the true one."""
    return share(sum(t == p for t, p in zip(truth, predicted, strict=True)), len(truth))


def majority_accuracy(truth: Sequence[str]) -> Interval:
    """Accuracy of always answering the label that is most frequent among `truth`."""
    return share(max(Counter(truth).values(), default=0), len(truth))


def confusion(truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> list[list[int]]:
    """Counts, one row for each true label; columns are the labels in order and, last, answers without one."""
    place = {label: index for index, label in enumerate(labels)}
    table = [[0] * (len(labels) + 1) for _ in labels]
    for true, answer in zip(truth, predicted, strict=True):
        table[place[true]][len(labels) if answer is None else place.get(answer, len(labels))] += 1
    return table


def per_class(truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> list[ClassFigures]:
    """Figures of every label, in the order of `labels`; a ratio with nothing below the line is 0."""
    table = confusion(truth, predicted, labels)
    figures = []
    for index, label in enumerate(labels):
        hits, support, answered = table[index][index], sum(table[index]), sum(row[index] for row in table)
        precision, recall = hits / answered if answered else 0.0, hits / support if support else 0.0
        f1 = 2 * hits / (support + answered) if support + answered else 0.0
        figures.append(ClassFigures(label, precision, recall, f1, support))
    return figures


def macro_f1(truth: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> float:
    """Mean F1 over the labels that occur among the true or the predicted ones."""
    seen = {*truth, *predicted}
    scores = [figures.f1 for figures in per_class(truth, predicted, labels) if figures.label in seen]
    return sum(scores) / len(scores) if scores else 0.0


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal bins, weighted by their size."""
    if not len(confidences):
        return 0.0
    sure, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=sure - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(sure))


def negative_log_likelihood(probabilities: Sequence[Mapping[str, float]], truth: Sequence[str]) -> float:
    """Mean of -log p(true label), in nats; a label given no probability counts as the smallest positive number."""
    tiny = np.finfo(float).tiny
    logs = [math.log(max(p.get(t, 0.0), tiny)) for p, t in zip(probabilities, truth, strict=True)]
    return -sum(logs) / len(logs) if logs else 0.0


def compare(
    truth: Sequence[str],
    first: Sequence[str | None],
    second: Sequence[str | None],
    seed: int = 0,
    draws: int = 10_000,
) -> Paired:
    """Compares two prediction vectors of the same examples.

    The interval is the percentile bootstrap over examples. Drawing examples with replacement is the same as drawing
    how many of them only the first or only the second gets right, so each draw is three numbers.
    """
    pairs = Counter((a == t, b == t) for t, a, b in zip(truth, first, second, strict=True))
    total, only_first, only_second = len(truth), pairs[True, False], pairs[False, True]
    if not total:
        raise ValueError("two prediction vectors without examples cannot be compared")
    chances = np.array([only_first, only_second, total - only_first - only_second]) / total
    drawn = np.random.default_rng(seed).multinomial(total, chances, size=draws)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / total, [2.5, 97.5])
    difference = (only_second - only_first) / total
    p_value = mcnemar(only_first, only_second)
    return Paired(difference, float(low), float(high), p_value, only_first, only_second)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: the discordant examples against a fair coin."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    term, tail = 1, 1
    for index in range(fewer):
        term = term * (total - index) // (index + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)
