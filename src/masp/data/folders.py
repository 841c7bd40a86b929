"""Folder trees: one folder per class, perhaps inside one folder per split, perhaps with annotations beside them."""

import logging
from collections import Counter
from pathlib import Path

from masp.data.annotations import read_annotation
from masp.data.quarantine import Quarantine
from masp.data.reading import Reading, exists, label_of
from masp.data.records import Record
from masp.data.walk import is_picture, listing
from masp.errors import DataError

log = logging.getLogger(__name__)

ANNOTATION = "annotation"
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


def read_folders(root: Path, strict: bool = False) -> Reading:
    """Records of `root/<label>/*` or `root/<split>/<label>/*`, with `root/annotation/<label>/<name>.json` if there.

    A picture without an annotation file has no annotations; one whose annotation is damaged is left out.

    Raises:
        DataError: the tree is neither of the two, or too much of it cannot be read.
    """
    splits = split_folders(root)
    others = [f for f in listing(root)[0] if f not in splits.values() and f.name.lower() != ANNOTATION]
    if splits and others:
        raise DataError(f"{root} has folders of splits and also {others[0].name}", _TREES, "Move it elsewhere.")
    account = Quarantine(strict)
    annotation = root / ANNOTATION
    notes = annotation if annotation.is_dir() else None
    if splits:
        trees = {name: _classes(listing(folder)[0], notes, account) for name, folder in splits.items()}
    else:
        trees = {"all": _classes(others, notes, account)}
    labels = {record.label for records in trees.values() for record in records if record.label is not None}
    if not labels:
        raise _nothing_found(root, others)
    names = [name for name in ("train", "val", "test", "all") if name in trees]
    layout = "split folders" if splits else "folder"
    return Reading(layout, tuple(sorted(labels)), {name: trees[name] for name in names}, account)


def _classes(folders: list[Path], notes: Path | None, account: Quarantine) -> list[Record]:
    records: list[Record] = []
    ignored: Counter[str] = Counter()
    for folder in folders:
        inner, files = listing(folder)
        pictures = [file for file in files if is_picture(file)]
        if inner and pictures:
            raise DataError(
                f"{folder} holds pictures and also the folder {inner[0].name}", _TREES, "Move it elsewhere."
            )
        if not pictures:
            raise _empty_class(folder, inner)
        ignored.update(file.suffix.lower() or "no suffix" for file in files if not is_picture(file))
        for picture in pictures:
            record = _record(picture, label_of(folder.name), notes, account)
            if record is not None:
                records.append(record)
    if ignored:
        kinds = ", ".join(f"{count} × {suffix}" for suffix, count in ignored.most_common(5))
        log.warning("%d files are not named like pictures and were ignored: %s", ignored.total(), kinds)
    return records


def _record(picture: Path, label: str, notes: Path | None, account: Quarantine) -> Record | None:
    file = notes / picture.parent.name / f"{picture.stem}.json" if notes is not None else None
    if file is None or not exists(file):
        account.accept()
        return Record(picture, label)
    try:
        annotations, extra = read_annotation(file)
    except DataError as error:
        account.reject(picture, str(error))
        return None
    account.accept()
    return Record(picture, label, annotations, extra=extra)


def _empty_class(folder: Path, inner: list[Path]) -> DataError:
    if inner:
        return DataError(
            f"{folder} holds folders ({inner[0].name}, …) where pictures should be", _TREES, f"Perhaps open {folder}."
        )
    return DataError(f"the class folder {folder} holds no picture", _TREES, "Remove it, or add pictures.")


def _nothing_found(root: Path, others: list[Path]) -> DataError:
    if not others and any(map(is_picture, listing(root)[1])):
        return DataError(f"{root} holds pictures but no class folders", _TREES, "Sort the pictures into folders.")
    return DataError(f"{root} holds no pictures", f"a data set in a known layout, such as {_TREES}", "Check the path.")
