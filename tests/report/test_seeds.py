"""Figures over seeds, each against a number worked out by hand."""

import pytest

from masp.evaluation.metrics import Interval
from masp.evaluation.result import Bin, RiskCoverage
from masp.report.load_results import Figure, mean_curve, over_seeds, pooled


def test_seeds_become_mean_and_standard_deviation():
    found = over_seeds([Interval(0.5, 0.4, 0.6), Interval(0.7, 0.6, 0.8), Interval(0.9, 0.8, 1.0)])
    assert found.value == pytest.approx(0.7)
    assert found.sd == pytest.approx(0.2)
    assert found.low is None
    assert over_seeds([Interval(0.5, 0.4, 0.6)]) == Figure(0.5, 0.4, 0.6)
    assert over_seeds([0.5]) == Figure(0.5)


def test_a_figure_that_one_seed_lacks_is_not_known():
    assert over_seeds([0.5, None]) is None
    assert over_seeds([]) is None


def test_bins_of_all_seeds_are_weighted_by_their_images():
    first = (Bin(0.0, 0, 0.0, 0.0), Bin(0.5, 1, 0.6, 1.0))
    second = (Bin(0.0, 2, 0.25, 0.5), Bin(0.5, 3, 0.8, 1 / 3))
    low, high = pooled([first, second])
    assert (low.low, low.high, low.images, low.confidence, low.accuracy.value) == (0.0, 0.5, 2, 0.25, 0.5)
    assert (high.low, high.high, high.images) == (0.5, 1.0, 4)
    assert high.confidence == pytest.approx((0.6 + 3 * 0.8) / 4)
    assert high.accuracy.value == pytest.approx(2 / 4)


def test_the_mean_curve_lies_between_the_seeds():
    share = Interval(0.25, 0.0, 1.0)
    curve = mean_curve(
        [RiskCoverage(share, (0.5, 1.0), (0.0, 0.5)), RiskCoverage(Interval(0.75, 0.0, 1.0), (0.5, 1.0), (0.5, 1.0))]
    )
    assert (curve.coverage, curve.risk, curve.area) == ((0.5, 1.0), (0.25, 0.75), 0.5)
    assert curve.at(0.75) == pytest.approx(0.5)


def test_a_long_curve_is_drawn_through_few_points():
    steps = tuple((n + 1) / 5000 for n in range(5000))
    curve = mean_curve([RiskCoverage(Interval(0.5, 0.5, 0.5), steps, steps)])
    assert len(curve.coverage) <= 200
    assert (curve.coverage[0], curve.coverage[-1]) == (1 / 5000, 1.0)
