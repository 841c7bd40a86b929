"""An evaluation that is interrupted, in whatever way, goes on where it stopped and ends with the same bytes."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fixtures.scenes import ByBrightness, opened
from masp.baselines.base import SystemPrediction
from masp.core.errors import UsageError
from masp.data.records import Record
from masp.evaluation.predict_split import ENDING, Batching
from masp.evaluation.result import read_result
from masp.evaluation.runner import evaluate

PROGRAM = Path(__file__).parents[1] / "fixtures" / "evaluation_killed.py"
FILES = ("predictions.jsonl", "predictions.val.jsonl")


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stop_after(images):
    """Hears how many images were asked about, and ends the run there."""
    asked = 0

    def told(count):
        nonlocal asked
        asked += count
        if asked >= images:
            raise Stopped

    return told


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """What a run without interruption writes."""
    out = tmp_path_factory.mktemp("whole")
    measure(dataset, out)
    return [(out / name).read_bytes() for name in FILES]


def measure(dataset, out, system=None, batch_size=2, progress=None):
    batching = Batching(batch_size, progress=progress)
    return evaluate(system or ByBrightness(), dataset, batching=batching, out=out, calibrate=True)


def written(out):
    return [(out / name).read_bytes() for name in FILES]


def journals(out):
    return sorted(out.glob(f"*{ENDING}"))


@pytest.mark.parametrize("images", [1, 2, 5, 7, 8, 11, 12])
def test_a_run_goes_on_after_an_interruption(dataset, whole, tmp_path, images):
    with pytest.raises(Stopped):
        measure(dataset, tmp_path, progress=stop_after(images))
    assert not (tmp_path / "summary.json").exists()
    system, told = ByBrightness(), []
    found = measure(dataset, tmp_path, system, progress=told.append)
    assert system.asked == 12 - sum([2, 2, 2, 1, 2, 2, 1][: told_batches(images)])
    assert sum(told) == 12  # what was done before counts in the bar
    assert written(tmp_path) == whole
    assert journals(tmp_path) == []
    assert found == read_result(tmp_path)


def told_batches(images):
    """Batches that were on the disk when the progress was told for the first time of `images`."""
    sizes, total = [2, 2, 2, 1, 2, 2, 1], 0
    for number, size in enumerate(sizes, start=1):
        total += size
        if total >= images:
            return number
    raise AssertionError(images)


def test_a_killed_process_leaves_what_it_asked(dataset, whole, tmp_path):
    process = subprocess.run(
        [sys.executable, str(PROGRAM), str(dataset.root), str(tmp_path), "9"],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert len(journals(tmp_path)) == 2
    system = ByBrightness()
    measure(dataset, tmp_path, system)
    assert system.asked == 12 - 9
    assert written(tmp_path) == whole


def test_a_line_that_was_cut_anywhere_is_asked_again(dataset, whole, tmp_path):
    with pytest.raises(Stopped):
        measure(dataset, tmp_path, progress=stop_after(6))
    (journal,) = journals(tmp_path)
    content = journal.read_bytes()
    first, second = content.index(b"\n") + 1, content.index(b"\n", content.index(b"\n") + 1) + 1
    for end in (0, 1, first - 1, first, first + 1, second - 1, second, second + 90, len(content) - 1, len(content)):
        journal.write_bytes(content[:end])
        system = ByBrightness()
        measure(dataset, tmp_path, system)
        kept = content[:end].count(b"\n") - 1
        assert system.asked == 12 - 2 * max(0, kept)
        assert written(tmp_path) == whole
    journal.write_bytes(content[:second] + bytes(300))  # a length that reached the disk before its content
    measure(dataset, tmp_path)
    assert written(tmp_path) == whole


@pytest.mark.parametrize("change", ["system", "batches", "data", "split"])
def test_what_another_run_left_is_never_mixed_in(dataset, whole, tmp_path, change):
    if change == "split":
        with pytest.raises(Stopped):
            evaluate(ByBrightness(), dataset, "val", batching=Batching(2, progress=stop_after(4)), out=tmp_path)
    else:
        system = ByBrightness("another") if change == "system" else None
        data = dataset if change != "data" else replace(dataset, labels=(*dataset.labels, "rage"))
        with pytest.raises(Stopped):
            measure(data, tmp_path, system, 3 if change == "batches" else 2, stop_after(6))
    assert len(journals(tmp_path)) == 1
    system = ByBrightness()
    evaluate(system, dataset, batching=Batching(2), out=tmp_path)
    assert system.asked == 7
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole[0]
    assert journals(tmp_path) == []


def test_a_journal_with_a_false_name_is_not_believed(dataset, whole, tmp_path):
    with pytest.raises(Stopped):
        measure(dataset, tmp_path, ByBrightness("another"), progress=stop_after(6))
    (other,) = journals(tmp_path)
    strange = other.read_bytes()
    with pytest.raises(Stopped):
        measure(dataset, tmp_path, progress=stop_after(2))
    (own,) = set(journals(tmp_path)) - {other}
    own.write_bytes(strange)
    system = ByBrightness()
    measure(dataset, tmp_path, system)
    assert system.asked == 12
    assert written(tmp_path) == whole


def test_a_split_in_another_order_is_asked_anew(dataset, tmp_path):
    with pytest.raises(Stopped):
        measure(dataset, tmp_path, progress=stop_after(6))
    turned = replace(dataset, splits={name: records[::-1] for name, records in dataset.splits.items()})
    assert turned.fingerprint() == dataset.fingerprint()
    found = measure(turned, tmp_path)
    assert [answer.image for answer in found.answers] == [f"{number}.png" for number in range(6, -1, -1)]


def test_images_that_cannot_be_read_stay_left_out(dataset, tmp_path):
    broken = dataset.root / "broken.png"
    broken.write_bytes(b"no image")
    records = (Record(broken, "joy"), *dataset.splits["test"])
    with_broken = replace(dataset, splits={**dataset.splits, "test": records})
    with pytest.raises(Stopped):
        measure(with_broken, tmp_path / "o", progress=stop_after(4))
    found = measure(with_broken, tmp_path / "o")
    assert [one.image for one in found.quarantined] == ["broken.png"]
    assert (found.used, found.provenance["seconds"] > 0) == (7, True)


def test_two_processes_do_not_write_one_evaluation(dataset, tmp_path):
    refused = []

    def again(_):
        if not refused:
            with pytest.raises(UsageError, match="another process is writing the same evaluation") as error:
                measure(dataset, tmp_path)
            refused.append(error)

    measure(dataset, tmp_path, progress=again)
    assert len(refused) == 1


def test_a_temperature_is_fitted_on_val(dataset, tmp_path):
    found = measure(dataset, tmp_path)
    assert (found.chances.calibrated.split, found.chances.calibrated.images) == ("val", 5)
    assert found.provenance["system"] == {"system": "by brightness", "trained": 0, "question": None}
    assert found.system == "by brightness"
    alone = evaluate(ByBrightness(), dataset, batching=Batching(2), out=tmp_path)
    assert alone.chances.calibrated is None
    assert not (tmp_path / "predictions.val.jsonl").exists()
    on_val = evaluate(ByBrightness(), dataset, "val", calibrate=True)  # never on what is measured
    assert on_val.chances.calibrated is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (SystemPrediction("rage"), "names 'rage' for 0.png; expected one of joy, fear, awe"),
        (SystemPrediction("joy", {"joy": 0.0}), "gives 0.png the log-probabilities"),
        (SystemPrediction("joy", {"joy": -1.0, "fear": -1.0, "awe": -0.1}), "normalised"),
        (SystemPrediction("joy", {"joy": float("nan"), "fear": -1.0, "awe": -1.0}), "normalised"),
    ],
)
def test_a_system_that_answers_nonsense_is_refused(dataset, said, message):
    system = ByBrightness()
    system.predict = lambda visual: [said] * len(visual)
    with pytest.raises(UsageError, match=message):
        evaluate(system, dataset)


def test_no_probability_at_all_is_a_small_number(dataset, tmp_path):
    system = ByBrightness()
    logs = {"joy": 0.0, "fear": -float("inf"), "awe": -float("inf")}
    system.predict = lambda visual: [SystemPrediction("joy", logs)] * len(visual)
    found = evaluate(system, dataset, out=tmp_path)
    row = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert row["log_probabilities"] == {"joy": 0.0, "fear": -708.0, "awe": -708.0}
    assert found.chances.brier.value == pytest.approx(2 * 4 / 7)
