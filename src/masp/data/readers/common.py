"""What the readers of the layouts share."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masp.core.errors import DataError
from masp.core.labels import spelled
from masp.data.bad_files import BadFiles
from masp.data.records import Record


class LabelError(DataError):
    """A label that the data set's own set of labels does not have."""


@dataclass(frozen=True)
class Reading:
    """What one layout's reader found.

    Attributes:
        layout: name of the layout.
        labels: every class, in the order of the release or sorted.
        splits: split name → records; "all" alone where the release has no splits.
        account: what was read, used and left out.
        missing: annotations that a list or a folder promises and that are not there.
        skipped: reason → how many files or rows the release itself, or their names, say not to use.
    """

    layout: str
    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[Record]]
    account: BadFiles
    missing: tuple[Path, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def label_of(name: str) -> str:
    """A class name from a folder's name: composed Unicode, so that it is the same on every file system."""
    return unicodedata.normalize("NFC", name)


def member(name: str, labels: Sequence[str]) -> str:
    """The label of a set that a name means, in the set's spelling.

    Raises:
        LabelError: the set has no such label.
    """
    label = spelled(name, labels)
    if label is None:
        raise LabelError(f"the label is {name!r:.60}", f"one of {', '.join(labels)}", "Correct the label.")
    return label


def by_split(records: Sequence[tuple[str, Record]]) -> dict[str, list[Record]]:
    """Records in the splits they are marked with: train, val and test first, the others in the order they occur."""
    found: dict[str, list[Record]] = {}
    for split, record in records:
        found.setdefault(split, []).append(record)
    usual = [name for name in ("train", "val", "test") if name in found]
    return {name: found[name] for name in [*usual, *(name for name in found if name not in usual)]}


def inside(root: Path, place: str) -> Path:
    """The file that a list of a data set names, which has to lie inside the data set's folder.

    Raises:
        DataError: it lies outside.
    """
    parts = [part for part in place.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    try:
        named = b"\0" not in os.fsencode(place)
    except UnicodeEncodeError:
        named = False
    if not parts or ".." in parts or not named:
        raise DataError(f"{place!r:.80} does not name a file of the data set", "a path inside it", "Correct the list.")
    return root.joinpath(*parts)


def exists(path: Path) -> bool:
    """Whether there is such a file; False for names that no file can have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
