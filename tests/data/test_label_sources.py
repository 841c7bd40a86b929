"""Labels that no folder names: found in the images' paths by a pattern, or made of a column of numbers."""

import json
import sys
from pathlib import Path

import pytest

from fixtures.pictures import noise, put, tree
from masp.cli import main
from masp.core.config import DataConfig, load_config
from masp.core.errors import ConfigError, DataError
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset

VALENCE = {"negative": [None, 3.5], "neutral": [3.5, 4.5], "positive": [4.5, None]}


def data(root: Path, **settings: object) -> DataConfig:
    return load_config(
        None, [f"data.path={root}", *(f"data.{key}={json.dumps(value)}" for key, value in settings.items())]
    ).data


def labels(dataset: Dataset) -> dict[str, str | None]:
    return {dataset.relative_path(record.path): record.label for record in dataset.records}


def named(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        put(root / name, seed)
    return root


# --- a pattern -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (("joy12.jpg", "joy2.png", "sad1.jpg"), r"(?P<label>[a-z]+)\d+"),
        (("img_001_joy.png", "a/img_002_joy.png", "img_003_sad.png"), r"_(?P<label>[a-z]+)\."),
        (("2019/joy/x.jpg", "2020/joy/y.jpg", "2020/sad/x.jpg"), r"^\d+/(?P<label>[^/]+)/"),
    ],
)
def test_a_pattern_finds_the_labels_in_the_paths(tmp_path: Path, names: tuple[str, ...], pattern: str) -> None:
    dataset = open_dataset(data(named(tmp_path, *names), label_pattern=pattern))
    assert labels(dataset) == dict(zip(names, ("joy", "joy", "sad"), strict=True))
    assert (dataset.layout, dataset.labels, dataset.split_by) == ("pattern", ("joy", "sad"), "content")


def test_the_pattern_wins_over_what_the_folder_looks_like(tmp_path: Path) -> None:
    tree(tmp_path / "2019", {"joy": 2, "sad": 2})
    tree(tmp_path / "2020", {"joy": 1, "sad": 1}, 9)
    assert open_dataset(data(tmp_path / "2019", label_pattern="/(?P<label>[01])")).labels == ("0", "1")
    assert len(open_dataset(data(tmp_path, label_pattern="(?P<label>[^/]+)/[^/]+$")).records) == 6


def test_a_group_split_is_the_published_split(tmp_path: Path) -> None:
    names = ("train/joy1.png", "train/sad1.png", "Test/joy2.png", "other/sad9.png")
    pattern = r"(?P<split>\w+)/(?P<label>[a-z]+)\d"
    dataset = open_dataset(data(named(tmp_path, *names), label_pattern=pattern))
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 2, "test": 1}
    assert dataset.split_by == "published"
    assert "the split is 'other'" in dataset.rejected[0].reason


def test_what_does_not_match_is_left_out_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named(tmp_path, "joy1.png", "sad2.png", "cover.png", "back.png")
    dataset = open_dataset(data(tmp_path, label_pattern=r"(?P<label>[a-z]+)\d"))
    assert len(dataset.records) == 2
    assert "left out 2 images in whose path data.label_pattern finds no label: back.png, cover.png" in caplog.text


def test_nothing_that_matches_is_refused_with_names_that_were_seen(tmp_path: Path) -> None:
    named(tmp_path, *(f"IMG_{number}.png" for number in range(12)))
    with pytest.raises(DataError, match=r"no label in any of 12 images .*IMG_0\.png, .*, …\. Correct the pattern"):
        open_dataset(data(tmp_path, label_pattern="(?P<label>[a-z]+)_"))
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        open_dataset(data(tmp_path / "list.csv", label_pattern="(?P<label>[a-z]+)_"))


def test_labels_are_cleaned_and_compared_as_those_of_folders(tmp_path: Path) -> None:
    named(tmp_path, "e\N{COMBINING ACUTE ACCENT}mu_1.png", "joy _2.png")
    dataset = open_dataset(data(tmp_path, label_pattern="^(?P<label>[^_]+)_"))
    assert dataset.labels == ("joy", "\N{LATIN SMALL LETTER E WITH ACUTE}mu")
    named(tmp_path, "Joy_3.png")
    with pytest.raises(DataError, match="the labels 'Joy' and 'joy' are the same answer"):
        open_dataset(data(tmp_path, label_pattern="^(?P<label>[^_]+)_"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("label_pattern", "(?P<label>", "is no regular expression"),
        ("label_pattern", "[a-z]+", "has no group of the name label"),
        ("label_pattern", "(?P<name>[a-z]+)", "has no group of the name label"),
        ("label_pattern", "(?P<label>a{99999999999})", "is no regular expression"),
        ("label_pattern", "(?P<label>" + "a" * 500 + ")", "at most 500"),
        ("label_pattern", 5, "expected a valid string"),
        ("label_thresholds", {"a": [None, 4], "b": [3, None]}, "overlap"),
        ("label_thresholds", {"a": [None, None], "b": [3, None]}, "overlap"),
        ("label_thresholds", {"a": [None, 1], "b": [None, 3]}, "overlap"),
        ("label_thresholds", {"a": [4, 3], "b": [5, 6]}, "the lower number comes first"),
        ("label_thresholds", {"a": [3, 3], "b": [5, 6]}, "the lower number comes first"),
        ("label_thresholds", {"a": [3, 4]}, "at least two labels"),
        ("label_thresholds", {"a": [3], "b": [4, 5]}, "label_thresholds"),
        ("label_thresholds", {"a": "3-4", "b": [4, 5]}, "label_thresholds"),
        ("label_thresholds", [[3, 4]], "label_thresholds"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(name: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}") as caught:
        data(Path("nowhere"), **{name: value})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_pattern": "(?P<label>a)", "layout": "folder"},
        {"label_pattern": "(?P<label>a)", "label_thresholds": VALENCE},
        {"label_thresholds": VALENCE, "layout": "emotion6"},
        {"label_thresholds": VALENCE, "columns": {"label": "Category"}},
        {"columns": {"value": "Valence_mean"}},
    ],
)
def test_two_sources_of_labels_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"leave one out|set label_thresholds"):
        data(Path("nowhere"), **settings)


# --- thresholds ----------------------------------------------------------------------------------------------------


def oasis(root: Path, values: dict[str, str]) -> Path:
    """OASIS as it is published: bare carriage returns, trailing blanks, and one image that is an RGBA PNG."""
    for seed, name in enumerate(values):
        put(root / "images" / f"{name}.jpg", seed)
    noise(channels=4).save(root / "images" / f"{next(iter(values))}.jpg", "PNG")
    header = ",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N"
    rows = [
        f"I{n},{name} ,Object,Pixabay,{value},1.2,101,2.3,1.6,100" for n, (name, value) in enumerate(values.items())
    ]
    (root / "OASIS.csv").write_bytes("\r".join([header, *rows]).encode() + b"\r")
    return root


SEEN = {"Acorns 1": "2.1", "Beach 2": "3.5", "Dog 1": "4.4999", "Dog 12": "4.5", "War 6": "1", "Sky 3": "7"}


def test_oasis_becomes_labels_by_its_valence(tmp_path: Path) -> None:
    dataset = open_dataset(data(oasis(tmp_path, SEEN), label_thresholds=VALENCE))
    assert {Path(place).stem: label for place, label in labels(dataset).items()} == {
        "Acorns 1": "negative",
        "War 6": "negative",
        "Beach 2": "neutral",  # where one label ends the next begins
        "Dog 1": "neutral",
        "Dog 12": "positive",
        "Sky 3": "positive",
    }
    assert (dataset.layout, dataset.labels) == ("table", ("negative", "neutral", "positive"))
    assert {record.extra["Valence_mean"] for record in dataset.records} >= {2.1, 4.4999}


def test_numbers_in_a_gap_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bounds = {"positive": [5, None], "negative": [1.5, 3.5]}
    dataset = open_dataset(data(oasis(tmp_path, SEEN), label_thresholds=bounds))
    assert {Path(place).stem for place in labels(dataset)} == {"Acorns 1", "Sky 3"}
    assert dataset.labels == ("negative", "positive")  # in the order of the numbers
    assert "4 rows whose number lies in the bounds of no label" in caplog.text
    assert dataset.rejected == ()


@pytest.mark.parametrize("cell", ["", "n/a", "nan", "inf", "3;5"])
def test_a_cell_that_is_no_number_is_a_fault_of_its_row(tmp_path: Path, cell: str) -> None:
    dataset = open_dataset(data(oasis(tmp_path, {**SEEN, "Bad 1": cell}), label_thresholds=VALENCE))
    assert len(dataset.records) == 6
    assert "row 7: the value is" in dataset.rejected[0].reason
    assert dataset.rejected[0].fault == "label"


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "a"
    named(root, "1.png")
    (root / "list.csv").write_text("path,number\n1.png,3\n")
    with pytest.raises(DataError, match=r"one of numbers, such as 'valence mean'\. Name it with data\.columns\.value"):
        open_dataset(data(root, label_thresholds=VALENCE))


# --- through the commands ------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["masp", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


SOURCES = {
    "pattern": lambda root: (
        named(root, *(f"{label}{number}.png" for label in ("joy", "sad") for number in range(10)), "cover.png"),
        r"data.label_pattern=(?P<label>[a-z]+)\d",
    ),
    "thresholds": lambda root: (
        oasis(root, {f"Thing {number}": str(1 + number / 4) for number in range(20)}),
        "data.label_thresholds={low: [null, 3], high: [3.5, null]}",
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_check_split_train_evaluate_and_baselines_read_such_labels(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, setting = SOURCES[source](tmp_path / "data")
    assert command(monkeypatch, "data", "check", root, setting, "--near", -1) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert ("finds no label: cover.png" if source == "pattern" else "passed over: 2 rows whose number") in told
    assert command(monkeypatch, "data", "split", root, setting, "--out", tmp_path / "split.json") == 0
    run = tmp_path / "run"
    short = ["--aspects", "none", "prompt.max_steps=2", "prompt.batch_size=2", "data.splits.kind=content"]
    assert (
        command(monkeypatch, "train", "prompt", "--data", root, "--backbone", "embedded", "--out", run, *short, setting)
        == 0
    )
    if source == "thresholds":
        return  # the other commands open data sets by the same door
    figures = tmp_path / "figures"
    assert command(monkeypatch, "evaluate", "--adapter", run, "--data", root, "--out", figures, setting) == 0
    result = json.loads((figures / "summary.json").read_text())
    assert set(result["labels"]) == {"joy", "sad"}
    probe = ["--data", root, "--backbone", "embedded", "--out", tmp_path / "probe"]
    assert command(monkeypatch, "baseline", "probe", *probe, setting) == 0
    capsys.readouterr()
