"""Folder trees, what the settings choose, what is refused, and damage to any file of a data set."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.pictures import (
    MIKELS,
    ROWS,
    VOTES,
    abstract,
    artphoto,
    complaint,
    emoset,
    emotion6,
    fi,
    put,
    put_json,
    tree,
    votes,
)
from masp.core.config import load_config
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset, settings_for
from masp.data.records import Dataset, Record
from masp.data.validation.check import Depth, as_json, check, open_together


def labels_of(dataset: Dataset, split: str) -> list[str | None]:
    return [record.label for record in dataset.split(split)]


# --- the authors' re-arrangement and plain folders -----------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "emoset", "folder"])
def test_the_authors_arrangement_is_read_with_annotations(tmp_path: Path, layout: str) -> None:
    for split, seed in (("train", 0), ("test", 100)):
        tree(tmp_path / split, {"fear": 2, "awe": 3}, seed)
    put_json(tmp_path / "annotation" / "fear" / "0.json", {"brightness": 0.0, "emoji": {"cause": "scene"}})
    dataset = open_dataset(tmp_path, layout)
    assert (dataset.layout, dataset.split_by, list(dataset.splits)) == ("split folders", "published", ["train", "test"])
    assert labels_of(dataset, "train") == ["awe"] * 3 + ["fear"] * 2
    first = next(record for record in dataset.split("train") if record.label == "fear")
    assert first.annotations == {"brightness": "very low"}
    assert first.extra["emoji"] == {"cause": "scene"}
    assert dataset.split("train")[0].annotations == {}


def test_a_damaged_annotation_beside_folders_leaves_its_picture_out(tmp_path: Path) -> None:
    tree(tmp_path, {"fear": 3, "awe": 3})
    (put_json(tmp_path / "annotation" / "fear" / "1.json", 0)).write_text("{")
    dataset = open_dataset(tmp_path)
    assert len(dataset.records) == 5
    assert dataset.rejected[0].path == tmp_path / "fear" / "1.png"


def test_too_many_damaged_annotations_beside_folders_stop(tmp_path: Path) -> None:
    tree(tmp_path, {"fear": 3, "awe": 3})
    for number in (0, 1):
        (put_json(tmp_path / "annotation" / "fear" / f"{number}.json", 0)).write_text("{")
    assert "2 of 6 files cannot be used" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("train", "val", "test"), [("train", "val", "test"), ("Training", "valid", "testing"), ("train", "dev", "test")]
)
def test_split_folders_have_several_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    for place, split in enumerate((test, train, val)):
        tree(tmp_path / split, {"joy": 2 + place, "fear": 1}, 100 * place)
    dataset = open_dataset(tmp_path)
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 4, "val": 5, "test": 3}
    assert list(dataset.splits) == ["train", "val", "test"]


def test_a_plain_tree_has_labels_of_any_name(tmp_path: Path) -> None:
    names = ("très heureux", "漢字", "a_b c", "train")
    dataset = open_dataset(tree(tmp_path, dict.fromkeys(names, 3)))
    assert dataset.labels == tuple(sorted(names))
    assert (dataset.layout, dataset.split_by) == ("folder", "content")
    assert {record.path.parent.name for record in dataset.records} == set(names)


def test_labels_are_composed_unicode(tmp_path: Path) -> None:
    dataset = open_dataset(tree(tmp_path, {"e\N{COMBINING ACUTE ACCENT}mu": 2, "joy": 2}))
    assert dataset.labels == ("joy", "\N{LATIN SMALL LETTER E WITH ACUTE}mu")


def test_hidden_files_and_clutter_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, {"joy": 2, "fear": 2})
    (tmp_path / "joy" / "._0.png").write_bytes(b"junk")
    (tmp_path / "joy" / "notes.txt").write_bytes(b"junk")
    (tmp_path / "joy" / "scan.tif").write_bytes(b"junk")
    (tmp_path / "joy" / "UPPER.JPG").write_bytes((tmp_path / "joy" / "0.png").read_bytes())
    (tmp_path / ".cache" / "deep").mkdir(parents=True)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    dataset = open_dataset(tmp_path)
    assert len(dataset.records) == 5
    assert "ignored, as not named like images: 2 files (1 × .txt, 1 × .tif)" in caplog.text


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, {"joy": 11, "fear": 7})
    before, real = open_dataset(tmp_path), os.scandir

    @contextmanager
    def backwards(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with real(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)
    assert open_dataset(tmp_path).splits == before.splits


# --- splits asked for by settings ----------------------------------------------------------------------------------


def test_settings_choose_the_split(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("test", 100)):
        tree(tmp_path / split, {"fear": 10, "awe": 10}, seed)

    def sizes(*changes: str) -> dict[str, int]:
        data = load_config(None, [f"data.path={tmp_path}", *changes]).data
        return {name: len(records) for name, records in open_dataset(data).splits.items()}

    assert sizes() == {"train": 20, "test": 20}
    assert sizes("data.splits.kind=content") == {"train": 32, "val": 2, "test": 6}
    assert sizes("data.splits={kind: content, train: 0.5, val: 0.25, test: 0.25}") == {
        "train": 20,
        "val": 10,
        "test": 10,
    }
    assert sizes("data.splits.kind=paper-like") == {"train": 30, "val": 2, "test": 8}


def test_shares_that_a_published_split_makes_useless_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path / "train", {"fear": 2, "awe": 2})
    open_dataset(load_config(None, [f"data.path={tmp_path}"]).data)
    assert "published" not in caplog.text
    open_dataset(load_config(None, [f"data.path={tmp_path}", "data.splits.seed=3"]).data)
    assert "shares and seed need data.splits.kind=content" in caplog.text


def test_the_paper_like_split_of_emotion6_tests_on_30_percent(tmp_path: Path) -> None:
    rows = [f"{label}/{n}.jpg 1 1 1 0 0 0 0 0 0" for label in ("joy", "fear") for n in range(20)]
    data = load_config(None, [f"data.path={emotion6(tmp_path, rows)}", "data.splits.kind=paper-like"]).data
    dataset = open_dataset(data)
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 26, "val": 2, "test": 12}
    assert dataset.split_by == "paper-like"


# --- refusals ------------------------------------------------------------------------------------------------------


TWO = {"joy": 2, "fear": 2}
REFUSED = {
    "nothing": (lambda root: None, "holds no images; expected a data set in a known layout"),
    "a text": (lambda root: (root / "text.txt").write_text("hello"), "holds no images"),
    "images alone": (lambda root: put(root / "a.png"), "holds images but no class folders"),
    "one class": (lambda root: tree(root, {"joy": 3}), "holds one class only (joy); expected at least two classes"),
    "one class of EmoSet": (lambda root: emoset(root, {"train": [("fear", {})] * 2}), "one class only (fear)"),
    "an empty list": (lambda root: emoset(root, {"train": []}), "expected images in the layout emoset"),
    "labels alike": (lambda root: tree(root, {"joy": 2, "Joy.": 2}), "'Joy.' and 'joy' are the same answer"),
    "a label that is not read": (lambda root: (tree(root, TWO), put(root / "awe" / "scan.TIF")), "but scan.TIF"),
    "a tree too deep": (lambda root: tree(root / "set", TWO), "Perhaps open "),
    "images and folders": (
        lambda root: (tree(root / "set", TWO), put(root / "set" / "a.png")),
        "holds images and also the folder fear",
    ),
    "images beside labels": (lambda root: (tree(root, TWO), put(root / "stray.png")), "(stray.png, …) beside its"),
    "images beside labels of a split": (
        lambda root: (tree(root / "train", TWO), put(root / "train" / "stray.png")),
        "(stray.png, …) beside its folders of labels",
    ),
    "splits and others": (
        lambda root: [tree(root / name, TWO) for name in ("train", "test", "extra")],
        "has folders of splits and also extra",
    ),
    "a split twice": (
        lambda root: [tree(root / name, TWO) for name in ("train", "val", "valid")],
        "are the same split; expected one folder each",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_data_set_is_refused(tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    make(tmp_path)
    assert message in complaint(tmp_path)


def test_a_file_and_an_unknown_layout_are_refused(tmp_path: Path) -> None:
    assert "is a file; expected the folder of a data set" in complaint(put(tmp_path / "a.png"))
    assert "unknown layout 'emoji'; expected auto, folder, emoset, emotion6" in complaint(tmp_path, "emoji")


def test_a_missing_folder_is_refused_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "Emotion6").mkdir()
    assert "cannot be read (No such file or directory). Did you mean 'Emotion6'?" in complaint(tmp_path / "Emotion66")
    assert "Check the path and the rights" in complaint(tmp_path / "zzz")
    assert "Check the path and the rights" in complaint(tmp_path / "zzz" / "yyy")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset("x" * 5000)


def test_settings_without_a_path_are_refused() -> None:
    with pytest.raises(DataError, match=r"no data set is named; expected a folder\. Set data\.path"):
        open_dataset(load_config().data)


def leftovers(folder: Path) -> int:
    """What systems and programmes leave in a folder, and how many of them."""
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (folder / name).write_bytes(b"junk")
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        put(folder / name / "copy.png")
    return 6


@pytest.mark.parametrize("layout", ["folder", "emotion6", "fi", "artphoto"])
def test_what_systems_leave_behind_is_passed_over_and_counted(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    makers = {
        "folder": lambda root: tree(root, {"joy": 3, "fear": 3}),
        "emotion6": lambda root: emotion6(root, VOTES),
        "fi": lambda root: fi(root, {"awe": 2, "fear": 2}, []),
        "artphoto": lambda root: artphoto(root, {"awe": 1, "fear": 2}),
    }
    root = makers[layout](tmp_path / "data")
    before = open_dataset(root)
    homes = {record.path.parent for record in before.records} | {root}
    left = sum(leftovers(home) for home in sorted(homes))
    dataset = open_dataset(root)
    assert (dataset.layout, dataset.labels, dataset.splits) == (before.layout, before.labels, before.splits)
    (found,) = check(open_together([settings_for(root)]), Depth(images=False)).data_sets
    assert sum(count for reason, count in found.skipped.items() if "leave behind" in reason) == left
    assert caplog.text.count("leave behind") == 1  # the check tells it on its own


def test_empty_class_folders_are_passed_over_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, {"joy": 3, "fear": 3})
    (tmp_path / "awe").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "readme.md").write_text("hello")
    dataset = open_dataset(tmp_path)
    assert (dataset.labels, len(dataset.records)) == (("fear", "joy"), 6)
    assert "folders without an image, which are no labels: awe, docs" in caplog.text
    (found,) = check(open_together([settings_for(tmp_path)]), Depth(images=False)).data_sets
    assert found.skipped["folders without an image, which are no labels: awe, docs"] == 2


def test_an_empty_class_of_a_split_is_passed_over_and_so_is_an_empty_split(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"joy": 3, "fear": 3})
    tree(tmp_path / "test", {"joy": 2}, 100)
    (tmp_path / "test" / "fear").mkdir()
    (tmp_path / "val" / "joy").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    dataset = open_dataset(tmp_path)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 6, "test": 2}
    assert dataset.labels == ("fear", "joy")


def test_an_empty_folder_of_a_search_word_is_no_label_of_emotion6(tmp_path: Path) -> None:
    root = emotion6(tmp_path, VOTES)
    before = open_dataset(root).labels
    (root / "images" / "contempt").mkdir()
    assert open_dataset(root).labels == before


# --- fuzzing -------------------------------------------------------------------------------------------------------


_TEXTS = {".json", ".csv", ".txt"}
DAMAGE = (
    *(b"", b"\x00", b"\xff", b'"', b"'", b"]", b"{", b"-", b"9" * 30, b"1e999", b"null", b"\\ud800"),
    *(b"\t", b",", b"\r", b"../", b"x" * 300),
)


def fuzz(root: Path, count: int, seed: int) -> None:
    """Damage the lists, the annotations and the tables in turn; each is read or refused, and checked without a fall."""
    listed = tree(root / "table" / "pictures", {"x": 3}).parent
    (listed / "list.csv").write_text("path,label,split\n0.png,joy,train\n1.png,fear,test\nx/2.png,joy,test\n")
    folders = (
        emoset(root / "emoset", ROWS),
        emotion6(root / "emotion6", VOTES),
        abstract(root / "abstract", [(1, 0, 0, 5, 0, 0, 2, 0), (0, 7, 0, 0, 0, 0, 0, 1)]),
        fi(root / "fi", {"awe": 2, "fear": 2}, ["awe,awe_0.jpg,0,5", "fear,fear_1.jpg,3,1"]),
        votes(root / "votes", ["101,3,0,0", "102,0,1,2", "103,1,1,1"]),
        listed,
    )
    files = {file: folder for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in _TEXTS}
    originals = {file: file.read_bytes() for file in files}
    dice, outcomes = random.Random(seed), {"read": 0, "refused": 0}
    for _ in range(count):
        file = dice.choice(list(files))
        data = bytearray(originals[file])
        for _ in range(dice.choice((1, 2, 9))):
            start = dice.randrange(len(data) + 1)
            data[start : start + dice.choice((0, 1, 1, 5))] = dice.choice(DAMAGE)
        file.write_bytes(data)
        try:
            dataset = open_dataset(files[file])
            outcomes["read"] += 1
            assert len(dataset.fingerprint()) == 64
            assert all(isinstance(record, Record) for record in dataset.records)
        except DataError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)  # noqa: PT017
        report = check(open_together([settings_for(files[file])]), Depth(workers=0))
        assert json.dumps(as_json(report))
        file.write_bytes(originals[file])
    assert min(outcomes.values()) > count / 20, outcomes


@pytest.mark.parametrize(("count", "seed"), [(150, 1), pytest.param(6000, 2, marks=pytest.mark.slow)])
def test_damaged_data_sets_are_read_or_refused(tmp_path: Path, count: int, seed: int) -> None:
    fuzz(tmp_path, count, seed)


def opened(path: Path, taxonomy: str) -> Dataset:
    return open_dataset(load_config(None, [f"data.path={path}", f"data.taxonomy={taxonomy}"]).data)


def test_spelling_is_settled_within_a_taxonomy(tmp_path: Path) -> None:
    artphoto(tmp_path, {"sad": 3, "content": 3, "awe": 3})
    dataset = opened(tmp_path, "mikels")
    assert dataset.labels == MIKELS
    assert {(record.path.stem.partition("_")[0], record.label) for record in dataset.records} == {
        ("sad", "sadness"),
        ("content", "contentment"),
        ("awe", "awe"),
    }


def test_the_split_stays_and_what_has_no_counterpart_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artphoto(tmp_path, {"sad": 12, "amusement": 12, "awe": 9})
    caplog.set_level("INFO", "masp")
    before, after = open_dataset(tmp_path), opened(tmp_path, "ekman")
    assert after.labels == ("anger", "disgust", "fear", "joy", "sadness")
    assert [record.path for record in after.split("test")] == [
        record.path for record in before.split("test") if record.label != "awe"
    ]
    assert "left out 9 × awe" in caplog.text
    assert before.fingerprint() != after.fingerprint()


def test_votes_move_with_their_labels(tmp_path: Path) -> None:
    dataset = opened(emotion6(tmp_path, VOTES), "polarity")
    found = {"/".join(record.path.parts[-2:]): record for record in dataset.records}
    assert found["anger/1.jpg"].label == "negative"
    votes = found["joy/1.jpg"].distribution
    assert votes["positive"] == pytest.approx(1)  # surprise and neutral have no counterpart
    mixed = found["joy/2.jpg"].distribution
    assert mixed is not None
    assert mixed == pytest.approx({"negative": 0.4 / 0.5, "positive": 0.1 / 0.5})


def test_labels_without_counterparts_are_refused(tmp_path: Path) -> None:
    votes(tmp_path / "votes", ["1,3,0,0", "2,0,0,3"])
    with pytest.raises(DataError, match="the labels positive, negative have 0 counterparts in mikels"):
        opened(tmp_path / "votes", "mikels")
    with pytest.raises(DataError, match="belong to no taxonomy"):
        opened(tree(tmp_path / "tree", {"calm": 2, "stormy": 2}), "polarity")
