"""Opening a data set in whichever known layout it lies: the one door to all readers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from masp.config import DataConfig, SplitConfig
from masp.data import emoset, emotion6, folders
from masp.data.reading import Reading
from masp.data.records import Dataset, Record
from masp.data.splits import by_content, paper_like
from masp.data.walk import images_from, unreadable
from masp.errors import DataError
from masp.labels import validate_labels

__all__ = ["images_from", "open_dataset"]

log = logging.getLogger(__name__)


def open_dataset(data: DataConfig | str | Path, layout: str = "auto", strict: bool = False) -> Dataset:
    """A data set from a folder in one of the known layouts.

    Known are EmoSet's published layout, its re-arrangement into {train,test}/<label> with annotation/<label>,
    Emotion6's published layout, and folder trees <folder>/<label> and <folder>/<split>/<label> with labels of any
    name. Published splits are used where they exist; otherwise the files' content decides.

    Args:
        data: the folder, or the settings of a run's data.
        layout: "auto", "folder", "emoset" or "emotion6", when `data` is a folder.
        strict: stop at the first annotation that cannot be used, instead of leaving up to 1 % of them out.

    Raises:
        DataError: missing or empty folder, unknown layout, one class only, labels that cannot be told apart, or too
            many annotations that cannot be used.
    """
    settings = data if isinstance(data, DataConfig) else _settings(data, layout)
    if settings.path is None:
        raise DataError("no data set is named", "a folder", "Set data.path.")
    root = settings.path
    try:
        root.stat()
    except (OSError, ValueError) as error:
        raise unreadable(root, error if isinstance(error, OSError) else OSError(0, str(error))) from None
    if not root.is_dir():
        raise DataError(f"{root} is a file", "the folder of a data set", "Name the folder.")
    return _finished(_read(root, settings, strict), root, settings)


def _settings(path: str | Path, layout: str) -> DataConfig:
    known = ("auto", "folder", "emoset", "emotion6")
    if layout not in known:
        raise DataError(f"unknown layout '{layout}'", ", ".join(known), "Correct the layout.")
    return DataConfig.model_validate({"path": Path(path), "layout": layout})


def _read(root: Path, settings: DataConfig, strict: bool) -> Reading:
    layout = settings.layout
    if layout == "emotion6" or (layout == "auto" and emotion6.is_published(root)):
        return emotion6.read_emotion6(root, settings.label_from, strict)
    if layout in ("auto", "emoset") and emoset.is_published(root):
        return emoset.read_emoset(root, strict)
    if layout == "emoset" and not folders.split_folders(root):
        raise DataError(
            f"{root} holds neither train.json, val.json or test.json nor folders train and test",
            "one of EmoSet's two layouts",
            "Check the path, or leave the layout to 'auto'.",
        )
    return folders.read_folders(root, strict)


def _finished(reading: Reading, root: Path, settings: DataConfig) -> Dataset:
    if not any(reading.splits.values()):
        raise DataError(f"{root} holds no pictures", f"pictures in the layout {reading.layout}", "Check the path.")
    found = {record.label for records in reading.splits.values() for record in records}
    if len(found) == 1:
        raise DataError(
            f"{root} holds one class only ({found.pop()})",
            "at least two classes",
            "Add pictures of another class, or check that the path is that of the whole data set.",
        )
    labels = validate_labels(reading.labels)
    name = root.resolve().name
    splits, split_by = _splits(reading, name, settings)
    dataset = Dataset(name, root, labels, splits, reading.layout, tuple(reading.account.rejected), split_by)
    log.info("%s; %s", dataset.summary(), reading.account.summary())
    return dataset


def _splits(reading: Reading, name: str, settings: DataConfig) -> tuple[Mapping[str, tuple[Record, ...]], str]:
    wanted, usual = settings.splits, SplitConfig()
    published = "all" not in reading.splits
    if published and wanted.kind == "auto":
        if (wanted.train, wanted.val, wanted.test, wanted.seed) != (usual.train, usual.val, usual.test, usual.seed):
            log.warning("the published split is used; shares and seed need data.splits.kind=content")
        return {split: tuple(records) for split, records in reading.splits.items()}, "published"
    records: Sequence[Record] = [record for chosen in reading.splits.values() for record in chosen]
    log.info("dividing %d pictures by their content", len(records))
    if wanted.kind == "paper-like":
        fractions = paper_like("emotion6" if reading.layout == "emotion6" else name)
        return by_content(records, fractions, wanted.seed), "paper-like"
    fractions = {"train": wanted.train, "val": wanted.val, "test": wanted.test}
    return by_content(records, fractions, wanted.seed), "content"
