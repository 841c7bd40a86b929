"""Splits by content: alike for every label, the same everywhere, never the same image on both sides."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fixtures.pictures import put, tree
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Record
from masp.data.splits import by_content, content_digests, paper_like, read_split, write_split


def records_of(root: Path) -> list[Record]:
    return [Record(file, file.parent.name) for file in sorted(root.rglob("*.png"))]


def homes(splits: dict[str, tuple[Record, ...]]) -> dict[str, str]:
    return {record.path.name: name for name, records in splits.items() for record in records}


def test_every_label_is_divided_alike(tmp_path: Path) -> None:
    records = records_of(tree(tmp_path, {"joy": 40, "fear": 20, "awe": 7}))
    splits = by_content(records)
    assert {name: len(chosen) for name, chosen in splits.items()} == {"train": 54, "val": 3, "test": 10}
    assert Counter(record.label for record in splits["test"]) == {"joy": 6, "fear": 3, "awe": 1}
    assert sorted(r.path for chosen in splits.values() for r in chosen) == sorted(r.path for r in records)


def test_neither_order_nor_place_nor_name_matters(tmp_path: Path) -> None:
    first = tree(tmp_path / "a", {"joy": 23, "fear": 11})
    second = tmp_path / "b" / "deeper"
    shutil.copytree(first, second)
    for file in list(second.rglob("*.png")):
        file.rename(file.with_name(f"zz{99 - int(file.stem)}.png"))
    ours, theirs = by_content(records_of(first)), by_content(list(reversed(records_of(second))))
    for name in ours:
        assert sorted(content_digests(ours[name])) == sorted(content_digests(theirs[name]))


def test_the_split_is_pinned(tmp_path: Path) -> None:
    """Another assignment would change published figures, so this number must never change."""
    for number in range(20):
        file = tmp_path / ("joy" if number % 2 else "fear") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(f"content {number}".encode())
    placed = homes(by_content(records_of(tmp_path)))
    named = json.dumps(sorted(placed.items()))
    assert hashlib.sha256(named.encode()).hexdigest()[:16] == "ef38fa2eb0083377"


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    records = records_of(tree(tmp_path, {"joy": 30, "fear": 30}))
    assert by_content(records) == by_content(records)
    assert by_content(records)["test"] != by_content(records, seed=1)["test"]


@pytest.mark.parametrize("seed", range(7))
def test_copies_stay_together_even_under_two_labels(tmp_path: Path, seed: int) -> None:
    tree(tmp_path, {"joy": 10, "fear": 10})
    for copy in range(6):
        put(tmp_path / "joy" / f"copy{copy}.png", 777)
        put(tmp_path / "fear" / f"copy{copy}.png", 777)
    splits = by_content(records_of(tmp_path), {"train": 0.5, "test": 0.5}, seed)
    with_copies = {name for name, chosen in splits.items() if any("copy" in r.path.name for r in chosen)}
    assert len(with_copies) == 1
    assert not set(content_digests(splits["train"])) & set(content_digests(splits["test"]))


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_fractions_have_to_make_one(fractions: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"the fractions are .*; expected numbers from 0 that make 1"):
        by_content([], fractions)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        by_content([Record(tmp_path / "none.png", "joy")])


def test_the_papers_test_shares() -> None:
    assert paper_like("Emotion6")["test"] == 0.3
    assert paper_like("ArtPhoto")["test"] == 0.2
    assert sum(paper_like("x").values()) == pytest.approx(1, abs=1e-12)


def test_a_split_is_written_and_read_again(tmp_path: Path) -> None:
    dataset = open_dataset(tree(tmp_path / "pictures", {"joy": 11, "très": 13}))
    write_split(tmp_path / "split.json", dataset)
    content = json.loads((tmp_path / "split.json").read_text())
    assert (content["dataset"], content["split_by"]) == ("pictures", "content")
    assert content["fingerprint"] == dataset.fingerprint()
    assert ["joy/0.png", "joy"] in [row for rows in content["splits"].values() for row in rows]
    assert read_split(tmp_path / "split.json", dataset) == dict(dataset.splits)


def test_a_wrong_split_file_is_refused(tmp_path: Path) -> None:
    dataset = open_dataset(tree(tmp_path / "pictures", {"joy": 3, "fear": 3}))
    file = tmp_path / "split.json"
    for content in ("[]", "{}", '{"format": 1}', '{"format": 2, "splits": {}}'):
        file.write_text(content)
        with pytest.raises(DataError, match=r"split\.json is not a split; expected a file of format 1"):
            read_split(file, dataset)
    write_split(file, dataset)
    other = open_dataset(tree(tmp_path / "others", {"joy": 2, "rage": 3}))
    with pytest.raises(DataError, match=r"names .*, which .*others does not have"):
        read_split(file, other)
    with pytest.raises(DataError, match="cannot be written"):
        write_split(tmp_path / "nowhere" / "split.json", dataset)
