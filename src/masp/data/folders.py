"""Folder trees: one folder per class, perhaps inside one folder per split, perhaps with annotations beside them."""

import logging
from collections import Counter
from pathlib import Path

from masp.data.annotations import read_annotation
from masp.data.images import FORMAT_NAMES, UNREAD_SUFFIXES
from masp.data.quarantine import Quarantine
from masp.data.reading import Reading, exists, label_of
from masp.data.records import Record
from masp.data.walk import is_picture, listing
from masp.errors import DataError, counted

log = logging.getLogger(__name__)

ANNOTATION = "annotation"
_MOST_NAMED = 10  # empty folders in a message
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_TREES = "<folder>/<label>/<picture> or <folder>/<train|val|test>/<label>/<picture>"


def split_folders(root: Path) -> dict[str, Path]:
    """Split name → folder, for the folders that are named like a split and hold folders.

    Raises:
        DataError: two folders are the same split, or the root cannot be read.
    """
    found: dict[str, Path] = {}
    for folder in listing(root)[0]:
        name = SPLITS.get(folder.name.lower())
        if name is None or not listing(folder)[0]:
            continue
        if name in found:
            raise DataError(f"{found[name]} and {folder} are the same split", "one folder each", "Merge them.")
        found[name] = folder
    return found


def is_tree(root: Path) -> bool:
    """Whether a folder holds folders of splits, or at least two folders of pictures."""
    if not root.is_dir():
        return False
    if split_folders(root):
        return True
    return sum(any(map(is_picture, listing(folder)[1])) for folder in listing(root)[0]) > 1


def read_folders(root: Path, account: Quarantine) -> Reading:
    """Records of `root/<label>/*` or `root/<split>/<label>/*`, with `root/annotation/<label>/<name>.json` if there.

    A picture without an annotation file has no annotations; one whose annotation is damaged is left out. A folder
    without anything that could be a picture is passed over, and counted.

    Raises:
        DataError: the tree is neither of the two, or too much of it cannot be read.
    """
    splits = split_folders(root)
    others = [f for f in listing(root)[0] if f not in splits.values() and f.name.lower() != ANNOTATION]
    annotation = root / ANNOTATION
    tree = _Tree(account, annotation if annotation.is_dir() else None)
    if splits:
        strange = next((folder for folder in others if not tree.is_empty(folder)), None)
        if strange is not None:
            raise DataError(f"{root} has folders of splits and also {strange.name}", _TREES, "Move it elsewhere.")
        trees = {name: tree.records(listing(folder)[0]) for name, folder in splits.items()}
    else:
        trees = {"all": tree.records(others)}
    labels = {record.label for records in trees.values() for record in records if record.label is not None}
    account.finish()
    if not labels:
        raise _nothing_found(root, others)
    for folder in (root, *splits.values()):
        _refuse_strays(folder)
    names = [name for name in ("train", "val", "test", "all") if trees.get(name)]
    layout = "split folders" if splits else "folder"
    chosen = {name: trees[name] for name in names}
    return Reading(layout, tuple(sorted(labels)), chosen, account, tuple(tree.missing), tree.skipped())


class _Tree:
    """Class folders as records, with an account of what was passed over."""

    def __init__(self, account: Quarantine, notes: Path | None) -> None:
        self.account = account
        self.notes = notes
        self.missing: list[Path] = []
        self.ignored: Counter[str] = Counter()
        self.empty: list[Path] = []

    def is_empty(self, folder: Path) -> bool:
        """Whether a folder holds neither pictures nor folders; it is then remembered as passed over.

        Raises:
            DataError: it holds pictures that are not read, so that its label is meant.
        """
        inner, files = listing(folder)
        if inner or any(map(is_picture, files)):
            return False
        unread = next((file.name for file in files if file.suffix.lower() in UNREAD_SUFFIXES), None)
        if unread is not None:
            todo = "Save them again as JPEG or PNG, or remove the folder."
            raise DataError(f"{folder} holds no picture that is read, but {unread}", f"{FORMAT_NAMES} files", todo)
        self.empty.append(folder)
        return True

    def records(self, folders: list[Path]) -> list[Record]:
        records: list[Record] = []
        for folder in folders:
            if self.is_empty(folder):
                continue
            for picture in self._pictures(folder):
                record = self._record(picture, label_of(folder.name))
                if record is not None:
                    records.append(record)
        return records

    def skipped(self) -> dict[str, int]:
        if self.ignored:
            kinds = ", ".join(f"{count} × {suffix}" for suffix, count in self.ignored.most_common(5))
            log.warning("ignored, as not named like pictures: %s (%s)", counted(self.ignored.total(), "file"), kinds)
        found = {f"files named {suffix}, which are not pictures": count for suffix, count in self.ignored.items()}
        if self.empty:
            names = [folder.name for folder in self.empty]
            shown = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
            reason = f"folders without a picture, which are no labels: {shown}"
            log.warning("passed over %d %s", len(names), reason)
            found[reason] = len(names)
        return found

    def _pictures(self, folder: Path) -> list[Path]:
        inner, files = listing(folder)
        pictures = [file for file in files if is_picture(file)]
        if inner and pictures:
            raise DataError(
                f"{folder} holds pictures and also the folder {inner[0].name}", _TREES, "Move it elsewhere."
            )
        if not pictures:
            raise DataError(
                f"{folder} holds folders ({inner[0].name}, …) where pictures should be",
                _TREES,
                f"Perhaps open {folder}.",
            )
        self.ignored.update(file.suffix.lower() or "without suffix" for file in files if not is_picture(file))
        return pictures

    def _record(self, picture: Path, label: str) -> Record | None:
        file = self.notes / picture.parent.name / f"{picture.stem}.json" if self.notes is not None else None
        if file is None or not exists(file):
            if file is not None:
                self.missing.append(file)
            self.account.accept()
            return Record(picture, label)
        try:
            annotations, extra = read_annotation(file)
        except DataError as error:
            self.account.reject(picture, str(error), "annotation")
            return None
        self.account.accept()
        return Record(picture, label, annotations, extra=extra)


def _refuse_strays(folder: Path) -> None:
    """Make sure that no picture lies beside the folders of labels, where nobody can know what it is.

    Raises:
        DataError: one does.
    """
    stray = next(filter(is_picture, listing(folder)[1]), None)
    if stray is not None:
        todo = "Sort them into the folders, or move them elsewhere."
        raise DataError(f"{folder} holds pictures ({stray.name}, …) beside its folders of labels", _TREES, todo)


def _nothing_found(root: Path, others: list[Path]) -> DataError:
    if not others and any(map(is_picture, listing(root)[1])):
        return DataError(f"{root} holds pictures but no class folders", _TREES, "Sort the pictures into folders.")
    return DataError(f"{root} holds no pictures", f"a data set in a known layout, such as {_TREES}", "Check the path.")
