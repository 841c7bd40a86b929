"""Data sets of the Hugging Face hub, copied into folders that every other part of masp reads."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.core.atomic_io import write_folder
from masp.core.errors import DataError, UsageError, counted, did_you_mean, reason_of, shown
from masp.core.labels import checked_name
from masp.data.images import suffix_of
from masp.data.readers.common import label_of
from masp.data.readers.folders import SPLITS

log = logging.getLogger(__name__)

LABELS = ("label", "labels", "emotion", "class", "category", "sentiment", "target")


@dataclass(frozen=True)
class HubSource:
    """Which data set, and which of its columns.

    Attributes:
        name: its name on the hub, or a folder in a shape that the package datasets knows.
        image: the column of images; None: the only one that holds images.
        label: the column of labels; None: the only one with a fixed set of labels, else one with a usual name.
        revision: commit, tag or branch; None: the newest.
        limit: images per split at most; None: all.
    """

    name: str
    image: str | None = None
    label: str | None = None
    revision: str | None = None
    limit: int | None = None


def import_dataset(source: HubSource, folder: Path, progress: Callable[[int], None] | None = None) -> Counter[str]:
    """Write the images of a data set as they are, byte for byte, to `folder/<split>/<label>/<number>.<suffix>`.

    A data set with one split has no folder of splits. A slash of either kind in a label becomes "-". No code of the
    data set is run.

    Args:
        source: the data set.
        folder: new or empty; it appears once everything is there.
        progress: called with the number of images written since the last call.

    Returns:
        Split → images written.

    Raises:
        UsageError: the package datasets is not installed, or the folder is not empty.
        DataError: the data set cannot be loaded, or has no images or no labels; a label that cannot be the name of
            a folder; two labels, or two splits, that would share one.
    """
    splits = _loaded(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", "a new or empty folder", "Name another one.")
    counts: Counter[str] = Counter()
    of_splits, of_labels = _Folders("splits"), _Folders("labels")

    def fill(partial: Path) -> None:
        for name, rows in splits.items():
            home = partial / of_splits.own(name, SPLITS.get(name.lower(), name)) if len(splits) > 1 else partial
            for index, (label, content) in enumerate(_images(rows, source)):
                folder = home / of_labels.own(label, _folder_of(label))
                path = folder / f"{index:06d}{suffix_of(content) or '.img'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                counts[name] += 1
                if progress is not None:
                    progress(1)

    try:
        write_folder(folder, fill)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror})", "", "Check the disk.") from error
    return counts


class _Folders:
    """Who has which folder: two names never share one, as their images could not be told apart again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._owners: dict[str, str] = {}

    def own(self, name: str, folder: str) -> str:
        owner = self._owners.setdefault(folder, name)
        if owner != name:
            got = f"the {self._what} {shown(owner)} and {shown(name)} would share the folder {shown(folder)}"
            raise DataError(got, "a folder each", "Rename one of them in the data set.")
        return folder


def _folder_of(label: str) -> str:
    """The folder of a label: its name, with "-" in the place of what parts a path.

    Raises:
        DataError: the label is no text that an answer could name, or begins with a dot: such a folder is hidden, or
            lies outside.
    """
    if label.startswith("."):
        got = f"the label {shown(label)} begins with a dot"
        raise DataError(got, "the name of a folder", "Rename it in the data set, or name another column with --label.")
    checked_name(label)
    return label.replace("/", "-").replace("\\", "-")


def _loaded(source: HubSource) -> dict[str, Any]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("datasets is not installed", "", "Install it with: pip install 'masp[hub]'.") from None
    try:
        loaded = datasets.load_dataset(source.name, revision=source.revision)
    except Exception as error:  # from the network, the hub, the files and the builders: all mean the same here
        raise DataError(
            f"the data set {source.name} cannot be loaded ({reason_of(error)})", "", "Check its name."
        ) from error
    return {
        str(name): rows.cast_column(_image_column(rows.features, source.image), datasets.Image(decode=False))
        for name, rows in loaded.items()
    }


def _images(rows: Any, source: HubSource) -> Iterator[tuple[str, bytes]]:
    """Label and file content of every labelled image of a split."""
    image = _image_column(rows.features, source.image)
    label = _label_column(rows.features, source.label)
    feature = rows.features[label]
    names = tuple(feature.names) if type(feature).__name__ == "ClassLabel" else ()
    unlabelled = 0
    for index, row in enumerate(rows):
        if source.limit is not None and index >= source.limit:
            break
        value = row[label]
        if value is None or value == -1 or not str(value).strip():
            unlabelled += 1
            continue
        name = names[value] if names else str(value).strip()
        yield label_of(name), row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
    if unlabelled:
        log.warning("left out, as without a label: %s", counted(unlabelled, "image"))


def _image_column(features: Any, given: str | None) -> str:
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    return _chosen(given, features, columns, "pictures", "--image")


def _label_column(features: Any, given: str | None) -> str:
    columns = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    return _chosen(given, features, columns or [name for name in LABELS if name in features][:1], "labels", "--label")


def _chosen(given: str | None, features: Any, columns: list[str], what: str, option: str) -> str:
    if given is not None:
        if given not in features:
            raise DataError(f"the data set has no column '{given}'", "", did_you_mean(given, features))
        return given
    if len(columns) != 1:
        raise DataError(
            f"{len(columns) or 'none'} of the columns {', '.join(features)} holds {what}",
            "one",
            f"Name it with {option}.",
        )
    return columns[0]
