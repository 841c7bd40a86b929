"""The layouts that are known, how each is recognised, and which reader reads it."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from masp.core.config import DataConfig
from masp.core.errors import DataError
from masp.data.file_listing import left_behind, listing
from masp.data.readers import art, emoset, emotion6, fi, folders
from masp.data.readers import table_dataset as listed
from masp.data.readers.common import Reading
from masp.data.records import BadFiles

log = logging.getLogger(__name__)

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


def _emoset(root: Path, settings: DataConfig, account: BadFiles) -> Reading:
    if emoset.is_published(root):
        return emoset.read_emoset(root, account)
    if not folders.split_folders(root):
        raise DataError(
            f"{root} holds neither train.json, val.json or test.json nor folders train and test",
            "one of EmoSet's two layouts",
            "Check the path, or leave the layout to 'auto'.",
        )
    return folders.read_folders(root, account)


# The first that fits is taken. Folders of labels come before tables: a table may lie beside them for other reasons.
# A table of aspects is about them whatever lies beside it.
LAYOUTS: tuple[DatasetLayout, ...] = (
    DatasetLayout(
        "emotion6",
        lambda root, settings: emotion6.is_published(root),
        lambda root, settings, account: emotion6.read_emotion6(root, account, settings.label_from),
    ),
    DatasetLayout("emoset", lambda root, settings: emoset.is_published(root), _emoset),
    DatasetLayout(
        "fi",
        lambda root, settings: fi.is_published(root),
        lambda root, settings, account: fi.read_fi(root, account),
    ),
    DatasetLayout(
        "abstract",
        lambda root, settings: art.is_abstract(root),
        lambda root, settings, account: art.read_abstract(root, account),
    ),
    DatasetLayout(
        "aspects",
        lambda root, settings: listed.has_aspects(root, settings.columns),
        lambda root, settings, account: listed.read_aspects(root, settings.columns, account),
    ),
    DatasetLayout(
        "folder",
        lambda root, settings: folders.is_tree(root),
        lambda root, settings, account: folders.read_folders(root, account),
    ),
    DatasetLayout(
        "artphoto",
        lambda root, settings: root.is_dir() and art.is_artphoto(root),
        lambda root, settings, account: art.read_artphoto(root, account),
    ),
    DatasetLayout(
        "votes",
        lambda root, settings: listed.has_votes(root, settings.columns),
        lambda root, settings, account: listed.read_votes(root, settings.columns, account),
    ),
    DatasetLayout(
        "table",
        lambda root, settings: listed.has_labels(root, settings.columns),
        lambda root, settings, account: listed.read_labels(root, settings.columns, account),
    ),
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
