"""Folders of images whose paths tell the labels: one folder per class, perhaps one per split, or a pattern."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from masp.core.errors import DataError, counted
from masp.data.file_listing import images_from, is_image_file, listing
from masp.data.images import FORMAT_NAMES, UNREAD_SUFFIXES
from masp.data.readers.common import Reading, by_split, exists, label_of
from masp.data.readers.emoset import read_annotation
from masp.data.records import BadFiles, Record

log = logging.getLogger(__name__)

ANNOTATION = "annotation"
_MOST_NAMED = 10  # names in a message
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
_TREES = "<folder>/<label>/<image> or <folder>/<train|val|test>/<label>/<image>"


def split_folders(root: Path) -> dict[str, Path]:
    """Split name → folder, for the folders that are named like a split and hold folders.

    Raises:
        DataError: two folders are the same split, or the root cannot be read.
    """
    result: dict[str, Path] = {}
    for folder in listing(root)[0]:
        name = SPLITS.get(folder.name.lower())
        if name is None or not listing(folder)[0]:
            continue
        if name in result:
            raise DataError(f"{result[name]} and {folder} are the same split", "one folder each", "Merge them.")
        result[name] = folder
    return result


def is_tree(root: Path) -> bool:
    """Whether a folder holds folders of splits, or at least two folders of images."""
    if not root.is_dir():
        return False
    if split_folders(root):
        return True
    return sum(any(map(is_image_file, listing(folder)[1])) for folder in listing(root)[0]) > 1


def read_folders(root: Path, account: BadFiles) -> Reading:
    """Records of `root/<label>/*` or `root/<split>/<label>/*`, with `root/annotation/<label>/<name>.json` if there.

    An image without an annotation file has no annotations; one whose annotation is damaged is left out. A folder
    without anything that could be an image is passed over, and counted.

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


def read_pattern(root: Path, pattern: str, account: BadFiles) -> Reading:
    """Records of all images below a folder, with the label that a pattern finds in their paths.

    Args:
        root: the folder.
        pattern: a regular expression that is searched for in the path below the folder, written with slashes. Its
            group `label` is the label, a group `split`, if there is one, the split. Where it finds nothing the image
            is left out, and counted.
        account: counts what can be used and what cannot.

    Raises:
        DataError: it is no folder, there are no images, or the pattern finds a label in none of them.
    """
    if not root.is_dir():
        raise DataError(f"{root} is a file", "a folder, as data.label_pattern looks at paths", "Name the folder.")
    search = re.compile(pattern).search
    result: list[tuple[str, Record]] = []
    others: list[str] = []
    for image in images_from([root]):
        path = image.relative_to(root).as_posix()
        match = search(label_of(path))
        label = (match["label"] or "").strip() if match is not None else ""
        if match is None or not label:
            others.append(path)
            continue
        try:
            split = split_of(match["split"] or "") if "split" in match.groupdict() else "all"
        except DataError as error:
            account.reject(image, str(error), "row")
            continue
        account.accept()
        result.append((split, Record(image, label)))
    account.finish()
    if others and not result:
        seen = "data.label_pattern finds no label in any of"
        todo = f"Correct the pattern {pattern!r}."
        raise DataError(f"{seen} {counted(len(others), 'image')} below {root}", f"a label in {_shown(others)}", todo)
    skipped: dict[str, int] = {}
    if others:
        reason = f"images in whose path data.label_pattern finds no label: {_shown(others)}"
        log.warning("left out %d %s", len(others), reason)
        skipped[reason] = len(others)
    labels = tuple(sorted({record.label for _, record in result if record.label is not None}))
    return Reading("pattern", labels, by_split(result), account, skipped=skipped)


def split_of(name: str) -> str:
    """The split that a name means.

    Raises:
        DataError: it means none.
    """
    split = SPLITS.get(name.lower())
    if split is None:
        raise DataError(f"the split is {name!r:.40}", "train, val or test", "Correct its name.")
    return split


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


class _Tree:
    """Class folders as records, with an account of what was passed over."""

    def __init__(self, account: BadFiles, notes: Path | None) -> None:
        self.account = account
        self.notes = notes
        self.missing: list[Path] = []
        self.ignored: Counter[str] = Counter()
        self.empty: list[Path] = []

    def is_empty(self, folder: Path) -> bool:
        """Whether a folder holds neither images nor folders; it is then remembered as passed over.

        Raises:
            DataError: it holds images that are not read, so that its label is meant.
        """
        inner, files = listing(folder)
        if inner or any(map(is_image_file, files)):
            return False
        unread = next((file.name for file in files if file.suffix.lower() in UNREAD_SUFFIXES), None)
        if unread is not None:
            todo = "Save them again as JPEG or PNG, or remove the folder."
            raise DataError(f"{folder} holds no image that is read, but {unread}", f"{FORMAT_NAMES} files", todo)
        self.empty.append(folder)
        return True

    def records(self, folders: list[Path]) -> list[Record]:
        records: list[Record] = []
        for folder in folders:
            if self.is_empty(folder):
                continue
            for image in self._images(folder):
                record = self._record(image, label_of(folder.name))
                if record is not None:
                    records.append(record)
        return records

    def skipped(self) -> dict[str, int]:
        if self.ignored:
            kinds = ", ".join(f"{count} × {suffix}" for suffix, count in self.ignored.most_common(5))
            log.warning("ignored, as not named like images: %s (%s)", counted(self.ignored.total(), "file"), kinds)
        result = {f"files named {suffix}, which are not images": count for suffix, count in self.ignored.items()}
        if self.empty:
            names = [folder.name for folder in self.empty]
            reason = f"folders without an image, which are no labels: {_shown(names)}"
            log.warning("passed over %d %s", len(names), reason)
            result[reason] = len(names)
        return result

    def _images(self, folder: Path) -> list[Path]:
        inner, files = listing(folder)
        images = [file for file in files if is_image_file(file)]
        if inner and images:
            raise DataError(f"{folder} holds images and also the folder {inner[0].name}", _TREES, "Move it elsewhere.")
        if not images:
            raise DataError(
                f"{folder} holds folders ({inner[0].name}, …) where images should be",
                _TREES,
                f"Perhaps open {folder}.",
            )
        self.ignored.update(file.suffix.lower() or "without suffix" for file in files if not is_image_file(file))
        return images

    def _record(self, image: Path, label: str) -> Record | None:
        file = self.notes / image.parent.name / f"{image.stem}.json" if self.notes is not None else None
        if file is None or not exists(file):
            if file is not None:
                self.missing.append(file)
            self.account.accept()
            return Record(image, label)
        try:
            annotations, extra = read_annotation(file)
        except DataError as error:
            self.account.reject(image, str(error), "annotation")
            return None
        self.account.accept()
        return Record(image, label, annotations, extra=extra)


def _refuse_strays(folder: Path) -> None:
    """Make sure that no image lies beside the folders of labels, where its label is unknown.

    Raises:
        DataError: one does.
    """
    stray = next(filter(is_image_file, listing(folder)[1]), None)
    if stray is not None:
        todo = "Sort them into the folders, or move them elsewhere."
        raise DataError(f"{folder} holds images ({stray.name}, …) beside its folders of labels", _TREES, todo)


def _nothing_found(root: Path, others: list[Path]) -> DataError:
    if not others and any(map(is_image_file, listing(root)[1])):
        return DataError(f"{root} holds images but no class folders", _TREES, "Sort the images into folders.")
    return DataError(f"{root} holds no images", f"a data set in a known layout, such as {_TREES}", "Check the path.")
