"""Data sets opened for a check: however damaged they are, and divided as training would divide them where asked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from masp.core.config import DataConfig
from masp.core.errors import DataError
from masp.data.bad_files import BadFiles
from masp.data.readers.common import Reading
from masp.data.readers.open_dataset import divided, existing_path, read_dataset
from masp.data.records import Record

log = logging.getLogger(__name__)

UNDIVIDED = "all"
"""The split of what is in no split."""


@dataclass(frozen=True)
class OpenedDataset:
    """A data set whose lists and annotations are read.

    Attributes:
        path: as the user named it.
        reading: its records; None where they cannot be read, `problem` says why.
        problem: what is wrong with the whole of it.
        split_by: where its splits come from, see `Dataset.split_by`; None where it has none.
    """

    path: Path
    reading: Reading | None
    problem: str | None = None
    split_by: str | None = None

    @property
    def root(self) -> Path:
        """The folder that paths are told from."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def records(self) -> list[tuple[str, Record]]:
        """(Split, record) for every image."""
        if self.reading is None:
            return []
        return [(split, record) for split, records in self.reading.splits.items() for record in records]


def open_for_check(settings: DataConfig) -> OpenedDataset:
    """The lists and annotations of a data set, however many of them are damaged.

    Where the settings name a division it is divided as for training, otherwise it is left as it was published.

    Raises:
        DataError: the path does not exist, or is a file that is no table; a division that is none, or another one's.
    """
    return open_together([settings])[0]


def open_together(settings: Sequence[DataConfig]) -> list[OpenedDataset]:
    """Several data sets, each as `open_for_check` opens it.

    A file with a division divides those of them whose images it names, one at least; the others stay as they are.

    Raises:
        DataError: as for `open_for_check`.
    """
    found: list[OpenedDataset] = []
    strangers: list[DataError] = []
    for one in settings:
        opened = _read(one)
        try:
            found.append(_as_training(opened, one))
        except DataError as error:
            if one.splits.file is None or len(settings) == 1:
                raise
            found.append(opened)
            strangers.append(error)
            log.info("%s is not divided by %s, which is another data set's", one.path, one.splits.file)
    if strangers and not any(one.split_by == "file" for one in found):
        reasons = "; ".join(error.got for error in strangers)
        todo = "Write it again with masp data split."
        raise DataError(f"no data set fits the division ({reasons})", "one whose images it names", todo)
    return found


def _read(settings: DataConfig) -> OpenedDataset:
    path = existing_path(settings)
    try:
        reading = read_dataset(settings, BadFiles(tolerant=True))
    except DataError as error:
        return OpenedDataset(path, None, str(error))
    return OpenedDataset(path, reading, split_by=None if UNDIVIDED in reading.splits else "published")


def _as_training(opened: OpenedDataset, settings: DataConfig) -> OpenedDataset:
    """The data set in the splits of training, where the settings say anything about splits.

    Files that cannot be read cannot be divided by their content: they stay behind in a split of their own, so that they
    are told as what they are.
    """
    reading = opened.reading
    if reading is None or "splits" not in settings.model_fields_set:
        return opened
    behind: tuple[Record, ...] = ()
    if settings.splits.file is None:
        there = {split: [one for one in some if _opens(one.path)] for split, some in reading.splits.items()}
        used = {one.path for some in there.values() for one in some}
        behind = tuple(one for some in reading.splits.values() for one in some if one.path not in used)
        splits, split_by = divided(replace(reading, splits=there), opened.root, settings)
        if split_by == "published":
            return opened
    else:
        splits, split_by = divided(reading, opened.root, settings)
    left: Mapping[str, tuple[Record, ...]] = {UNDIVIDED: behind} if behind else {}
    return replace(opened, reading=replace(reading, splits={**splits, **left}), split_by=split_by)


def _opens(path: Path) -> bool:
    try:
        path.open("rb").close()
    except (OSError, ValueError):
        return False
    return True
