"""What a run has trained on is never taken for a test, however the data set would be divided by default."""

import json
import logging
import shutil
from dataclasses import replace

import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from masp.adapters import DataRecord, load_adapter, save_adapter
from masp.data.readers.open_dataset import open_dataset
from masp.data.splits import read_split, write_split
from masp.evaluation.runner import as_trained


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


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def described(folder, **data):
    """The run's adapter with other records of its stages, each the name and the fingerprint of its data set."""
    adapter = load_adapter(folder / "run", tiny.backbone())
    records = {
        stage: DataRecord(name=name, fingerprint=fingerprint, images={"train": 5})
        for stage, (name, fingerprint) in data.items()
    }
    info = adapter.info.model_copy(update={"data": records})
    save_adapter(folder / "run" / "adapter", info, adapter.aspects, adapter.prompt)


def test_a_published_division_that_the_run_did_not_use_gives_way(folder):
    """EmoSet after training with data.splits.kind=content or data.splits.file: its test split holds training images."""
    dataset = replace(open_dataset(folder / "data"), split_by="published")
    found = as_trained(dataset, folder / "run")
    assert found.split_by == "run"
    assert {name: len(records) for name, records in found.splits.items()} == {"train": 5, "val": 0, "test": 7}


def test_a_published_division_is_warned_of_where_that_of_the_run_is_lost(folder, caplog):
    (folder / "run" / "splits.json").unlink()
    dataset = replace(open_dataset(folder / "data"), split_by="published")
    assert as_trained(dataset, folder / "run") is dataset
    (message,) = warnings_of(caplog)
    assert "the adapter was trained on data, but divided in another way" in message


def test_a_published_division_that_was_trained_on_is_left_alone_in_silence(folder, caplog):
    dataset = replace(open_dataset(folder / "data"), split_by="published")
    described(folder, aspects=("data", dataset.fingerprint()), prompt=("data", dataset.fingerprint()))
    (folder / "run" / "splits.json").unlink()  # as an adapter from a hub comes
    assert as_trained(dataset, folder / "run") is dataset
    assert warnings_of(caplog) == []


def two_stages(folder, learned, held=()):
    """The prompt as the run says; the aspects learned from other images of the same data set, given by number."""
    dataset = open_dataset(folder / "data")
    records = sorted(dataset.records, key=lambda record: record.path.name)
    splits = {
        "train": tuple(records[number] for number in learned),
        "val": tuple(records[number] for number in held),
        "test": tuple(record for number, record in enumerate(records) if number not in {*learned, *held}),
    }
    run = replace(dataset, splits=read_split(folder / "run" / "splits.json", dataset))
    numbers = {name: [records.index(record) for record in chosen] for name, chosen in run.splits.items()}
    other = replace(dataset, splits=splits)
    described(folder, aspects=("data", other.fingerprint()), prompt=("data", run.fingerprint()))
    return other, numbers


def numbers_of_the_run(folder):
    return two_stages(folder, ())[1]


def test_the_last_stage_decides_and_its_aspects_are_warned_of(folder, caplog):
    """Aspects trained with the usual division, the prompt with another: the usual one is not the prompt's."""
    dataset = open_dataset(folder / "data")
    run = replace(dataset, splits=read_split(folder / "run" / "splits.json", dataset))
    described(folder, aspects=("data", dataset.fingerprint()), prompt=("data", run.fingerprint()))
    found = as_trained(dataset, folder / "run")
    assert {name: len(records) for name, records in found.splits.items()} == {"train": 5, "val": 0, "test": 7}
    (message,) = warnings_of(caplog)
    assert "the aspects of the adapter were trained on data, but divided in another way" in message


def test_aspects_whose_division_is_known_are_warned_of_only_for_tests(folder, caplog):
    numbers = numbers_of_the_run(folder)
    other, _ = two_stages(folder, learned=numbers["train"][:3])  # fewer images, none of them a test
    write_split(folder / "run" / "splits.aspects.json", other)
    found = as_trained(open_dataset(folder / "data"), folder / "run")
    assert found.split_by == "run"
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_aspects_that_saw_a_test_image_are_warned_of(folder, caplog, split):
    numbers = numbers_of_the_run(folder)
    seen = {"learned": numbers["train"][:3], "held": ()}
    seen["learned" if split == "train" else "held"] = [*seen["learned"], numbers["test"][0]]
    other, _ = two_stages(folder, **seen)
    write_split(folder / "run" / "splits.aspects.json", other)
    as_trained(open_dataset(folder / "data"), folder / "run")
    (message,) = warnings_of(caplog)
    assert "this split may hold images that they were trained on" in message


def test_a_file_about_other_pictures_proves_nothing(folder, caplog):
    numbers = numbers_of_the_run(folder)
    other, _ = two_stages(folder, learned=numbers["train"][:3])
    file = folder / "run" / "splits.aspects.json"
    write_split(file, other)
    content = json.loads(file.read_text())
    content["splits"]["test"][0][0] = "fear/renamed.png"
    file.write_text(json.dumps(content))
    as_trained(open_dataset(folder / "data"), folder / "run")
    assert len(warnings_of(caplog)) == 1


def test_aspects_of_another_data_set_need_no_warning(folder, caplog):
    dataset = open_dataset(folder / "data")
    run = replace(dataset, splits=read_split(folder / "run" / "splits.json", dataset))
    described(folder, aspects=("EmoSet", "1" * 64), prompt=("data", run.fingerprint()))
    assert as_trained(dataset, folder / "run").split_by == "run"
    assert warnings_of(caplog) == []


def test_an_adapter_that_names_no_data_changes_nothing(folder, caplog):
    described(folder)
    dataset = open_dataset(folder / "data")
    assert as_trained(dataset, folder / "run") is dataset
    assert warnings_of(caplog) == []


def test_a_strange_data_set_needs_no_warning(folder, caplog):
    (folder / "data").rename(folder / "other")
    for number in range(3):
        (folder / "other" / LABELS[number] / f"{number}.png").unlink()
    dataset = open_dataset(folder / "other")
    assert as_trained(dataset, folder / "run") is dataset
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("lost", ["the file", "its content", "other images"])
def test_where_the_division_of_the_run_is_of_no_use_there_is_a_warning(folder, caplog, lost):
    """The file is gone, or damaged; or the images of the same names have another content and size."""
    file = folder / "run" / "splits.json"
    if lost == "other images":
        shutil.copy(folder / "data" / "joy" / "0.png", folder / "data" / "fear" / "1.png")
    else:
        file.unlink() if lost == "the file" else file.write_text(json.dumps({"format": 99}))
    dataset = open_dataset(folder / "data")
    assert as_trained(dataset, folder / "run") is dataset
    assert "may hold images it was trained on" in caplog.text
