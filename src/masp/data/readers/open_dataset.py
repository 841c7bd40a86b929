"""Opening a data set in whichever known layout it lies, by the reader of that layout."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from masp.core.config import DataConfig, SplitConfig
from masp.core.errors import DataError, counted, did_you_mean
from masp.core.labels import validate_labels
from masp.core.settings import ColumnsConfig
from masp.data.file_listing import left_behind, listing, unreadable
from masp.data.readers import art, emoset, emotion6, fi, folders
from masp.data.readers import table_dataset as listed
from masp.data.readers.common import Reading
from masp.data.records import BadFiles, Dataset, Record, relabelled
from masp.data.splits import by_content, divided_by_file, paper_like
from masp.data.tables import is_table

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
    labels = {record.label for records in reading.splits.values() for record in records} - {None}
    if len(labels) == 1:
        raise DataError(
            f"{root} holds one class only ({labels.pop()})",
            "at least two classes",
            "Add images of another class, or check that the path is that of the whole data set.",
        )
    return validate_labels(reading.labels) if labels or reading.labels else ()


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
    dataset = divided_by_file(Dataset(name, root, reading.labels, whole, reading.layout), settings.splits.file)
    return dataset.splits, dataset.split_by


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


NAMES: tuple[str, ...] = get_args(DataConfig.model_fields["layout"].annotation)


@dataclass(frozen=True)
class DatasetLayout:
    """One arrangement of files.

    Attributes:
        name: what `data.layout` calls it.
        fits: whether a path looks like it; a layout that is asked for by name is read without asking.
        read: makes records of it.
    """

    name: str
    fits: Callable[[Path, DataConfig], bool]
    read: Callable[[Path, DataConfig, BadFiles], Reading]


def _emoset(root: Path, account: BadFiles) -> Reading:
    if emoset.is_published(root):
        return emoset.read_emoset(root, account)
    if not folders.split_folders(root):
        raise DataError(
            f"{root} holds neither train.json, val.json or test.json nor folders train and test",
            "one of EmoSet's two layouts",
            "Check the path, or leave the layout to 'auto'.",
        )
    return folders.read_folders(root, account)


def _plain(name: str, fits: Callable[[Path], bool], read: Callable[[Path, BadFiles], Reading]) -> DatasetLayout:
    """A layout that no settings change."""
    return DatasetLayout(name, lambda root, settings: fits(root), lambda root, settings, account: read(root, account))


def _table(
    name: str,
    fits: Callable[[Path, ColumnsConfig], bool],
    read: Callable[[Path, ColumnsConfig, BadFiles], Reading],
) -> DatasetLayout:
    """A layout in which the settings may name the columns."""
    return DatasetLayout(
        name,
        lambda root, settings: fits(root, settings.columns),
        lambda root, settings, account: read(root, settings.columns, account),
    )


# The first that fits is taken. Folders of labels come before tables: a table may lie beside them for other reasons.
# A table of aspects is about them whatever lies beside it.
LAYOUTS: tuple[DatasetLayout, ...] = (
    DatasetLayout(
        "emotion6",
        lambda root, settings: emotion6.is_published(root),
        lambda root, settings, account: emotion6.read_emotion6(root, account, settings.label_from),
    ),
    _plain("emoset", emoset.is_published, _emoset),
    _plain("fi", fi.is_published, fi.read_fi),
    _plain("abstract", art.is_abstract, art.read_abstract),
    _table("aspects", listed.has_aspects, listed.read_aspects),
    _plain("folder", folders.is_tree, folders.read_folders),
    _plain("artphoto", art.is_artphoto, art.read_artphoto),
    _table("votes", listed.has_votes, listed.read_votes),
    _table("table", listed.has_labels, listed.read_labels),
)
_LEFT_BEHIND = "hidden entries and what systems leave behind (.DS_Store, Thumbs.db, __MACOSX …)"
_PUBLISHED = ("emotion6", "emoset", "fi", "abstract", "artphoto")  # looked for one folder deeper as well
_PATTERN = DatasetLayout(
    "pattern",
    lambda root, settings: settings.label_pattern is not None,
    lambda root, settings, account: folders.read_pattern(root, settings.label_pattern or "", account),
)
_VALUES = DatasetLayout(
    "table",
    lambda root, settings: settings.label_thresholds is not None,
    lambda root, settings, account: listed.read_values(
        root, settings.columns, settings.label_thresholds or {}, account
    ),
)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}


def read_layout(root: Path, settings: DataConfig, account: BadFiles) -> Reading:
    """The records of a data set in the layout that is asked for, or in the one that fits.

    Raises:
        DataError: nothing fits, the layout is another one, or too much of it cannot be used.
    """
    layout, home = recognised(root, settings) or (_BY_NAME["folder"], root)
    reading = layout.read(home, settings, account)
    homes = {os.path.dirname(record.path) for records in reading.splits.values() for record in records}  # noqa: PTH120
    tops = {os.fspath(path if path.is_dir() else path.parent) for path in (root, home)}
    count = left_behind(tops | homes)
    if not count:
        return reading
    if not account.tolerant:  # a check tells it in its own way
        log.info("%s: passed over %d %s", root, count, _LEFT_BEHIND)
    return replace(reading, skipped={**reading.skipped, _LEFT_BEHIND: count})


def recognised(root: Path, settings: DataConfig) -> tuple[DatasetLayout, Path] | None:
    """The layout that a path looks like and the folder it begins in; None where it looks like nothing known."""
    for chosen in (_PATTERN, _VALUES):  # the settings say what the labels are, whatever the folder looks like
        if chosen.fits(root, settings):
            return chosen, root
    if settings.layout != "auto":
        return _BY_NAME[settings.layout], root
    for layout in LAYOUTS:
        if layout.fits(root, settings):
            return layout, root
    for inner in _only_folder(root):
        for layout in LAYOUTS:
            if layout.name in _PUBLISHED and layout.fits(inner, settings):
                return layout, inner
    return None


def _only_folder(root: Path) -> list[Path]:
    """The one folder in a folder that holds nothing else, as unpacking an archive often leaves it; else nothing."""
    inner, files = listing(root) if root.is_dir() else ([], [])
    return inner if len(inner) == 1 and not files else []
