"""What a run has trained on is never taken for a test, however the data set would be divided by default."""

import json
import logging
import shutil
from dataclasses import replace

import pytest

import tiny
from masp.adapters import DataRecord, load_adapter, save_adapter
from masp.data.readers import open_dataset
from masp.data.splits import write_split
from masp.evaluation.division import as_trained
from small_adapters import LABELS, write_adapter


@pytest.fixture
def folder(tmp_path):
    """A data set without splits, and a run that divided it in its own way."""
    for number in range(12):
        home = tmp_path / "data" / LABELS[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        tiny.picture(28, 56, seed=number).save(home / f"{number}.png")
    dataset = open_dataset(tmp_path / "data")
    records = dataset.records
    divided = replace(dataset, splits={"train": records[:5], "val": (), "test": records[5:]})
    write_adapter(tmp_path / "run" / "adapter")
    adapter = load_adapter(tmp_path / "run", tiny.backbone())
    known = DataRecord(name="data", fingerprint=divided.fingerprint(), images={"train": 5})
    info = adapter.info.model_copy(update={"data": {"prompt": known}})
    save_adapter(tmp_path / "run" / "adapter", info, adapter.aspects, adapter.prompt)
    write_split(tmp_path / "run" / "splits.json", divided)
    return tmp_path


def test_the_division_of_the_run_is_used(folder):
    dataset = open_dataset(folder / "data")
    found = as_trained(dataset, folder / "run")
    assert {name: len(records) for name, records in found.splits.items()} == {"train": 5, "val": 0, "test": 7}
    assert found.split_by == "run"
    assert as_trained(found, folder / "run") is found  # divided like this it is known


def test_a_published_division_is_left_alone(folder):
    dataset = replace(open_dataset(folder / "data"), split_by="published")
    assert as_trained(dataset, folder / "run") is dataset


def test_another_data_set_of_the_same_names_is_left_alone_with_a_warning(folder, caplog):
    shutil.copy(folder / "data" / "joy" / "0.png", folder / "data" / "fear" / "1.png")  # other content, other size
    dataset = open_dataset(folder / "data")
    assert as_trained(dataset, folder / "run") is dataset
    assert "may hold images it was trained on" in caplog.text


def test_without_the_file_of_the_run_there_is_a_warning(folder, caplog):
    (folder / "run" / "splits.json").unlink()
    dataset = open_dataset(folder / "data")
    assert as_trained(dataset, folder / "run") is dataset
    assert "may hold images it was trained on" in caplog.text


def test_a_strange_data_set_needs_no_warning(folder, caplog):
    (folder / "data").rename(folder / "other")
    for number in range(3):
        (folder / "other" / LABELS[number] / f"{number}.png").unlink()
    dataset = open_dataset(folder / "other")
    assert as_trained(dataset, folder / "run") is dataset
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_damaged_file_of_splits_does_not_stop_an_evaluation(folder, caplog):
    (folder / "run" / "splits.json").write_text(json.dumps({"format": 99}))
    dataset = open_dataset(folder / "data")
    assert as_trained(dataset, folder / "run") is dataset
