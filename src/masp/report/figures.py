"""Figures that a comparison draws: calibration in bins, risk over coverage, and paired gains over several seeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masp.evaluation.metrics import Interval, share

BINS = 10
"""Bins of a reliability diagram; the expected calibration error has its own number of them."""
POINTS = 200
"""A curve is drawn through at most this many points, whatever the number of images."""
DRAWS = 10_000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Bin:
    """Images of one bin of confidence: its place from the left, their mean confidence, and how many were right."""

    place: int
    images: int
    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class Reliability:
    """How confidence and accuracy go together; `scaled` is after temperature scaling, empty where none was fitted."""

    measured: tuple[Bin, ...]
    scaled: tuple[Bin, ...] = ()
    bins: int = BINS


@dataclass(frozen=True)
class Coverage:
    """The error of the images that are kept when the least certain ones are declined.

    Attributes:
        place: of the system among all, which chooses its line.
        coverage: shares of the images that are kept, rising to 1.
        risk: share of wrong answers among those kept.
        area: mean of the risk over all coverages; a system that knew its mistakes would have less.
    """

    place: int
    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float

    def at(self, kept: float) -> float:
        """The risk where this share of the images is kept."""
        return float(np.interp(kept, self.coverage, self.risk))


@dataclass(frozen=True)
class Difference:
    """How much more of the same images one system gets right than another: the share and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """What an aspect brings, in accuracy on the same images; `meaning` says which two systems were compared."""

    aspect: str
    points: Difference
    images: int
    meaning: str


def binned(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> tuple[Bin, ...]:
    """The bins that hold images, from the left; a confidence of 1 belongs to the last."""
    sure, hits = np.asarray(confidences, dtype=float), np.asarray(right, dtype=bool)
    places = np.minimum((sure * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        inside = places == place
        images = int(inside.sum())
        if images:
            found.append(Bin(place, images, float(sure[inside].mean()), share(int(hits[inside].sum()), images)))
    return tuple(found)


def risk_over_coverage(confidences: Sequence[float], right: Sequence[bool], place: int = 0) -> Coverage:
    """Risk when the surest 1, 2, 3 … images are kept; images of one confidence are kept or declined together."""
    sure, wrong = np.asarray(confidences, dtype=float), ~np.asarray(right, dtype=bool)
    order = np.argsort(-sure, kind="stable")
    sure, wrong = sure[order], wrong[order].cumsum()
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    kept = (last + 1) / len(sure)
    risk = wrong[last] / (last + 1)
    area = float(np.sum(np.diff(kept, prepend=0.0) * risk))
    if len(kept) > POINTS:
        shown = np.unique(np.linspace(0, len(kept) - 1, POINTS).round().astype(int))
        kept, risk = kept[shown], risk[shown]
    return Coverage(place, tuple(kept.tolist()), tuple(risk.tolist()), area)


def difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Mean of `second` minus `first`, image by image, with the percentile bootstrap over images.

    An image's number is the share of a system's seeds that got it right, so there are few different differences.
    Drawing images with replacement is then drawing how many have each of them.
    """
    counts = Counter(round(b - a, 9) for a, b in zip(first, second, strict=True))
    if not counts:
        raise ValueError("two systems without images cannot be compared")
    values = np.array(sorted(counts))
    shares = np.array([counts[value] for value in values.tolist()]) / len(first)
    drawn = np.random.default_rng(seed).multinomial(len(first), shares, size=DRAWS) @ values / len(first)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(shares @ values), float(low), float(high))
