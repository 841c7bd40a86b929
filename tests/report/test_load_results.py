"""Results find their place: seeds of one system, systems of one trial, and everything else refused."""

import json

import pytest

from fixtures.results import answers, result, written
from masp.core.errors import DataError
from masp.evaluation.metrics import Interval
from masp.evaluation.result import Bin, RiskCoverage
from masp.report.load_results import Figure, mean_curve, over_seeds, pooled, read_sources, trials

SAID = answers("jjjjffaa")


def seeded(seed, system="prompt", **about):
    return result(system, SAID, provenance={"seed": seed, "data": {"fingerprint": "f"}, **about})


def names(tmp_path, *found, given=""):
    words = [given + written(tmp_path / f"r{number}", one) for number, one in enumerate(found)]
    sources, _ = read_sources(words)
    return [(system.name, len(system.runs)) for trial in trials(sources) for system in trial.systems]


def test_seeds_of_one_system_stand_together(tmp_path):
    assert names(tmp_path, seeded(0), seeded(1), seeded(2, "other")) == [("prompt", 2), ("other", 1)]


def test_one_name_without_seeds_is_two_systems(tmp_path):
    assert names(tmp_path, seeded(None), seeded(None)) == [("prompt (r0)", 1), ("prompt (r1)", 1)]
    assert names(tmp_path, seeded(3), seeded(3)) == [("prompt (r0)", 1), ("prompt (r1)", 1)]


def test_other_aspects_are_another_system(tmp_path):
    with_scene = seeded(0, adapter={"aspects": ["scene"], "method": {}})
    without = seeded(1, adapter={"aspects": [], "method": {}})
    assert names(tmp_path, with_scene, without) == [("prompt (r0)", 1), ("prompt (r1)", 1)]


def test_other_conditions_of_training_are_another_system(tmp_path):
    def trained(seed, rate=0.1, steps=9, data="one"):
        training = {"prompt": {"learning_rate": rate, "steps": steps}}
        about = {"aspects": [], "method": {}, "seeds": {"prompt": seed}, "data": {"prompt": {"name": data}}}
        return seeded(seed, adapter={**about, "training": training})

    assert names(tmp_path / "same", trained(0), trained(1, steps=7)) == [("prompt", 2)]  # stopped earlier, not set so
    apart = [("prompt (r0)", 1), ("prompt (r1)", 1)]
    assert names(tmp_path / "rate", trained(0), trained(1, rate=0.2)) == apart
    assert names(tmp_path / "data", trained(0), trained(1, data="two")) == apart


def test_other_settings_are_another_system(tmp_path):
    def lora(seed, rank, over=1):
        told = {"settings": {"rank": rank, "seed": seed}, "tuned": {"settings": {"rank": over}}}
        return result("lora", SAID, provenance={"seed": seed, "system": told})

    assert names(tmp_path / "same", lora(0, 8), lora(1, 8)) == [("lora", 2)]
    assert names(tmp_path / "own", lora(0, 8), lora(1, 4)) == [("lora (r0)", 1), ("lora (r1)", 1)]
    assert names(tmp_path / "below", lora(0, 8), lora(1, 8, over=2)) == [("lora (r0)", 1), ("lora (r1)", 1)]


def test_a_name_in_front_decides(tmp_path):
    assert names(tmp_path, seeded(None), seeded(None, "other"), given="ours=") == [("ours", 2)]


def test_trials_differ_by_data_split_and_labels(tmp_path):
    places = [
        written(tmp_path / str(number), result("s", SAID, dataset=dataset, split=split))
        for number, (dataset, split) in enumerate([("a", "test"), ("b", "test"), ("a", "val"), ("a", "test")])
    ]
    sources, _ = read_sources(places)
    assert [(one.dataset, one.split, len(one.systems)) for one in trials(sources)] == [
        ("a", "test", 2), ("b", "test", 1), ("a", "val", 1),
    ]  # fmt: skip


def test_what_each_seed_said_of_the_images_that_all_answered(tmp_path):
    places = [
        written(tmp_path / str(seed), result("s", answers(said), provenance={"seed": seed}))
        for seed, said in enumerate(("jjjjffaa", "jjjff-a"))
    ]
    sources, _ = read_sources(places)
    (system,) = trials(sources)[0].systems
    first, second = system.said
    assert list(first) == list(second)
    assert list(first.values()) == ["joy", "joy", "joy", "joy", "fear", "fear", "awe"]
    assert list(second.values()) == ["joy", "joy", "joy", "fear", "fear", None, "awe"]
    assert ("awe/6.png", "awe") in first
    assert ("awe/7.png", "awe") not in first


def test_a_file_of_predictions_alone_is_refused(tmp_path):
    written(tmp_path / "r", seeded(0))
    with pytest.raises(DataError, match=r"predictions\.jsonl is a file of predictions.*masp evaluate --predictions"):
        read_sources([str(tmp_path / "r" / "predictions.jsonl")])
    with pytest.raises(DataError, match="cannot be read"):
        read_sources([str(tmp_path / "nowhere")])


def table():
    share = {"value": 0.413, "low": 0.4, "high": 0.43}
    paired = {"difference": 0.2, "low": 0.1, "high": 0.3, "p_value": 0.01, "only_first": 1, "only_second": 3}
    row = {"name": "V", "meaning": "alone", "accuracy": share, "macro_f1": 0.3}
    return {
        "rows": [row],
        "differences": [{"name": "V+S - V", "paired": paired}],
        "majority": share,
        "images": 7,
        "provenance": {"seed": 1},
    }


def test_table_2_is_read(tmp_path):
    file = tmp_path / "table2.json"
    file.write_text(json.dumps(table()))
    sources, (found,) = read_sources([str(file)])
    assert not sources
    assert (found.data.images, found.data.rows[0].accuracy.value, found.data.majority) == (7, 0.413, 0.413)
    assert found.data.differences[0].paired.points() == "+20.0 points [+10.0, +30.0]"


@pytest.mark.parametrize("broken", [{"rows": [{}]}, {"rows": 3}, {"images": None}, {"majority": 0.2}])
def test_a_damaged_table_is_refused(tmp_path, broken):
    file = tmp_path / "table2.json"
    file.write_text(json.dumps(table() | broken))
    with pytest.raises(DataError, match="is no table of rows"):
        read_sources([str(file)])


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
