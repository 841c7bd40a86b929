"""How many images the commands read at a time, in how many threads and how large: as asked, or refused."""

import json

import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from masp.data.prefetch import prefetch
from masp.data.readers.open_dataset import open_dataset
from masp.evaluation import predict_split as processes
from masp.evaluation.runner import evaluate
from masp.predictor import Masp


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an adapter and labelled images."""
    folder = tmp_path_factory.mktemp("reading")
    write_adapter(folder / "adapter")
    for number, label in enumerate(LABELS):
        (folder / "data" / "test" / label).mkdir(parents=True)
        tiny.picture(84, 112, seed=number).save(folder / "data" / "test" / label / f"{number}.png")
    return folder


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluate_reads_with_as_many_threads_as_asked(masp, home, monkeypatch, workers):
    asked = []

    def noted(paths, batches, loading):
        asked.append(loading.workers)
        return read(paths, batches, loading)

    read = processes.prefetch_batches
    monkeypatch.setattr(processes, "prefetch_batches", noted)
    words = ("evaluate", "--adapter", home / "adapter", "--data", home / "data", f"data.workers={workers}")
    code, _, err = masp(*words)
    assert code == 0, err
    assert asked == [workers]


@pytest.mark.parametrize("workers", [0, 3])
def test_predict_reads_with_as_many_threads_as_asked(masp, home, monkeypatch, workers):
    asked = []

    def noted(paths, preprocess, batch_size, threads, longest_side, **more):
        asked.append((batch_size, threads))
        return prefetch(paths, preprocess, batch_size, threads, longest_side, **more)

    monkeypatch.setattr("masp.predictor.prefetch", noted)
    words = ("predict", home / "data", "--adapter", home / "adapter", "--json", "--no-explain", "--batch-size", 2)
    plain = masp(*words)
    code, out, err = masp(*words, "--workers", workers)
    assert code == 0, err
    assert asked == [(2, 2), (2, workers)]
    assert out == plain[1]
    assert masp(*words, "--workers", -1)[0] == 2


def test_a_size_that_the_adapter_does_not_have_is_refused(masp, home):
    trained = json.loads((home / "adapter" / "adapter.json").read_text())["longest_side"] or "null"
    words = ("evaluate", "--adapter", home / "adapter", "--data", home / "data")
    code, out, err = masp(*words, "data.longest_side=77")
    assert (code, out) == (2, "")
    assert f"data.longest_side=77; expected {trained}, the size that the adapter was trained with" in err
    assert "Leave it out" in err
    code, _, err = masp(*words, f"data.longest_side={trained}")
    assert code == 0, err


def test_a_measurement_has_one_name_in_python_and_on_the_command_line(masp, home, tmp_path):
    code, _, err = masp("evaluate", "--adapter", home / "adapter", "--data", home / "data", "--out", tmp_path / "a")
    assert code == 0, err
    found = evaluate(Masp.from_pretrained(home / "adapter"), open_dataset(home / "data"), out=tmp_path / "b")
    asked = json.loads((tmp_path / "a" / "summary.json").read_text())["provenance"]
    assert (asked["run"], asked["batch_size"]) == (found.provenance["run"], 64)
    assert (tmp_path / "a" / "predictions.jsonl").read_bytes() == (tmp_path / "b" / "predictions.jsonl").read_bytes()
