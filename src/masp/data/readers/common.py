"""What the readers of the layouts share."""

import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masp.core.errors import DataError
from masp.core.labels import spelled
from masp.data.file_listing import images_from
from masp.data.records import BadFiles, Record


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


def number_in(cell: str) -> float | None:
    """The finite number that a cell of a table holds; None where it holds something else."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


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
    result: dict[str, list[Record]] = {}
    for split, record in records:
        result.setdefault(split, []).append(record)
    usual = [name for name in ("train", "val", "test") if name in result]
    return {name: result[name] for name in [*usual, *(name for name in result if name not in usual)]}


def inside(root: Path, name: str) -> Path:
    """The file that a list of a data set names, which has to lie inside the data set's folder.

    Raises:
        DataError: it lies outside.
    """
    parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    try:
        named = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        named = False
    if not parts or ".." in parts or not named:
        raise DataError(f"{name!r:.80} does not name a file of the data set", "a path inside it", "Correct the list.")
    return root.joinpath(*parts)


def exists(path: Path) -> bool:
    """Whether there is such a file; False for names that no file can have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


class ImageLookup:
    """The images below a folder, by the names that tables give them.

    A name that is a path inside the folder is taken as it is. For the others the folder is listed once; then the
    image's path has to end as the name does, so that "joy/1.jpg" is never "fear/1.jpg".

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """The image, or None where there is none.

        Raises:
            DataError: the name lies outside the folder, or fits two images.
        """
        direct = inside(self.root, name)
        if direct.suffix and exists(direct):
            return direct
        if self._by_name is None:
            self._by_name = self._listed()
        folders = direct.relative_to(self.root).parts[:-1]
        if folders[:1] == (self.root.name,):
            folders = folders[1:]
        paths = [path for path in self._by_name.get(direct.name, ()) if _lies_in(path, folders)]
        if len(paths) > 1:
            raise DataError(f"{name!r:.60} fits {paths[0]} and {paths[1]}", "one image", "Write the whole path.")
        return paths[0] if paths else None

    def _listed(self) -> dict[str, list[Path]]:
        names: dict[str, list[Path]] = {}
        for path in images_from([self.root]):
            for name in {path.name, path.stem}:
                names.setdefault(name, []).append(path)
        return names


def _lies_in(path: Path, folders: tuple[str, ...]) -> bool:
    return not folders or path.parent.parts[-len(folders) :] == folders
