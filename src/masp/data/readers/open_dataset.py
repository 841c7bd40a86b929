"""Opening a data set in whichever known layout it lies: the one door to all readers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from masp.core.config import DataConfig, SplitConfig
from masp.core.errors import DataError, counted, did_you_mean
from masp.core.labels import validate_labels
from masp.data.file_listing import images_from, unreadable
from masp.data.readers.common import Reading
from masp.data.readers.detect import NAMES, read_layout
from masp.data.records import BadFiles, Dataset, Record, relabelled
from masp.data.splits import by_content, divided_by_file, paper_like
from masp.data.tables import is_table

__all__ = ["images_from", "open_dataset"]

log = logging.getLogger(__name__)


def open_dataset(data: DataConfig | str | Path, layout: str = "auto", strict: bool = False) -> Dataset:
    """A data set from a folder in one of the known layouts, or from a table.

    Known are the published layouts of EmoSet (and its re-arrangement into {train,test}/<label> with
    annotation/<label>), FI, Emotion6, Flickr, Instagram, Abstract and ArtPhoto, folder trees <folder>/<label> and
    <folder>/<split>/<label> with labels of any name, and tables of path and label. Published splits are used where
    they exist; otherwise the files' content decides.

    Args:
        data: the folder, a CSV, TSV or Parquet file, or the settings of a run's data.
        layout: "auto", or one of the names that `data.layout` may have, when `data` is a path.
        strict: stop at the first annotation that cannot be used, instead of leaving up to 1 % of them out.

    Raises:
        DataError: missing or empty folder, unknown layout, one class only, labels that cannot be told apart, or too
            many annotations that cannot be used.
    """
    settings = data if isinstance(data, DataConfig) else settings_for(data, layout)
    reading = read_dataset(settings, BadFiles(strict))
    path = existing_path(settings)
    dataset = _finished(reading, path if path.is_dir() else path.parent, settings)
    return dataset if settings.taxonomy is None else relabelled(dataset, settings.taxonomy)


def read_dataset(settings: DataConfig, account: BadFiles) -> Reading:
    """The records of a data set as they are published: not divided, and with whatever labels occur.

    Raises:
        DataError: a missing path, an unknown layout, or more faults than the account allows.
    """
    return read_layout(existing_path(settings), settings, account)


def existing_path(settings: DataConfig) -> Path:
    """The folder or table of a data set.

    Raises:
        DataError: the settings name none, or one that does not exist or is another kind of file.
    """
    path = settings.path
    if path is None:
        raise DataError("no data set is named", "a folder", "Set data.path.")
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error if isinstance(error, OSError) else OSError(0, str(error))) from None
    if not path.is_dir() and not is_table(path):
        raise DataError(f"{path} is a file", "the folder of a data set, or a table", "Name the folder.")
    return path


def settings_for(path: str | Path, layout: str = "auto") -> DataConfig:
    """The default settings for a path.

    Raises:
        DataError: an unknown layout.
    """
    if layout not in NAMES:
        raise DataError(f"unknown layout '{layout}'", ", ".join(NAMES), did_you_mean(layout, NAMES))
    return DataConfig.model_validate({"path": Path(path), "layout": layout})


def usable_labels(reading: Reading, root: Path) -> tuple[str, ...]:
    """The labels of a reading; a data set may be without any, for stage 1.

    Raises:
        DataError: there are no images, one class only, or labels that cannot be told apart.
    """
    if not any(reading.splits.values()):
        raise DataError(f"{root} holds no images", f"images in the layout {reading.layout}", "Check the path.")
    found = {record.label for records in reading.splits.values() for record in records} - {None}
    if len(found) == 1:
        raise DataError(
            f"{root} holds one class only ({found.pop()})",
            "at least two classes",
            "Add images of another class, or check that the path is that of the whole data set.",
        )
    return validate_labels(reading.labels) if found or reading.labels else ()


def _finished(reading: Reading, root: Path, settings: DataConfig) -> Dataset:
    labels = usable_labels(reading, root)
    splits, split_by = divided(reading, root, settings)
    rejected = tuple(reading.account.rejected)
    dataset = Dataset(root.resolve().name, root, labels, splits, reading.layout, rejected, split_by)
    log.info("%s; %s", dataset.summary(), reading.account.summary())
    return dataset


def divided(reading: Reading, root: Path, settings: DataConfig) -> tuple[Mapping[str, tuple[Record, ...]], str]:
    """The records in the splits that training and evaluation use, and where these come from (`Dataset.split_by`).

    Raises:
        DataError: a file cannot be read; `data.splits.file` is no division, or that of another data set.
    """
    name = root.resolve().name
    if settings.splits.file is None:
        return _splits(reading, name, settings)
    whole = {split: tuple(records) for split, records in reading.splits.items()}
    found = divided_by_file(Dataset(name, root, reading.labels, whole, reading.layout), settings.splits.file)
    return found.splits, found.split_by


def _splits(reading: Reading, name: str, settings: DataConfig) -> tuple[Mapping[str, tuple[Record, ...]], str]:
    wanted, usual = settings.splits, SplitConfig()
    published = "all" not in reading.splits
    if published and wanted.kind == "auto":
        if (wanted.train, wanted.val, wanted.test, wanted.seed) != (usual.train, usual.val, usual.test, usual.seed):
            log.warning("the published split is used; shares and seed need data.splits.kind=content")
        return {split: tuple(records) for split, records in reading.splits.items()}, "published"
    records: Sequence[Record] = [record for chosen in reading.splits.values() for record in chosen]
    log.info("dividing %s by their content", counted(len(records), "image"))
    if wanted.kind == "paper-like":
        fractions = paper_like("emotion6" if reading.layout == "emotion6" else name)
        return by_content(records, fractions, wanted.seed), "paper-like"
    fractions = {"train": wanted.train, "val": wanted.val, "test": wanted.test}
    return by_content(records, fractions, wanted.seed), "content"
