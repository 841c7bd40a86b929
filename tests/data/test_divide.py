"""`masp data split`, and divisions that are read from a file."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from fixtures.pictures import emoset, emotion6, put, put_json, tree
from masp.core.config import load_config
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset


@pytest.fixture
def run(masp):
    """Runs the command: (exit code, stdout, stderr)."""
    return lambda *words: masp("data", "split", *words)


def opened(path: Path, *changes: str) -> Dataset:
    return open_dataset(load_config(None, [f"data.path={path}", *changes]).data)


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {
        split: sorted(record.path.relative_to(dataset.root).as_posix() for record in records)
        for split, records in dataset.splits.items()
    }


def test_a_division_is_written_and_used_again(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "data", {"joy": 20, "fear": 40})
    code, out, err = run(root, "--out", tmp_path / "split.json", "--seed", 7)
    assert code == 0
    assert [line.split() for line in out.splitlines()][1:] == [
        ["fear", "32", "2", "6"],
        ["joy", "16", "1", "3"],
        ["total", "48", "3", "9"],
    ]
    assert "divided by content, seed 7" in err
    again = opened(root, f"data.splits.file={tmp_path / 'split.json'}")
    assert again.split_by == "file"
    assert names(again) == names(opened(root, "data.splits.seed=7")) != names(opened(root))
    assert json.loads((tmp_path / "split.json").read_text())["split_by"] == "content"


def test_shares_of_the_user_and_of_the_paper(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "data", {"joy": 20, "fear": 20})
    shares = ["data.splits.train=0.5", "data.splits.val=0.25", "data.splits.test=0.25"]
    assert "total     20   10    10" in run(root, "--out", tmp_path / "a.json", *shares)[1]
    assert "total     30    2     8" in run(root, "--out", tmp_path / "b.json", "--kind", "paper-like")[1]
    rows = [f"{label}/{n}.jpg 1 1 1 0 0 0 0 0 0" for label in ("joy", "fear") for n in range(20)]
    six = emotion6(tmp_path / "six", rows)
    assert "total     26    2    12" in run(six, "--out", tmp_path / "c.json", "--kind", "paper-like")[1]


def test_a_division_is_the_same_wherever_the_files_lie(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "a" / "data", {"joy": 11, "fear": 13})
    shutil.copytree(root, tmp_path / "b" / "data")
    for place in ("a", "b"):
        assert run(tmp_path / place / "data", "--out", tmp_path / f"{place}.json")[0] == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_published_division_is_only_replaced_in_the_file(tmp_path: Path, run) -> None:
    for split, first in (("train", 0), ("test", 100)):
        tree(tmp_path / "data" / split, {"joy": 10, "fear": 10}, first)
    before = sorted(path.as_posix() for path in (tmp_path / "data").rglob("*"))
    assert "total     32    2     6" in run(tmp_path / "data", "--out", tmp_path / "split.json")[1]
    assert sorted(path.as_posix() for path in (tmp_path / "data").rglob("*")) == before
    assert len(opened(tmp_path / "data").split("train")) == 20


def test_tables_and_folders(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "data", {"joy": 20, "a, b": 20})
    run(root, "--out", tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "split"]
    assert len(rows) == 40
    assert {row[1] for row in rows} == {"joy", "a, b"}
    run(root, "--out", tmp_path / "divided")
    assert sorted(path.name for path in (tmp_path / "divided").iterdir()) == [
        *("split.json", "test.csv", "train.csv", "val.csv"),
    ]
    assert len((tmp_path / "divided" / "test.csv").read_text().splitlines()) == 1 + 6
    (root / "again.csv").write_bytes((tmp_path / "all.csv").read_bytes())
    assert names(opened(root / "again.csv")) == names(opened(root))


def test_nothing_else_is_written_over(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "data", {"joy": 20, "fear": 20})
    file = tmp_path / "split.json"
    assert run(root, "--out", file)[0] == 0
    written = file.read_bytes()
    assert run(root, "--out", file)[0] == 0  # the same once more
    code, _, err = run(root, "--out", file, "--seed", 1)
    assert code == 1
    assert "is there already and holds something else" in err
    assert file.read_bytes() == written
    code, _, err = run(root, "--out", root / "split.json")
    assert code == 2
    assert "lies inside the data set" in err
    code, _, err = run(root, root, "--out", tmp_path / "x.json")
    assert code == 2
    assert "2 data sets are named; expected one" in err


def test_what_a_file_does_not_name_is_left_out(tmp_path: Path, run, caplog: pytest.LogCaptureFixture) -> None:
    root, file = tree(tmp_path / "data", {"joy": 20, "fear": 20}), tmp_path / "split.json"
    run(root, "--out", file)
    put(root / "joy" / "new.png", 999)
    dataset = opened(root, f"data.splits.file={file}")
    assert len(dataset.records) == 40
    assert "but 1, which are left out" in caplog.text
    (root / "joy" / "3.png").unlink()
    with pytest.raises(DataError, match=r"names joy/3\.png, which .*data does not have"):
        opened(root, f"data.splits.file={file}")


def without_labels(root: Path, bare: int) -> Path:
    """Ten images listed in EmoSet's layout, of which the first ones have no label."""
    emoset(root, {"train": [("awe" if number % 2 else "fear", {}) for number in range(10)]})
    rows = json.loads((root / "train.json").read_text())
    put_json(root / "train.json", [[None if number < bare else row[0], *row[1:]] for number, row in enumerate(rows)])
    return root


def test_without_any_label_there_is_nothing_to_divide_alike(tmp_path: Path, run) -> None:
    code, out, err = run(without_labels(tmp_path / "data", 10), "--out", tmp_path / "split.json")
    assert (code, out) == (1, "")
    assert "none of 10 images in" in err
    assert "has a label; expected labels, each of which is divided alike. Name a labelled data set" in err
    assert not (tmp_path / "split.json").exists()


def test_pictures_without_a_label_among_others_are_counted(tmp_path: Path, run) -> None:
    halves = ["data.splits.train=0.5", "data.splits.val=0", "data.splits.test=0.5"]
    code, out, _ = run(without_labels(tmp_path / "data", 4), "--out", tmp_path / "split.json", *halves)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[-2] == ["(no", "label)", "2", "0", "2"]
    assert lines[-1] == ["total", "6", "0", "4"]  # three of each label are halved into 2 and 1
