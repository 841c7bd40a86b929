"""What the readers of the layouts share."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.data.quarantine import Quarantine
from masp.data.records import Record
from masp.errors import DataError


@dataclass(frozen=True)
class Reading:
    """What one layout's reader found.

    Attributes:
        layout: name of the layout.
        labels: every class, in the order of the release or sorted.
        splits: split name → records; "all" alone where the release has no splits.
        account: what was read, used and left out.
    """

    layout: str
    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[Record]]
    account: Quarantine


def label_of(name: str) -> str:
    """A class name from a folder's name: composed Unicode, so that it is the same on every file system."""
    return unicodedata.normalize("NFC", name)


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
