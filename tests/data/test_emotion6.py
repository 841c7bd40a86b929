"""Emotion6's published layout: the votes, where the label comes from, and damage to the table."""

from pathlib import Path

import pytest

from fixtures.pictures import VOTES, complaint, emotion6, put
from masp.core.config import load_config
from masp.data.readers.open_dataset import open_dataset


def test_emotion6_is_read_with_its_votes(tmp_path: Path) -> None:
    dataset = open_dataset(emotion6(tmp_path / "Emotion6", VOTES))
    assert (dataset.layout, dataset.split_by, dataset.labels) == ("emotion6", "content", ("anger", "joy"))
    record = next(r for r in dataset.records if r.path.parts[-2:] == ("anger", "1.jpg"))
    assert sum(record.distribution.values()) == pytest.approx(1, abs=1e-12)
    assert list(record.distribution) == ["anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"]
    assert record.distribution["disgust"] == pytest.approx(0.7, abs=1e-6)
    assert record.extra == {"valence": 2.5, "arousal": 3.8}
    assert record.label == "anger"


def test_emotion6_labels_may_come_from_the_majority(tmp_path: Path) -> None:
    emotion6(tmp_path, [*VOTES, "disgust/1.jpg 1 1 0 1 0 0 0 0 0"])
    dataset = open_dataset(load_config(None, [f"data.path={tmp_path}", "data.label_from=majority"]).data)
    found = {"/".join(record.path.parts[-2:]): record.label for record in dataset.records}
    assert found == {
        "anger/1.jpg": "disgust",  # most votes
        "anger/2.jpg": "anger",  # as many as disgust: the folder decides
        "joy/1.jpg": "joy",  # neutral does not count, and surprise is no class here
        "joy/2.jpg": "anger",  # as many as disgust, and the folder is neither
        "disgust/1.jpg": "disgust",
    }


def test_emotion6_survives_what_tables_go_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    emotion6(tmp_path, VOTES)
    table = (tmp_path / "ground_truth.txt").read_text()
    loose = "\ufeff" + table.replace("\n", "\r").replace("joy/1.jpg", "joy\\1.jpg").replace("\t8\t", "\t 8 \t")
    (tmp_path / "ground_truth.txt").write_text(f"{loose}\rfear/9.jpg\t1\t1\t1\t0\t0\t0\t0\t0\t0\r\r", newline="")
    put(tmp_path / "images" / "joy" / "77.jpg", 77)
    records = open_dataset(tmp_path).records
    assert sum(record.distribution is not None for record in records) == 4
    assert len(records) == 5
    assert "has 1 rows without an image" in caplog.text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("joy/3.jpg 8 4.5 0 0 0 0.3 0 0.3", "has 9 cells; expected 10"),
        ("joy/3.jpg 8 4.5 0 0 0 0.3 0 0.3 0.9", "its votes in ground_truth.txt make 1.5; expected shares that make 1"),
        ("joy/3.jpg 8 4.5 0 0 0 1.3 0 -0.3 0", "its votes in ground_truth.txt make 1"),
        ("joy/3.jpg 8 4.5 0 0 0 x 0 0 1", "has the cell 'x'; expected a number"),
        ("joy/3.jpg nan 4.5 0 0 0 1 0 0 0", "has the cell 'nan'; expected a number"),
    ],
)
def test_a_wrong_row_of_votes_leaves_its_picture_out(tmp_path: Path, row: str, reason: str) -> None:
    dataset = open_dataset(emotion6(tmp_path, [*VOTES, row]))
    assert len(dataset.records) == 4
    assert reason in dataset.rejected[0].reason


def test_a_majority_needs_votes(tmp_path: Path) -> None:
    put(emotion6(tmp_path, VOTES) / "images" / "joy" / "77.jpg", 77)
    dataset = open_dataset(load_config(None, [f"data.path={tmp_path}", "data.label_from=majority"]).data)
    assert "77.jpg has no votes in ground_truth.txt" in dataset.rejected[0].reason


def test_a_table_that_is_no_table_is_refused(tmp_path: Path) -> None:
    emotion6(tmp_path, VOTES)
    for content, words in (
        (b"", "has the header []"),
        (b"a,b\n", "[prob. …] columns"),
        (b"\xff\xfe", "is not text"),
    ):
        (tmp_path / "ground_truth.txt").write_bytes(content)
        assert words in complaint(tmp_path)
    (tmp_path / "ground_truth.txt").unlink()
    assert "ground_truth.txt cannot be read" in complaint(tmp_path, "emotion6")
