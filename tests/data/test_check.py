"""`masp data check`: every fault of a small data set is found, told and counted once; nothing is changed."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fixtures.pictures import (
    ROWS,
    VOTES,
    abstract,
    artphoto,
    emoset,
    emotion6,
    encoded,
    fi,
    noise,
    put,
    put_json,
    tree,
    votes,
)
from masp.core.config import load_config
from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset, settings_for
from masp.data.validation import duplicates
from masp.data.validation.check import NO_LABEL, Depth, Report, as_json, check, open_together
from masp.data.validation.duplicates import BITS, KINDS, hasher, look_at_all, near_groups, near_pairs

LISTS = Depth(images=False)
ERRORS = {name for name, kind in KINDS.items() if kind.severity == "error"}


def checked(*paths: Path, depth: Depth | None = None, layout: str = "auto") -> Report:
    opened = open_together([settings_for(path, layout) for path in paths])
    return check(opened, depth or Depth(workers=0))


def kinds(report: Report) -> dict[str, int]:
    return {one.kind: one.count for one in report.findings}


def examples(report: Report, kind: str) -> str:
    return "\n".join(case.says for one in report.findings if one.kind == kind for case in one.cases)


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {
        path.relative_to(root).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def shape(path: Path, seed: int, **options: object) -> Image.Image:
    """An image with large shapes, which survives being resized and recompressed."""
    dice = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120), tuple(dice.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, w, h = dice.integers(0, 100, 4).tolist()
        draw.ellipse((x, y, x + w + 9, y + h + 9), fill=tuple(dice.integers(0, 256, 3).tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, **options))
    return image


# --- layouts -------------------------------------------------------------------------------------------------------


def plain(root: Path) -> Path:
    return tree(root, {"joy": 2, "fear": 2})


def splits(root: Path) -> Path:
    tree(root / "train", {"joy": 2, "fear": 2})
    return tree(root / "test", {"joy": 1, "fear": 1}, first=50).parent


def listed(root: Path) -> Path:
    tree(root / "pictures", {"x": 2})
    (root / "list.csv").write_text("path,label\n0.png,joy\n1.png,fear\n")
    return root


MADE = {
    "emoset": lambda root: emoset(root, ROWS),
    "split folders": splits,
    "folder": plain,
    "emotion6": lambda root: emotion6(root, VOTES),
    "fi": lambda root: fi(root, {"awe": 2, "fear": 1}, ["awe,awe_0.jpg,0,5"]),
    "votes": lambda root: votes(root, ["1,3,0,0", "2,0,0,3"]),
    "abstract": lambda root: abstract(root, [(1, 0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0, 4)]),
    "artphoto": lambda root: artphoto(root, {"sad": 1, "awe": 2}),
    "table": listed,
}


@pytest.mark.parametrize("layout", MADE)
def test_every_layout_is_recognised_and_nothing_in_it_changes(tmp_path: Path, layout: str) -> None:
    root = MADE[layout](tmp_path / "data")
    before = snapshot(root)
    report = checked(root)
    (found,) = report.data_sets
    assert found.layout == layout
    assert report.errors == 0
    assert set(kinds(report)) <= {"empty_class", "suffix"}
    assert found.images == sum(found.formats.values()) > 1
    assert snapshot(root) == before


def test_labels_splits_aspects_and_formats_are_counted(tmp_path: Path) -> None:
    (found,) = checked(emoset(tmp_path, ROWS)).data_sets
    assert {split: {k: n for k, n in counts.items() if n} for split, counts in found.counts.items()} == {
        "train": {"fear": 2, "awe": 1},
        "val": {"awe": 1},
        "test": {"fear": 1, "amusement": 1},
    }
    assert found.aspects == {
        "facial_expression": 1,
        "object": 1,
        "scene": 1,
        "human_action": 1,
        "brightness": 3,
        "colorfulness": 1,
    }
    assert found.formats == {"PNG": 6}
    assert found.images == 6


# --- faults, one by one --------------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    tree(tmp_path, {"joy": 3, "fear": 3})
    whole = encoded(noise(60, 60, 5))
    (tmp_path / "joy" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "joy" / "text.jpg").write_text("no image")
    (tmp_path / "joy" / "empty.jpg").write_bytes(b"")
    report = checked(tmp_path)
    assert kinds(report) == {"unreadable": 3}
    assert "joy/cut.png: damaged" in examples(report, "unreadable")
    assert "joy/empty.jpg: the file is empty" in examples(report, "unreadable")


def test_listed_pictures_that_are_missing_are_errors(tmp_path: Path) -> None:
    emoset(tmp_path, {"train": [("fear", {}), ("awe", {})]})
    (tmp_path / "image" / "fear" / "fear_00000.jpg").unlink()
    report = checked(tmp_path)
    assert kinds(report)["picture"] == 1
    assert "unreadable" not in kinds(report)
    assert "image/fear/fear_00000.jpg: cannot be read (No such file" in examples(report, "picture")


def test_a_name_that_no_file_can_have_is_a_missing_picture(tmp_path: Path) -> None:
    emoset(tmp_path, {"train": [("fear", {}), ("awe", {})]})
    rows = json.loads((tmp_path / "train.json").read_text())
    put_json(tmp_path / "train.json", [*rows, [0, f"image/{'x' * 300}.jpg", None]])
    report = checked(tmp_path)
    assert kinds(report)["picture"] == 1
    assert "File name too long" in examples(report, "picture")


def test_names_that_say_another_format_are_warnings(tmp_path: Path) -> None:
    tree(tmp_path, {"joy": 2, "fear": 2})
    (tmp_path / "joy" / "wrong.jpg").write_bytes(encoded(noise(channels=4, seed=9)))
    (tmp_path / "joy" / "right.JPEG").write_bytes(encoded(noise(seed=8), "JPEG"))
    report = checked(tmp_path)
    assert (kinds(report), report.errors, report.warnings) == ({"suffix": 1}, 0, 1)
    assert examples(report, "suffix") == "joy/wrong.jpg is PNG"


def test_annotations_labels_and_rows_are_told_apart(tmp_path: Path) -> None:
    emoset(tmp_path, {"train": [("fear", {"brightness": 0.0}), ("awe", {}), ("awe", {})]})
    (tmp_path / "annotation" / "fear" / "fear_00000.json").write_text("{")
    (tmp_path / "annotation" / "awe" / "awe_00001.json").unlink()
    rows = json.loads((tmp_path / "train.json").read_text())
    put_json(tmp_path / "train.json", [*rows, [9, "image/x.jpg", None], [1], *[[1, "../x.jpg", None]] * 150])
    report = checked(tmp_path, depth=LISTS)
    assert {kind: n for kind, n in kinds(report).items() if kind != "empty_class"} == {
        "annotation": 1,
        "label": 1,
        "row": 151,
        "layout": 1,
        "unannotated": 1,
    }
    assert "row 0: " in examples(report, "annotation")
    assert "the label is 9" in examples(report, "label")
    assert examples(report, "unannotated") == "annotation/awe/awe_00001.json"
    assert "one class only (awe)" in examples(report, "layout")


def test_a_brightness_of_zero_is_no_fault(tmp_path: Path) -> None:
    emoset(tmp_path, {"train": [("fear", {"brightness": 0.0}), ("awe", {"colorfulness": 0})]})
    report = checked(tmp_path, depth=LISTS)
    assert set(kinds(report)) == {"empty_class"}
    assert report.data_sets[0].aspects == {"brightness": 1, "colorfulness": 1}


def test_labels_outside_a_set_and_other_spellings(tmp_path: Path) -> None:
    tree(tmp_path, {"sad": 2, "awe": 3, "angre": 1})
    labels = ("awe", "sadness", "anger")
    report = checked(tmp_path, depth=Depth(images=False, labels=labels))
    assert kinds(report) == {"label": 1, "spelling": 2}
    assert examples(report, "label") == "angre/0.png: the label is angre"
    assert "sad/0.png: the label is sad, which is sadness" in examples(report, "spelling")
    emotion6(tmp_path / "six", [*VOTES, "calm/1.jpg 5 5 0 0 0 0 0 0 1"])
    assert kinds(checked(tmp_path / "six", depth=LISTS))["label"] == 1


def test_copies_are_told_by_what_they_spoil(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        tree(tmp_path / split, {"joy": 3, "fear": 3}, first)
    put(tmp_path / "train" / "joy" / "twice.png", 1)  # joy/1.png
    put(tmp_path / "train" / "fear" / "both.png", 0)  # joy/0.png, under another label
    put(tmp_path / "test" / "joy" / "leak.png", 2)  # joy/2.png of train
    report = checked(tmp_path)
    assert kinds(report) == {"leak": 1, "conflict": 1, "duplicate": 1}
    assert examples(report, "leak") == "train/joy/2.png (train, joy), test/joy/leak.png (test, joy)"
    assert examples(report, "conflict") == "train/fear/both.png (train, fear), train/joy/0.png (train, joy)"
    assert examples(report, "duplicate") == "train/joy/1.png (train, joy), train/joy/twice.png (train, joy)"
    assert (report.errors, report.warnings) == (1, 2)


def test_a_picture_that_stands_for_missing_ones_is_found(tmp_path: Path) -> None:
    tree(tmp_path, {"joy": 4, "fear": 4})
    for number in range(5):
        put(tmp_path / ("joy", "fear")[number % 2] / f"gone{number}.png", 777)
    report = checked(tmp_path)
    assert kinds(report) == {"placeholder": 1}
    assert "gone1.png (fear)" in examples(report, "placeholder")
    assert examples(report, "placeholder").endswith("and 1 more")
    assert len(report.findings[0].cases[0].files) == 5
    (tmp_path / "joy" / "gone4.png").unlink()
    assert kinds(checked(tmp_path)) == {"conflict": 1}


def test_a_data_set_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path / "deep" / "deeper", {"joy": 2, "fear": 2})
    (tmp_path / "deep" / "notes.txt").write_text("mine")
    report = checked(tmp_path / "deep")
    assert (kinds(report), report.data_sets[0].layout) == ({"layout": 1}, None)
    assert "Perhaps open" in examples(report, "layout")
    with pytest.raises(DataError, match="Did you mean 'deep'"):
        checked(tmp_path / "deeep")


def test_the_number_of_threads_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_AT_ONCE", 7)
    tree(tmp_path, {"joy": 9, "fear": 30})
    (tmp_path / "joy" / "3.png").write_bytes(b"x")
    put(tmp_path / "joy" / "4.png", 5)
    steps: list[int] = []
    opened = open_together([settings_for(tmp_path)])
    alone = check(opened, Depth(workers=0), steps.append)
    assert sum(steps) == 39
    assert as_json(alone) == as_json(check(opened, Depth(workers=3)))
    paths = [record.path for _, record in opened[0].records]
    assert list(look_at_all(paths, None, 0)) == list(look_at_all(paths, None, 2))


# --- near-duplicates -----------------------------------------------------------------------------------------------


def by_hand(hashes: Sequence[int], distance: int) -> set[tuple[int, int]]:
    places = range(len(hashes))
    return {(i, j) for i in places for j in places if i < j and (hashes[i] ^ hashes[j]).bit_count() <= distance}


@pytest.mark.parametrize("distance", [0, 1, 4, 10])
def test_no_pair_within_the_distance_is_missed(distance: int) -> None:
    dice = np.random.default_rng(distance)
    centres = [int(value) for value in dice.integers(0, 2**63, 20, dtype=np.uint64)]
    hashes = []
    for centre in centres * 3:
        flips = dice.choice(BITS, size=dice.integers(0, distance + 2), replace=False)
        hashes.append(centre ^ sum(1 << int(bit) for bit in flips))
    found = {
        tuple(sorted(pair))
        for one, other in near_pairs(np.asarray(hashes, dtype=np.uint64), distance)
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    }
    assert found == by_hand(hashes, distance)
    assert len(found) > 5


def test_what_hangs_together_is_one_group() -> None:
    far = (2**40 - 1) << 20
    hashes = [0b0000, far, 0b0011, 0b1111, far, 2**33 - 1]
    assert near_groups(hashes, 2) == [[0, 2, 3], [1, 4]]
    assert near_groups(hashes, 1) == [[1, 4]]
    assert near_groups([], 2) == []


def test_many_equal_hashes_take_no_time() -> None:
    assert near_groups([7] * 50_000 + [2**40 - 1], 4) == [list(range(50_000))]


def near_depth() -> Depth:
    pytest.importorskip("imagehash", reason="the extra 'near' is not installed")
    return Depth(workers=0, hasher=hasher())


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    depth = near_depth()
    for seed in range(8):
        shape(tmp_path / "train" / ("joy", "fear")[seed % 2] / f"{seed}.png", seed)
        shape(tmp_path / "test" / ("joy", "fear")[seed % 2] / f"{seed}.png", 100 + seed)
    image = shape(tmp_path / "train" / "joy" / "0.png", 0)
    (tmp_path / "test" / "joy" / "small.jpg").write_bytes(encoded(image.resize((70, 50)), "JPEG", quality=60))
    other = shape(tmp_path / "train" / "fear" / "1.png", 1)
    (tmp_path / "train" / "fear" / "grey.jpg").write_bytes(encoded(other.convert("L"), "JPEG"))
    report = checked(tmp_path, depth=depth)
    assert kinds(report) == {"near_leak": 1, "near": 1}
    assert examples(report, "near_leak") == "train/joy/0.png (train, joy), test/joy/small.jpg (test, joy)"
    assert examples(report, "near") == "train/fear/1.png (train, fear), train/fear/grey.jpg (train, fear)"


def test_pictures_of_one_colour_are_not_alike(tmp_path: Path) -> None:
    depth = near_depth()
    for number, colour in enumerate(["red", "navy", "white", "black"]):
        path = tmp_path / ("joy", "fear")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (40, 30), colour)))
    assert kinds(checked(tmp_path, depth=depth)) == {}


def test_near_duplicates_between_data_sets(tmp_path: Path) -> None:
    depth = near_depth()
    for seed in range(4):
        shape(tmp_path / "a" / ("joy", "fear")[seed % 2] / f"{seed}.png", seed)
        shape(tmp_path / "b" / ("joy", "fear")[seed % 2] / f"{seed}.jpg", seed + (50 if seed else 0), kind="JPEG")
    report = checked(tmp_path / "a", tmp_path / "b", depth=depth)
    assert kinds(report) == {"near_shared": 1}
    assert examples(report, "near_shared") == "joy/0.png (joy) ~ joy/0.jpg (joy)"


# --- two data sets -------------------------------------------------------------------------------------------------


def test_what_one_trains_on_and_the_other_tests_on_is_an_error(tmp_path: Path) -> None:
    for name, train, test in (("a", 0, 50), ("b", 100, 3)):
        tree(tmp_path / name / "train", {"joy": 4, "fear": 2}, train)
        tree(tmp_path / name / "test", {"joy": 2, "fear": 2}, test)
    put(tmp_path / "b" / "train" / "joy" / "same.png", 0)
    report = checked(tmp_path / "a", tmp_path / "b")
    (between,) = report.between
    assert {one.kind: one.count for one in between.findings} == {"shared_leak": 3, "shared_alike": 1}
    leaked = next(one for one in between.findings if one.kind == "shared_leak").cases
    assert ("train/joy/3.png",) in [case.files for case in leaked]
    assert ("test/joy/0.png",) in [case.others for case in leaked]
    told = "train/joy/3.png (train, joy) = test/joy/0.png (test, joy)"
    assert told in examples(report, "shared_leak")
    assert report.errors == 3
    assert kinds(checked(tmp_path / "a", plain(tmp_path / "c")))["shared"] == 4


def emoset_and_fi(root: Path) -> tuple[Path, Path]:
    """EmoSet with 40 images to train on, and FI, which publishes no splits, with the same 40."""
    rows = [(label, {}) for label in ("awe", "fear") for _ in range(20)]
    return emoset(root / "EmoSet", {"train": rows}), fi(root / "FI", {"awe": 20, "fear": 20}, ["awe,awe_0.jpg,0,5"])


def test_a_division_makes_a_leak_certain(tmp_path: Path, run) -> None:
    """80, 5 and 15 % of 20 images of each label: 6 of FI's are to test on, and EmoSet trains on all 40."""
    both, file = emoset_and_fi(tmp_path), tmp_path / "check.json"
    code, out, _ = run(*both, "data.splits.kind=auto", "--near", -1, "--out", file)
    assert code == 1
    assert "6  images to train on in one data set and to test on in the other" in out
    content = json.loads(file.read_text())
    assert [one["split_by"] for one in content["data_sets"]] == ["published", "content"]
    assert {split: sum(found.values()) for split, found in content["data_sets"][1]["splits"].items()} == {
        "train": 32,
        "val": 2,
        "test": 6,
    }
    found = {one["kind"]: one for one in content["between"][0]["findings"]}
    assert {kind: one["count"] for kind, one in found.items()} == {"shared_leak": 6, "shared_alike": 34}
    tested = {(both[1] / case["others"][0]).name for case in found["shared_leak"]["cases"]}
    assert tested == {record.path.name for record in open_dataset(both[1]).split("test")}
    code, out, _ = run(*both, "data.splits.kind=paper-like", "--near", -1)  # both by content: the same division
    assert (code, "40  images that both data sets train on, or both test on" in out) == (0, True)


def test_a_file_divides_the_data_set_that_it_names(tmp_path: Path, masp, run, caplog: pytest.LogCaptureFixture) -> None:
    both, file = emoset_and_fi(tmp_path), tmp_path / "fi.json"
    masp("data", "split", both[1], "--out", file, "--kind", "paper-like")
    code, out, _ = run(*both, f"data.splits.file={file}", "--near", -1)
    assert code == 1
    assert "8  images to train on in one data set and to test on in the other" in out
    assert f"{both[0]} is not divided by {file}" in caplog.text
    code, out, _ = run(both[1], f"data.splits.file={file}", "--no-images")
    assert code == 0
    assert "divided: file" in out
    (both[1] / "emotion_dataset" / "awe" / "awe_3.jpg").unlink()
    for sets in (both, both[1:]):
        code, _, err = run(*sets, f"data.splits.file={file}")
        assert code == 1
        assert "names emotion_dataset/awe/awe_3.jpg, which" in err
        assert "Traceback" not in err
    code, _, err = run(*both, f"data.splits.file={tmp_path / 'none.json'}")
    assert code == 1
    assert "none.json cannot be read" in err


def test_a_division_leaves_what_is_damaged_to_be_found(tmp_path: Path) -> None:
    """A missing file has no content to be divided by; training would stop at it, a check tells it."""
    rows = [(label, {}) for label in ("awe", "fear") for _ in range(20)]
    root = emoset(tmp_path / "E", {"train": rows})
    (root / "image" / "awe" / "awe_00000.jpg").unlink()
    (root / "image" / "awe" / "awe_00001.jpg").write_text("no image")
    settings = load_config(None, ["data.splits.kind=content"]).data.model_copy(update={"path": root})
    report = check(open_together([settings]), Depth(workers=0))
    assert {kind: n for kind, n in kinds(report).items() if kind in ERRORS} == {"picture": 1, "unreadable": 1}
    (found,) = report.data_sets
    counts = {split: sum(labels.values()) for split, labels in found.counts.items()}
    assert (found.split_by, counts) == ("content", {"train": 31, "val": 2, "test": 6, "all": 1})


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(masp):
    """Runs the command: (exit code, stdout, stderr)."""
    return lambda *words: masp("data", "check", *words)


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "data", {"joy": 5, "fear": 3})
    put(root / "joy" / "again.png", 0)
    code, out, err = run(root, "--out", tmp_path / "check.json")
    assert code == 0
    assert "layout folder, 9 images" in out
    assert "0 errors, 1 warning\n" in out
    assert "images that occur more than once" in out
    assert "joy/0.png (joy), joy/again.png (joy)" in out
    assert "check.json" in err
    content = json.loads((tmp_path / "check.json").read_text())
    assert (content["errors"], content["warnings"], content["images_opened"]) == (0, 1, True)
    (data,) = content["data_sets"]
    assert (data["images"], data["splits"]) == (9, {"all": {"fear": 3, "joy": 6}})
    assert data["findings"][0]["kind"] == "duplicate"
    assert data["findings"][0]["severity"] == "warning"
    assert data["findings"][0]["cases"] == [
        {"says": "joy/0.png (joy), joy/again.png (joy)", "files": ["joy/0.png", "joy/again.png"]}
    ]


def test_errors_end_with_1(tmp_path: Path, run) -> None:
    root = tree(tmp_path / "data", {"joy": 5, "fear": 3})
    (root / "joy" / "0.png").write_bytes(b"\x1b[31m")
    (root / "joy" / "\x1b[31mred.png").write_bytes(b"")
    code, out, err = run(root)
    assert code == 1
    assert "2 errors, 0 warnings" in out
    assert "\x1b[31m" not in out + err
    assert run(root, "--no-images")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "nowhere cannot be read"),
        (["nowhere", "--out", "check.json"], "nowhere cannot be read"),
        (["data", "prompt.epochs=3"], "neither a path nor a setting of the data"),
        (["data.layout=fi"], "no data set is named"),
        (["data", "--labels", "emosett"], "Did you mean 'emoset'?"),
        (["data", "--labels", "joy, Joy"], "are the same answer"),
        (["data", "--out", "data/check.json"], "lies inside the data set"),
        (["data", "data.layoot=fi"], "Did you mean 'data.layout'?"),
    ],
)
def test_wrong_use_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    plain(tmp_path / "data")
    before = snapshot(tmp_path)
    code, _, err = run(*arguments)
    assert code in (1, 2)
    assert reason in err
    assert snapshot(tmp_path) == before


def test_without_imagehash_it_says_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    code, _, err = run(plain(tmp_path / "data"))
    assert code == 0
    assert "near-duplicates were not looked for: install ImageHash with pip install 'masp[near]'" in err


def test_pictures_without_labels_are_counted_and_no_fault(tmp_path):
    root = emoset(tmp_path / "E", ROWS)
    for name in ("train", "val", "test"):
        rows = json.loads((root / f"{name}.json").read_text())
        put_json(root / f"{name}.json", [[None, *row[1:]] for row in rows])
    (found,) = check(open_together([settings_for(root)]), Depth(images=False, labels=("joy", "fear"))).data_sets
    assert found.labels[-1] == NO_LABEL
    assert {split: counts[NO_LABEL] for split, counts in found.counts.items()} == {"train": 3, "val": 1, "test": 2}
    assert found.images == 6
    assert [one for one in found.findings if one.kind in ("label", "empty_class", "layout")] == []
