"""Data sets name themselves, account for what they leave out, and show how even their labels are."""

import os
import shutil
from pathlib import Path

import pytest

from fixtures.pictures import ROWS, emoset, put, put_json, tree
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import BadFiles, Record, class_balance, read_json

HERE = Path("a.png")


# --- data sets -----------------------------------------------------------------------------------------------------


def test_a_split_is_asked_for_by_name(tmp_path: Path) -> None:
    dataset = open_dataset(emoset(tmp_path, ROWS))
    assert [record.label for record in dataset.split("val")] == ["awe"]
    with pytest.raises(DataError, match=r"has no split 'tset'\. Did you mean 'test'\?"):
        dataset.split("tset")
    small = open_dataset(tree(tmp_path / "small", {"joy": 2, "fear": 2}))
    with pytest.raises(DataError, match=r"the split 'val' of .* is empty; expected at least one image"):
        small.split("val")


def test_a_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    first = emoset(tmp_path / "a", ROWS)
    shutil.copytree(first, tmp_path / "b" / "c")
    assert open_dataset(first).fingerprint() == open_dataset(tmp_path / "b" / "c").fingerprint()
    os.utime(first / "image" / "fear" / "fear_00000.jpg", (1, 1))
    assert open_dataset(first).fingerprint() == open_dataset(tmp_path / "b" / "c").fingerprint()


@pytest.mark.parametrize("change", ["label", "split", "annotation", "picture", "name", "missing"])
def test_a_fingerprint_changes_with_what_training_sees(tmp_path: Path, change: str) -> None:
    before = open_dataset(emoset(tmp_path, ROWS)).fingerprint()
    picture, note = "image/fear/fear_00002.jpg", "annotation/fear/fear_00002.json"
    if change == "annotation":
        put_json(tmp_path / note, {"brightness": 0.3})
    elif change == "picture":
        (tmp_path / picture).write_bytes((tmp_path / picture).read_bytes() + b"x")
    elif change == "missing":
        (tmp_path / picture).unlink()
    elif change == "name":
        (tmp_path / "image").rename(tmp_path / "pictures")
        for split in ("train", "val", "test"):
            file = tmp_path / f"{split}.json"
            file.write_text(file.read_text().replace('"image/', '"pictures/'))
    elif change == "label":
        (tmp_path / "val.json").write_text((tmp_path / "val.json").read_text().replace("[[1", "[[2"))
    else:
        (tmp_path / "val.json").rename(tmp_path / "swap.json")
        (tmp_path / "test.json").rename(tmp_path / "val.json")
        (tmp_path / "swap.json").rename(tmp_path / "test.json")
    assert open_dataset(tmp_path).fingerprint() != before


def test_the_former_name_of_a_relative_path_still_answers(tmp_path: Path) -> None:
    dataset = open_dataset(tree(tmp_path, {"joy": 3, "fear": 2}))
    path = dataset.records[0].path
    with pytest.warns(DeprecationWarning, match=r"Dataset\.relative_path"):
        assert dataset.place(path) == dataset.relative_path(path)


def test_json_is_read_up_to_a_size(tmp_path: Path) -> None:
    file = put_json(tmp_path / "a.json", ["x" * 100])
    assert read_json(file) == ["x" * 100]
    with pytest.raises(DataError, match=r"a\.json has 104 bytes; expected at most 50"):
        read_json(file, largest=50)
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


# --- quarantine ----------------------------------------------------------------------------------------------------


def test_read_is_used_plus_quarantined() -> None:
    account = BadFiles()
    account.accept(1000)
    for number in range(7):
        account.reject(HERE, "damaged" if number else "empty")
    account.accept()
    assert (account.read, account.used, len(account.rejected)) == (1008, 1001, 7)
    assert account.summary() == "1008 read = 1001 used + 7 quarantined; 6 × damaged; 1 × empty"
    account.finish()


def test_more_than_one_percent_of_all_stops_at_once() -> None:
    account = BadFiles(total=299)
    account.accept(10)
    account.reject(HERE, "damaged")
    account.reject(HERE, "damaged")  # 2 of 12, but of 299 to come not more than 1 %
    with pytest.raises(
        DataError, match=r"3 of 299 files cannot be used, the last is b\.png: empty; expected at most 1%"
    ):
        account.reject(Path("b.png"), "empty")


def test_without_a_total_the_share_is_checked_at_the_end() -> None:
    account = BadFiles()
    for _ in range(3):
        account.reject(HERE, "damaged")
        account.accept(99)
    account.finish()  # 3 of 300
    account.reject(HERE, "damaged")
    with pytest.raises(DataError, match="4 of 301 files cannot be used"):
        account.finish()


def test_a_single_bad_file_among_few_stops_nothing_and_a_second_does() -> None:
    account = BadFiles(total=18)
    account.reject(HERE, "damaged")
    account.accept(16)
    account.finish()
    with pytest.raises(DataError, match="2 of 18 files cannot be used"):
        account.reject(HERE, "damaged")


def test_a_hundred_in_a_row_stop_whatever_came_before() -> None:
    account = BadFiles()
    account.accept(1_000_000)
    for _ in range(99):
        account.reject(HERE, "damaged")
    with pytest.raises(DataError, match=r"100 files in a row cannot be used, the last is a\.png: damaged"):
        account.reject(HERE, "damaged")
    calm = BadFiles()
    calm.accept(1_000_000)
    for _ in range(3):
        for _ in range(99):
            calm.reject(HERE, "damaged")
        calm.accept()


def test_strict_stops_at_the_first() -> None:
    account = BadFiles(strict=True)
    account.accept(5)
    with pytest.raises(DataError, match=r"a\.png cannot be used: damaged\. Repair or remove it, or turn strict off"):
        account.reject(HERE, "damaged")


def test_nothing_good_is_an_error_at_the_end() -> None:
    BadFiles().finish()
    account = BadFiles()
    account.reject(HERE, "damaged")
    with pytest.raises(DataError, match=r"none of 1 files can be used, the last is a\.png: damaged"):
        account.finish()


# --- balance -------------------------------------------------------------------------------------------------------


def counted(**counts: int) -> list[Record]:
    return [Record(HERE, label) for label, count in counts.items() for _ in range(count)]


def test_balanced_weights_have_mean_one_and_equal_sums() -> None:
    balance = class_balance(counted(joy=6, fear=2, awe=1))
    assert (dict(balance.counts), balance.imbalance) == ({"awe": 1, "fear": 2, "joy": 6}, 6.0)
    assert balance.weights == {"awe": 3.0, "fear": 1.5, "joy": 0.5}
    assert sum(balance.weights[label] * count for label, count in balance.counts.items()) == pytest.approx(9)


def test_the_order_and_absent_labels_are_kept() -> None:
    balance = class_balance([*counted(joy=3, fear=1), Record(HERE)], ("joy", "rage", "fear"))
    assert balance.counts == {"joy": 3, "rage": 0, "fear": 1}
    assert balance.weights["rage"] == 0.0
    assert balance.text().splitlines() == [
        "joy          3   75.0%  weight 0.67",
        "rage         0    0.0%  weight 0.00",
        "fear         1   25.0%  weight 2.00",
        "total        4  largest : smallest = 3.00",
    ]


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown label 'joy'\. Did you mean 'joyful'\?"):
        class_balance(counted(joy=1), ("joyful", "fear"))
    with pytest.raises(DataError, match="no image has a label"):
        class_balance([Record(put(tmp_path / "a.png"))])
