"""Data sets in the shapes of the Hugging Face hub, copied into folders."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from fixtures.pictures import encoded, noise
from masp.core.errors import DataError, UsageError
from masp.data import hub
from masp.data.hub import HubSource, import_dataset
from masp.data.readers.open_dataset import open_dataset

CONTENTS = [encoded(noise(seed=seed), kind) for seed, kind in enumerate(["PNG", "JPEG", "PNG", "PNG"])]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Parquet files with embedded images, as most image data sets of the hub have them."""
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"picture": datasets.Image(), "feeling": datasets.ClassLabel(names=["joy", "fear"])})
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for split, chosen, labels in (("train", CONTENTS[:2], [0, 1]), ("validation", CONTENTS[2:], [1, -1])):
        rows = {"picture": [{"bytes": content, "path": None} for content in chosen], "feeling": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder.parent


def test_pictures_are_copied_byte_for_byte(published: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    counts = import_dataset(HubSource(str(published)), tmp_path / "out", steps.append)
    assert dict(counts) == {"train": 2, "validation": 1}
    assert len(steps) == 3
    files = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert sorted(files) == ["train/fear/000001.jpg", "train/joy/000000.png", "val/fear/000000.png"]
    assert files["train/fear/000001.jpg"].read_bytes() == CONTENTS[1]
    dataset = open_dataset(tmp_path / "out")
    assert {split: [r.label for r in records] for split, records in dataset.splits.items()} == {
        "train": ["fear", "joy"],
        "val": ["fear"],
    }


def test_the_user_names_columns_and_a_limit(published: Path, tmp_path: Path) -> None:
    source = HubSource(str(published), image="picture", label="feeling", limit=1)
    assert dict(import_dataset(source, tmp_path / "out")) == {"train": 1, "validation": 1}
    with pytest.raises(DataError, match=r"no column 'pictrue'\. Did you mean 'picture'"):
        import_dataset(HubSource(str(published), image="pictrue"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_over(published: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; expected a new or empty folder"):
        import_dataset(HubSource(str(published)), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_cannot_be_loaded_is_named(published: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the data set .*empty cannot be loaded \("):
        import_dataset(HubSource(str(tmp_path / "empty")), tmp_path / "out")


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"Install it with: pip install 'masp\[hub\]'"):
        import_dataset(HubSource("owner/name"), tmp_path / "out")


class Image:
    """A column of images, told by the name of its class."""


class ClassLabel:
    """A column with a fixed set of labels."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names


class Rows:
    """A split with an image for each label, in the shape that the package datasets has; it need not be installed."""

    def __init__(self, labels: Sequence[str], fixed: bool = True) -> None:
        names = sorted(set(labels))
        self.features: Mapping[str, object] = {"image": Image(), "label": ClassLabel(names) if fixed else object()}
        self._values = [names.index(label) for label in labels] if fixed else labels

    def __iter__(self) -> Iterator[dict[str, object]]:
        for number, value in enumerate(self._values):
            yield {"image": {"bytes": CONTENTS[number], "path": None}, "label": value}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Rows]:
    """The splits of a data set that is loaded, whatever its name; the test fills them in."""
    splits: dict[str, Rows] = {}
    monkeypatch.setattr(hub, "_loaded", lambda source: splits)
    return splits


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("..", r"the label '\.\.' begins with a dot; expected the name of a folder"),
        (".", r"the label '\.' begins with a dot"),
        (".hidden", "begins with a dot"),
        ("../../beside", "begins with a dot"),
        ("sad\0ness", "holds a line break or a control character"),
        ("sad\nness", "holds a line break or a control character"),
        ("!", "the label '!' is empty; expected a word with letters or digits"),
    ],
)
def test_a_label_that_is_no_folder_is_refused_and_nothing_is_written(
    made: dict[str, Rows], tmp_path: Path, label: str, reason: str, fixed: bool
) -> None:
    made["train"] = Rows(["joy", label], fixed)
    (tmp_path / "home").mkdir()
    with pytest.raises(DataError, match=reason):
        import_dataset(HubSource("owner/name"), tmp_path / "home" / "out")
    assert below(tmp_path) == ["home"]


def test_an_empty_class_name_is_refused(made: dict[str, Rows], tmp_path: Path) -> None:
    """Without a class name there is no label in that row; with an empty one there is, and it has no folder."""
    made["train"] = Rows(["joy", ""])
    with pytest.raises(DataError, match="the label '' is empty"):
        import_dataset(HubSource("owner/name"), tmp_path / "out")
    assert below(tmp_path) == []


def test_what_parts_a_path_becomes_a_dash(made: dict[str, Rows], tmp_path: Path) -> None:
    made["train"] = Rows(["joy/calm", "a\\b", "Mr. Joy"])
    assert dict(import_dataset(HubSource("owner/name"), tmp_path / "out")) == {"train": 3}
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["Mr. Joy", "a-b", "joy-calm"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["joy/calm", "joy-calm", "joy/calm"]}, "labels 'joy/calm' and 'joy-calm' would share the folder"),
        ({"train": ["joy"], "validation": ["joy"], "dev": ["joy"]}, "'validation' and 'dev' would share the folder"),
    ],
)
def test_two_labels_or_splits_never_share_a_folder(made: dict[str, Rows], tmp_path: Path, splits, message) -> None:
    """Two splits would both be val, and the images of the second took the places of those of the first."""
    made |= {name: Rows(labels) for name, labels in splits.items()}
    with pytest.raises(DataError, match=message):
        import_dataset(HubSource("owner/name"), tmp_path / "out")
    assert below(tmp_path) == []
