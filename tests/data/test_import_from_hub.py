"""Data sets in the shapes of the Hugging Face hub, copied into folders."""

import sys
from pathlib import Path

import pytest
from made_pictures import encoded, noise

from masp.data.hub import Source, import_dataset
from masp.data.readers import open_dataset
from masp.errors import DataError, UsageError

CONTENTS = [encoded(noise(seed=seed), kind) for seed, kind in enumerate(["PNG", "JPEG", "PNG", "PNG"])]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Parquet files with embedded pictures, as most image data sets of the hub have them."""
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
    counts = import_dataset(Source(str(published)), tmp_path / "out", steps.append)
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
    source = Source(str(published), image="picture", label="feeling", limit=1)
    assert dict(import_dataset(source, tmp_path / "out")) == {"train": 1, "validation": 1}
    with pytest.raises(DataError, match=r"no column 'pictrue'\. Did you mean 'picture'"):
        import_dataset(Source(str(published), image="pictrue"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_over(published: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; expected a new or empty folder"):
        import_dataset(Source(str(published)), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_cannot_be_loaded_is_named(published: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the data set .*empty cannot be loaded \("):
        import_dataset(Source(str(tmp_path / "empty")), tmp_path / "out")


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"Install it with: pip install 'masp\[hub\]'"):
        import_dataset(Source("owner/name"), tmp_path / "out")
