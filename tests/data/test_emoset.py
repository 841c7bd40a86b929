"""EmoSet's published layout: both shapes of its rows, its order of labels, its annotations, and damage to each."""

import json
from pathlib import Path

import pytest

from fixtures.pictures import MIKELS, ROWS, complaint, emoset, put, put_json, tree
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset, LazyExtra


def labels_of(dataset: Dataset, split: str) -> list[str | None]:
    return [record.label for record in dataset.split(split)]


@pytest.mark.parametrize("with_ids", [True, False])
def test_emoset_is_read_in_both_shapes_of_its_rows(tmp_path: Path, with_ids: bool) -> None:
    dataset = open_dataset(emoset(tmp_path / "EmoSet", ROWS, with_ids=with_ids))
    assert (dataset.name, dataset.layout, dataset.split_by) == ("EmoSet", "emoset", "published")
    assert dataset.labels == MIKELS
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 3, "val": 1, "test": 2}
    assert labels_of(dataset, "train") == ["fear", "awe", "fear"]
    assert all(record.path.is_file() for record in dataset.records)


def test_emosets_annotations_become_answers(tmp_path: Path) -> None:
    first, second, third = open_dataset(emoset(tmp_path, ROWS)).split("train")
    assert first.annotations == {
        "brightness": "very low",
        "colorfulness": "high",
        "scene": "ice skating rink/outdoor",
        "object": "tree, food & drink",
    }
    assert second.annotations == {"facial_expression": "happy", "human_action": "reading (a book)"}
    assert third.annotations == {}
    assert open_dataset(tmp_path).split("val")[0].annotations == {"brightness": "very high"}
    assert open_dataset(tmp_path).split("test")[1].annotations == {"brightness": "very high"}


@pytest.mark.parametrize(
    "info",
    [
        {"emotion": {"label2idx": {"joy": 1, "rage": 0}}},
        {"emotion": {"idx2label": {"0": "rage", "1": "joy"}}},
        {"label2idx": {"joy": "1", "rage": "0"}},
        {"idx2label": {"1": "joy", "0": "rage"}},
        {"labels": ["rage", "joy"]},
        {"emotion": ["rage", "joy"]},
        {"emotion": {"labels": ["rage", "joy"]}},
    ],
)
def test_info_names_the_labels_in_any_known_shape(tmp_path: Path, info: object) -> None:
    emoset(tmp_path, {"train": [("joy", {}), ("rage", {})]}, order=("rage", "joy"))
    put_json(tmp_path / "info.json", info)
    dataset = open_dataset(tmp_path)
    assert dataset.labels == ("rage", "joy")
    assert labels_of(dataset, "train") == ["joy", "rage"]


@pytest.mark.parametrize(
    "info", [None, {}, [], {"emotion": {"label2idx": {"joy": 3}}}, {"emotion": 3}, {"emotion": []}]
)
def test_without_labels_in_info_emosets_order_holds(
    tmp_path: Path, info: object, caplog: pytest.LogCaptureFixture
) -> None:
    emoset(tmp_path, ROWS)
    (tmp_path / "info.json").unlink() if info is None else put_json(tmp_path / "info.json", info)
    assert open_dataset(tmp_path).labels == MIKELS
    assert "numbered as in EmoSet: amusement, awe" in caplog.text


def test_rows_may_name_labels_and_write_paths_loosely(tmp_path: Path) -> None:
    put(tmp_path / "image" / "a.jpg", 1)
    put(tmp_path / "image" / "b.jpg", 2)
    put(tmp_path / "image" / "c.jpg", 3)
    rows = [["fear", "./image/a.jpg", None], ["1", "image\\b.jpg", ""], [0, "/image//c.jpg ", "annotation/none.json"]]
    put_json(tmp_path / "train.json", rows)
    records = open_dataset(tmp_path).split("train")
    assert [(record.label, record.path.name) for record in records] == [
        ("fear", "a.jpg"),
        ("awe", "b.jpg"),
        ("amusement", "c.jpg"),
    ]
    assert all(record.path.is_file() for record in records)


def test_other_keys_of_an_annotation_are_carried_unread(tmp_path: Path) -> None:
    truth = {"cells": [[1, 2], [3, 4]], "cause": "scene"}
    emoset(tmp_path, {"train": [("fear", {"emoji": truth, "scene": "park"}), ("awe", {})]})
    first, second = open_dataset(tmp_path).split("train")
    assert isinstance(first.extra, LazyExtra)
    assert first.extra["emoji"] == truth
    assert "emoji" in first.extra
    assert (first.extra.get("emoji"), first.extra.get("other", 7)) == (truth, 7)
    assert (dict(first.extra), len(first.extra), second.extra) == ({"emoji": truth}, 1, {})
    with pytest.raises(KeyError):
        first.extra["other"]
    put_json(first.extra.file, {})
    with pytest.raises(DataError, match="has lost its key 'emoji'"):
        first.extra["emoji"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([8, "image/a.jpg", None], r"the label is 8; expected 0 to 7, or one of amusement"),
        ([-1, "image/a.jpg", None], "the label is -1"),
        ([True, "image/a.jpg", None], "the label is True"),
        ([1.0, "image/a.jpg", None], "the label is 1.0"),
        (["joy", "image/a.jpg", None], "the label is 'joy'"),
        ([1, "a"], r"the row is \[1, 'a'\]; expected \[label, id, image, annotation\] or"),
        ({"label": 1}, "the row is {'label': 1}"),
        ([1, 2, None], "expected paths as text"),
        ([1, "x", 3], "expected paths as text"),
        ([1, "../../secret.jpg", None], "'../../secret.jpg' does not name a file of the data set"),
        ([1, "a\0b", None], "does not name a file of the data set"),
        ([1, "a\ud800b", None], "does not name a file of the data set"),
        ([1, " ", None], "does not name a file of the data set"),
        ([1, "image/a.jpg", "annotation/../../x.json"], "does not name a file of the data set"),
    ],
)
def test_a_wrong_row_is_left_out_with_its_reason(tmp_path: Path, row: object, reason: str) -> None:
    emoset(tmp_path, ROWS)
    rows = json.loads((tmp_path / "train.json").read_text())
    put_json(tmp_path / "train.json", [*rows, row])
    dataset = open_dataset(tmp_path)
    assert len(dataset.split("train")) == 3
    (rejected,) = dataset.rejected
    with pytest.raises(DataError, match=reason):
        raise DataError(rejected.reason)
    assert rejected.reason.startswith("row 3: ")
    with pytest.raises(DataError, match=reason):
        open_dataset(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 50_000, "is not JSON"),
        (b"[]", "holds list; expected a JSON object"),
        (b'{"brightness": "0.3"}', "brightness is '0.3'; expected a number"),
        (b'{"brightness": 1.5}', "the level 1.5 is out of range"),
        (b'{"brightness": NaN}', "the level nan is out of range"),
        (b'{"brightness": true}', "the level True is not a number"),
        (b'{"object": [1]}', r"object is \[1\]; expected a text or a list of texts"),
        (b'{"scene": {"a": 1}}', "scene is {'a': 1}; expected a text"),
        (b'{"object": ' + b"[" * 900 + b"]" * 900 + b"}", "object is .*; expected a text"),
        (b'{"scene": "\\ud800"}', "expected text without lone surrogates"),
    ],
)
def test_a_damaged_annotation_leaves_its_picture_out(tmp_path: Path, annotation: bytes, reason: str) -> None:
    emoset(tmp_path, ROWS)
    next((tmp_path / "annotation" / "awe").iterdir()).write_bytes(annotation)
    dataset = open_dataset(tmp_path)
    assert len(dataset.records) == 5
    with pytest.raises(DataError, match=reason):
        raise DataError(dataset.rejected[0].reason)


def test_too_many_damaged_annotations_stop(tmp_path: Path) -> None:
    emoset(tmp_path, {"train": [("fear", {}), ("awe", {})] * 60})
    for file in list((tmp_path / "annotation" / "fear").iterdir())[:2]:
        file.write_text("{")
    assert "2 of 1" in complaint(tmp_path)
    assert "at most 1%" in complaint(tmp_path)


def test_without_the_folder_of_annotations_there_are_none(tmp_path: Path) -> None:
    emoset(tmp_path, ROWS)
    (tmp_path / "annotation").rename(tmp_path / "put-away")
    assert all(record.annotations == {} for record in open_dataset(tmp_path, "emoset").records)


def test_a_list_that_is_no_list_is_refused(tmp_path: Path) -> None:
    emoset(tmp_path, ROWS)
    put_json(tmp_path / "val.json", {})
    assert "val.json holds dict; expected a list of rows" in complaint(tmp_path)
    (tmp_path / "val.json").write_text("[")
    assert "val.json is not JSON" in complaint(tmp_path)


def test_emoset_without_its_lists_is_refused_by_name(tmp_path: Path) -> None:
    tree(tmp_path, {"joy": 2, "fear": 2})
    assert "neither train.json, val.json or test.json nor folders train and test" in complaint(tmp_path, "emoset")


# --- as `masp data annotate` writes it -----------------------------------------------------------------------------


def unlabelled(root: Path, pictures: int = 20) -> Path:
    """One list without splits, whose rows have no label."""
    put_json(root / "info.json", {"emotion": {"label2idx": {"calm": 0, "wild": 1}}})
    rows = []
    for seed in range(pictures):
        picture, note = f"image/unlabelled/{seed}.png", f"annotation/unlabelled/{seed}.json"
        put(root / picture, seed)
        put_json(root / note, {"scene": "beach", "source": {"machine": True, "backbone": "some"}})
        rows.append([None, str(seed), picture, note])
    put_json(root / "all.json", rows)
    return root


def test_a_data_set_without_labels_opens_and_is_divided_by_content(tmp_path: Path) -> None:
    dataset = open_dataset(unlabelled(tmp_path))
    assert (dataset.layout, dataset.labels, dataset.split_by) == ("emoset", ("calm", "wild"), "content")
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 16, "val": 1, "test": 3}
    assert {record.label for record in dataset.records} == {None}
    assert all(record.annotations == {"scene": "beach"} for record in dataset.records)


def test_all_json_alone_is_no_layout_and_gives_way_to_splits(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", {"calm": 2, "wild": 2})
    put_json(root / "all.json", [])
    assert open_dataset(root).layout == "folder"
    emoset(tmp_path / "E", ROWS)
    put_json(tmp_path / "E" / "all.json", "anything")
    assert set(open_dataset(tmp_path / "E").splits) == {"train", "val", "test"}


def test_a_machines_annotations_are_told_from_those_of_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    emoset(tmp_path / "E", ROWS)
    open_dataset(tmp_path / "E")
    assert "machine" not in caplog.text
    info = json.loads((tmp_path / "E" / "info.json").read_text())
    for source, told in (({"machine": False}, False), ("machine", False), ({"machine": True}, True)):
        put_json(tmp_path / "E" / "info.json", info | {"source": source})
        open_dataset(tmp_path / "E")
        assert ("were made by a machine" in caplog.text) == told
