"""95 % intervals of any figure by the bootstrap over images (scipy's, percentiles)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from masp.evaluation.metrics import Interval

Rows = Int[np.ndarray, "draws images"]
"""In every row the numbers of the images that one draw picked."""

Figures = Float[np.ndarray, "figures draws"]

_TOGETHER = 2_000_000  # picked images at a time: 16 MB


@dataclass(frozen=True)
class BootstrapSamples:
    """How often images are drawn with replacement, and the seed of the draws."""

    count: int = 1000
    seed: int = 0


def bootstrap(
    images: int, figures: Callable[[Rows], Figures], draws: BootstrapSamples | None = None, biased: Collection[int] = ()
) -> tuple[Interval, ...]:
    """Every figure with its interval; all figures are taken from the same draws.

    Args:
        images: how many there are.
        figures: computes the figures of each draw.
        draws: how many, with which seed.
        biased: numbers of figures that draws exaggerate, since noise can only add to them. Their percentiles are moved
            by as much as the mean of the draws lies beside the figure, so that the interval lies around it; at least 0.
    """
    from scipy.stats import bootstrap as drawn

    everything = np.arange(images)
    values = figures(everything[None])[:, 0].tolist()
    if images < 2:  # nothing to draw from
        return tuple(Interval(value, value, value) for value in values)
    draws = draws or BootstrapSamples()

    def statistic(rows: Int[np.ndarray, "*draws images"], axis: int) -> Float[np.ndarray, "figures *draws"]:
        return figures(rows) if rows.ndim > 1 else figures(rows[None])[:, 0]

    found = drawn(
        (everything,),
        statistic,
        n_resamples=draws.count,
        batch=max(1, _TOGETHER // images),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(draws.seed),
    )
    low, high = (np.atleast_1d(end).copy() for end in found.confidence_interval)
    for number in biased:
        shift = values[number] - found.bootstrap_distribution[number].mean()
        low[number], high[number] = max(0.0, low[number] + shift), max(0.0, high[number] + shift)
    return tuple(Interval(*ends) for ends in zip(values, low.tolist(), high.tolist(), strict=True))


def means_of(columns: Float[np.ndarray, "images columns"], rows: Rows) -> Float[np.ndarray, "draws columns"]:
    """Mean of every column over the images of each draw."""
    return _times_drawn(rows, len(columns)) @ columns / rows.shape[1]


def _times_drawn(rows: Rows, images: int) -> Float[np.ndarray, "draws images"]:
    """How often each draw picked each image."""
    return np.stack([np.bincount(row, minlength=images) for row in rows]).astype(float)
