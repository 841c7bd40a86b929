"""Figures over the seeds of a system."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masp.evaluation.metrics import Interval, share
from masp.evaluation.result import Bin, RiskCoverage
from masp.evaluation.seed_stats import spread_of

POINTS = 200
"""A curve is drawn through at most this many points, whatever the number of images."""


@dataclass(frozen=True)
class Figure:
    """A figure of a system: with its interval where one seed was measured, with `sd` over several."""

    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class PooledBin:
    """Answers of like confidence, of all seeds: from `low` on, with their mean confidence and accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class CurvePlot:
    """Risk over coverage, the mean of the seeds; `area` is the mean risk over all coverages."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float

    def at(self, kept: float) -> float:
        """The risk where this share of the images is answered."""
        return float(np.interp(kept, self.coverage, self.risk))


def over_seeds(values: Sequence[Interval | float | None]) -> Figure | None:
    """One figure from those of all seeds; None where a seed lacks it."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        one = known[0]
        return Figure(one.value, one.low, one.high) if isinstance(one, Interval) else Figure(one)
    plain = [value.value if isinstance(value, Interval) else value for value in known]
    found = spread_of(plain)
    return Figure(found.mean, sd=found.deviation)


def pooled(runs: Sequence[Sequence[Bin]]) -> tuple[PooledBin, ...]:
    """The bins that hold answers, over all seeds; bins that lie in different places are not put together."""
    edges = sorted({one.low for bins in runs for one in bins})
    ends = [*edges[1:], 1.0]
    found = []
    for low, high in zip(edges, ends, strict=True):
        here = [one for bins in runs for one in bins if one.low == low and one.images]
        images = sum(one.images for one in here)
        if images:
            sure = sum(one.images * one.confidence for one in here) / images
            hits = sum(round(one.images * one.accuracy) for one in here)
            found.append(PooledBin(low, high, images, sure, share(hits, images)))
    return tuple(found)


def mean_curve(runs: Sequence[RiskCoverage]) -> CurvePlot:
    """The mean of the seeds' curves, drawn through a bounded number of points."""
    kept = np.unique(np.concatenate([run.coverage for run in runs]))
    if len(kept) > POINTS:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, POINTS).round().astype(int))]
    risk = np.mean([np.interp(kept, run.coverage, run.risk) for run in runs], axis=0)
    area = statistics.fmean(run.area.value for run in runs)
    return CurvePlot(tuple(kept.tolist()), tuple(risk.tolist()), area)
