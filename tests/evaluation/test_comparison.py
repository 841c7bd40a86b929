"""Two systems on the same images, and one over seeds, against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest

from masp.core.errors import DataError, UsageError
from masp.evaluation.compute_metrics import ResultContext, compare_results, measured, over_seeds
from masp.evaluation.metrics import BootstrapSamples
from masp.evaluation.result import LabelledPrediction

LABELS = ("joy", "fear")


def result(said, truth="jjjjffff", name="s", fingerprint="0", shuffled=False, sure=None):
    """A result with one answer a letter; "-" names no label."""
    words = {"j": "joy", "f": "fear", "-": None}
    logs = None if sure is None else {"joy": sure, "fear": -0.5}
    rows = [
        LabelledPrediction(f"{n}.png", words[t], words[s], logs)
        for n, (t, s) in enumerate(zip(truth, said, strict=True))
    ]
    about = ResultContext(name, "d", "test", "score", LABELS, {"data": {"fingerprint": fingerprint}})
    return measured(about, rows[::-1] if shuffled else rows, samples=BootstrapSamples(20))


def test_differences_are_counted_image_by_image():
    first, second = result("jjffjjjj"), result("jjjjfff-", shuffled=True)  # 2 and 7 right; the last wrong in both
    found = compare_results(first, second)
    assert (found.only_first, found.only_second) == (0, 5)
    assert found.difference == 5 / 8
    assert found.p_value == pytest.approx(2 / 2**5)
    assert found.low <= found.difference <= found.high
    back = compare_results(second, first)
    assert (back.difference, back.only_first) == (-5 / 8, 5)


def test_only_the_same_images_can_be_compared():
    with pytest.raises(DataError, match="share 7 of 8 and 7 images"):
        compare_results(result("jjffjjjj"), result("jjffjjj", "jjjjfff"))
    with pytest.raises(DataError, match=r"7\.png has different labels"):
        compare_results(result("jjffjjjj"), result("jjffjjjj", "jjjjfffj"))
    with pytest.raises(DataError, match="the result of bare has no predictions"):
        compare_results(result("jjffjjjj"), replace(result("jjffjjjj", name="bare"), answers=()))


def test_mean_and_deviation_over_seeds_by_hand():
    found = over_seeds([result("jjjjffff"), result("jjjjffjj"), result("jjjjffff")])  # 1, 3/4, 1
    assert found["accuracy"].mean == pytest.approx(11 / 12)
    assert found["accuracy"].deviation == pytest.approx((1 / 48) ** 0.5)  # (2·(1/12)² + (1/6)²) / 2
    assert found["accuracy"].values == (1, 3 / 4, 1)
    assert found["accuracy"].percent() == "91.7 ± 14.4 %"
    assert set(found) == {"accuracy", "macro_f1"}  # nobody gave probabilities
    alone = over_seeds([result("jjjjffjj")])["accuracy"]
    assert (alone.deviation, alone.percent()) == (None, "75.0 %")


def test_the_floor_of_the_calibration_error_stands_beside_it():
    one = result("jjjjffff", sure=math.log(1 - math.exp(-0.5)))
    found = over_seeds([one, one])
    assert found["calibration_floor"].mean == pytest.approx(one.chances.calibration_floor.value)
    assert "calibration_floor_scaled" not in found  # no temperature was fitted
    older = replace(one, chances=replace(one.chances, calibration_floor=None))
    assert "calibration_floor" not in over_seeds([one, older])
    assert "calibration_error" in over_seeds([one, older])


def test_seeds_of_different_data_do_not_mix():
    with pytest.raises(DataError, match="the same images and labels"):
        over_seeds([result("jjjjffff"), result("jjjjffff", fingerprint="1")])
    with pytest.raises(UsageError, match="no results"):
        over_seeds([])
