"""Images under the labels of another taxonomy."""

from pathlib import Path

import pytest

from fixtures.layouts import artphoto, votes
from fixtures.pictures import MIKELS, VOTES, emotion6, tree
from masp.core.config import load_config
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset


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
    assert votes is not None
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
