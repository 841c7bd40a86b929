"""Which images are annotated, and where each of them stands in what is written."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masp.core.atomic_io import fingerprint
from masp.core.config import DataConfig
from masp.core.errors import DataError, UsageError
from masp.core.labels import LABEL_SETS
from masp.data.file_listing import images_from
from masp.data.images import FORMAT_NAMES
from masp.data.readers.emoset import SPLITS, UNDIVIDED
from masp.data.readers.open_dataset import existing_path, read_dataset, recognised
from masp.data.records import BadFiles

UNLABELLED = "unlabelled"
"""Folder of the images whose emotion is unknown."""

_LONGEST_NAME = 50


@dataclass(frozen=True, slots=True)
class PendingImage:
    """One image on its way to an annotation.

    Attributes:
        path: its file.
        place: the same, as seen from the data set's folder.
        label: its emotion; None where it is unknown.
        split: the split it stands in.
        home: the folder of its label in what is written.
        name: its id there, which no other image of that folder has.
        known: aspect → the answer that the data set has already.
    """

    path: Path
    place: str
    label: str | None
    split: str
    home: str
    name: str
    known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageCollection:
    """All images to be annotated, in an order that is the same everywhere.

    Attributes:
        root: folder of the data set.
        labels: every class, in the order of the release; EmoSet's where the images have none.
        items: the images.
        labelled: whether the images have labels.
    """

    root: Path
    labels: tuple[str, ...]
    items: tuple[PendingImage, ...]
    labelled: bool

    def digest(self) -> str:
        """SHA-256 over where the images lie, their labels, splits and sizes."""
        facts = [[item.place, item.label, item.split, _size(item.path), dict(item.known)] for item in self.items]
        return fingerprint([self.labels, facts])


def find_images(settings: DataConfig, limit: int | None = None) -> ImageCollection:
    """The images of a data set in a known layout, with labels and splits; otherwise those below a folder, without.

    A data set with one class only has no labels either, as there is nothing to choose from.

    Args:
        settings: where it lies, and how it is read.
        limit: this many images, spread evenly over the data set; None: all.

    Raises:
        DataError: there are no images, or they cannot be read as the settings say.
        UsageError: settings that have no meaning here.
    """
    if settings.taxonomy is not None or settings.splits.file is not None:
        key = "data.taxonomy" if settings.taxonomy is not None else "data.splits.file"
        raise UsageError(f"{key} has no meaning here", "the data set as it is", "Use it when you train.")
    path = existing_path(settings)
    root = path if path.is_dir() else path.parent
    rows = _known(settings) if recognised(path, settings) is not None else _plain(path)
    labels, records = rows
    if not records:
        raise DataError(f"{path} holds no images", f"{FORMAT_NAMES} files", "Check the path.")
    if limit is not None and limit < len(records):
        records = [records[number * len(records) // limit] for number in range(limit)]
    named = _Names()
    items = tuple(
        PendingImage(
            file, _relative_path(file, root), label, split, home := _home(label), named(home, file.stem), known
        )
        for file, label, split, known in records
    )
    return ImageCollection(root, labels or LABEL_SETS["emoset"], items, bool(labels))


Row = tuple[Path, str | None, str, Mapping[str, str]]


def _known(settings: DataConfig) -> tuple[tuple[str, ...], list[Row]]:
    reading = read_dataset(settings, BadFiles())
    assert {*reading.splits} <= {*SPLITS, UNDIVIDED}, "a split whose list EmoSet's reader would not find"
    records = [(split, record) for split, chosen in reading.splits.items() for record in chosen]
    one_class = len({record.label for _, record in records} - {None}) < 2
    rows: list[Row] = [
        (record.path, None if one_class else record.label, split, record.annotations) for split, record in records
    ]
    return () if one_class else reading.labels, rows


def _plain(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """The images below a folder, or those of a table without labels: a table has a layout, so it is a folder."""
    return (), [(file, None, UNDIVIDED, {}) for file in images_from([path])]


class _Names:
    """Gives every image of a folder a name of its own that any file system can hold."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, str]] = set()
        self._next: dict[tuple[str, str], int] = {}

    def __call__(self, home: str, stem: str) -> str:
        base = name = safe(stem, "picture")
        number = self._next.get((home, base.casefold()), 1)
        while (home, name.casefold()) in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._next[home, base.casefold()] = number
        self._taken.add((home, name.casefold()))
        return name


def safe(text: str, otherwise: str) -> str:
    """A text as the name of a file or folder anywhere."""
    plain = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._")
    return plain[:_LONGEST_NAME].strip("._") or otherwise


def _home(label: str | None) -> str:
    return UNLABELLED if label is None else safe(label, "label")


def _relative_path(file: Path, root: Path) -> str:
    return (file.relative_to(root) if file.is_relative_to(root) else Path(file.name)).as_posix()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def splits_of(items: Sequence[PendingImage]) -> tuple[str, ...]:
    """The splits that occur, in the order in which they first do."""
    return tuple(dict.fromkeys(item.split for item in items))
