"""What was measured can be read back from its two files, and nothing else can."""

import hashlib
import json
from dataclasses import replace

import pytest

from masp.core.errors import DataError
from masp.evaluation.metrics import ClassFigures, Interval
from masp.evaluation.result import (
    Bin,
    Calibrated,
    CalibrationFloor,
    Distribution,
    Evaluation,
    LabelledPrediction,
    ProbabilisticMetrics,
    RiskCoverage,
    SkippedImage,
    read_result,
    write_result,
)

SHARE = Interval(0.5, 0.25, 0.75)
BINS = (Bin(0.0, 0, 0.0, 0.0), Bin(0.5, 2, 0.9, 0.5))
ANSWERS = (
    LabelledPrediction("joy/0.png", "joy", "joy", {"joy": -0.1, "fear": -2.3521684610440907}),
    LabelledPrediction("fear/1.png", "fear", None, {"joy": -0.1, "fear": -2.3521684610440907}, "hm"),
)


def made_up(**changes):
    floor = CalibrationFloor(0.03125, 0.0078125)
    calibrated = Calibrated(1.5, "val", 3, False, SHARE, SHARE, SHARE, BINS, calibration_floor=floor)
    calibrated = replace(calibrated, temperature_interval=Interval(1.5, 1.25, 1.75))
    curve = RiskCoverage(SHARE, (0.5, 1.0), (0.0, 0.5))
    facts = {
        "system": "adapter",
        "dataset": "scenes",
        "split": "test",
        "mode": "score",
        "labels": ("joy", "fear"),
        "accuracy": SHARE,
        "accuracy_bootstrap": SHARE,
        "macro_f1": SHARE,
        "majority": SHARE,
        "classes": (ClassFigures("joy", 1.0, 1.0, 1.0, 1), ClassFigures("fear", 0.0, 0.0, 0.0, 1)),
        "confusion": ((1, 0, 0), (0, 0, 1)),
        "chances": ProbabilisticMetrics(2, None, SHARE, SHARE, SHARE, BINS, curve, calibrated, calibration_floor=floor),
        "distribution": Distribution(2, SHARE, SHARE, SHARE),
        "used": 2,
        "quarantined": (SkippedImage("joy/bad.png", "not an image"),),
        "unlabelled": 0,
        "unparsed": 1,
        "unanswered": 0,
        "answers": ANSWERS,
        "provenance": {"versions": {"masp": "1"}, "seed": None},
    }
    return Evaluation(**facts | changes)


def test_what_was_written_is_read_back_equal(tmp_path):
    found = made_up()
    write_result(tmp_path / "o", found)
    assert read_result(tmp_path / "o") == found
    assert read_result(tmp_path / "o" / "summary.json") == found
    (tmp_path / "o" / "predictions.jsonl").unlink()
    assert read_result(tmp_path / "o") == made_up(answers=())
    bare = made_up(chances=None, distribution=None, mode="generate")
    write_result(tmp_path / "bare", bare)
    assert read_result(tmp_path / "bare") == bare


def test_a_result_from_before_the_calibration_floor_is_read(tmp_path):
    write_result(tmp_path, made_up())
    file = tmp_path / "summary.json"
    content = json.loads(file.read_text())
    assert content["chances"].pop("calibration_floor") == {"value": 0.03125, "deviation": 0.0078125}
    assert content["chances"]["calibrated"].pop("calibration_floor") == {"value": 0.03125, "deviation": 0.0078125}
    assert content["chances"]["calibrated"].pop("temperature_interval") == {"value": 1.5, "low": 1.25, "high": 1.75}
    file.write_text(json.dumps(content))
    found = read_result(tmp_path).chances
    assert (found.calibration_floor, found.calibrated.calibration_floor) == (None, None)
    assert (found.calibration_error, found.calibrated.temperature_interval) == (SHARE, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "format 7; expected 1.*Install a newer masp"),
        ({"format": True}, "format True"),
        ({"accuracy": {"value": "much"}}, r"accuracy\.value: Input should be a valid number"),
        ({"mode": "guess"}, "mode: Input should be 'score' or 'generate'"),
        ({"used": 3}, "holds 2 answers; expected 3"),
    ],
)
def test_a_strange_result_is_refused(tmp_path, change, message):
    write_result(tmp_path, made_up())
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_result(tmp_path)


def test_predictions_of_another_run_are_refused(tmp_path):
    """A process may die after it wrote the predictions and before it wrote the summary."""
    write_result(tmp_path, made_up())
    summary = (tmp_path / "summary.json").read_bytes()
    predictions = (tmp_path / "predictions.jsonl").read_bytes()
    assert json.loads(summary)["predictions_sha256"] == hashlib.sha256(predictions).hexdigest()
    other = (replace(ANSWERS[0], predicted="fear"), ANSWERS[1])  # as many
    write_result(tmp_path, made_up(answers=other))
    (tmp_path / "summary.json").write_bytes(summary)
    with pytest.raises(DataError, match=r"predictions\.jsonl and summary\.json belong to two runs.*Measure it again"):
        read_result(tmp_path)
    (tmp_path / "predictions.jsonl").write_bytes(predictions)
    assert read_result(tmp_path) == made_up()


def test_a_result_from_before_the_hash_is_read(tmp_path):
    write_result(tmp_path, made_up())
    file = tmp_path / "summary.json"
    content = json.loads(file.read_text())
    del content["predictions_sha256"]
    file.write_text(json.dumps(content))
    assert read_result(tmp_path) == made_up()


def test_no_result_is_said_plainly(tmp_path):
    with pytest.raises(DataError, match=r"summary\.json cannot be read"):
        read_result(tmp_path)
    (tmp_path / "summary.json").write_text('{"accuracy": 1}')  # as it was before results had a format
    with pytest.raises(DataError, match="format None"):
        read_result(tmp_path)
