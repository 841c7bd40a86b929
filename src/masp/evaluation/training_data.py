"""Lessons out of a data set: what systems learn from, built once and the same for all of them."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from masp.backbones.base import Backbone
from masp.baselines.base import Example, TrainingData
from masp.core.atomic_io import write_file
from masp.core.errors import UsageError
from masp.core.types import VisualTokens
from masp.data.records import Dataset, Record
from masp.evaluation.batches import labelled
from masp.training.checkpoints import unwritable
from masp.training.feature_cache import FeatureCache, ImageReading, account_lines, read_account
from masp.training.signals import StopRequest

log = logging.getLogger(__name__)

Item = TypeVar("Item")

QUARANTINE = "quarantine.jsonl"
"""Beside what a system learned: which images could not be read."""

SPLITS = ("train", "val")


class LazyImages:
    """The visual tokens of a data set's images, which are read when the first of them is asked for.

    So a system that has learned already costs no reading at all.

    Args:
        store: of all images, not filled yet.
        known: bad images and their reasons, where an earlier start found them; None: fill it now.
    """

    def __init__(self, store: FeatureCache, known: dict[str, str] | None) -> None:
        self.store, self.known, self.filled = store, known, False

    def stream(
        self, items: Iterable[Item], images: Callable[[Item], Sequence[int]]
    ) -> Iterator[tuple[Item, VisualTokens | None]]:
        """See `Images`.

        Raises:
            Interrupted: a signal arrived while the images were read.
            DataError: an image of a lesson cannot be read any more.
        """
        self.fill()
        yield from self.store.stream(items, images)

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """See `Images`.

        Raises:
            Interrupted: a signal arrived while the images were read.
            DataError: an image of a lesson cannot be read any more.
        """
        self.fill()
        return self.store.visual(images)

    def fill(self) -> bytes | None:
        """Read all images, once; the account of it as lines of a file, None where it was done before."""
        if self.filled:
            return None
        with StopRequest() as stop:
            account = self.store.fill(stop, None if self.known is None else set(map(Path, self.known)))
        self.filled = True
        log.info("images: %s", account.summary())
        return account_lines(account)


def make_lessons(
    backbone: Backbone,
    dataset: Dataset,
    labels: Sequence[str],
    out: Path,
    seed: int = 0,
    reading: ImageReading | None = None,
) -> TrainingData:
    """The labelled, readable images of train and val.

    Args:
        backbone: computes the visual tokens.
        dataset: where the images are.
        labels: what a lesson's label has to be one of.
        out: folder for what is learned; quarantine.jsonl in it says which images were left out.
        seed: of everything random.
        reading: how images are read, and how much of them is kept.

    Raises:
        DataError: there is no split train, nothing in it has a label, or too many images are bad.
        UsageError: a label that is none of the labels, or `out` is a file.
        CheckpointError: `out` cannot be written.
        Interrupted: a signal arrived.
    """
    chosen = [(split, record) for split in SPLITS for record in _records(dataset, split, labels)]
    store = FeatureCache(backbone, [record.path for _, record in chosen], reading or ImageReading())
    file = out / QUARANTINE
    known = _known(read_account(file), dataset)
    images = LazyImages(store, known)
    bad = set() if known is None else set(known)
    if known is None:
        lines = images.fill()
        assert lines is not None
        bad = {str(path) for path, usable in zip(store.paths, store.usable, strict=True) if not usable}
        _write(file, lines)
    lessons: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for number, (split, record) in enumerate(chosen):
        if str(record.path) not in bad:
            lessons[split].append(Example(number, record.label or "", dict(record.annotations)))
    if not lessons["val"]:
        log.warning("there is no validation split: nothing is chosen by it")
    return TrainingData(images, tuple(lessons["train"]), tuple(lessons["val"]), out, seed, dataset.fingerprint())


def _records(dataset: Dataset, split: str, labels: Sequence[str]) -> list[Record]:
    """The labelled records of a split; val may be missing or bare."""
    if split != "train" and not any(record.label is not None for record in dataset.splits.get(split, ())):
        return []
    return labelled(dataset.split(split), labels)


def _known(account: dict[str, str] | None, dataset: Dataset) -> dict[str, str] | None:
    """What an earlier start found, unless the data set has moved since."""
    if account is None or not account.keys() <= {str(record.path) for record in dataset.records}:
        return None
    return account


def _write(file: Path, lines: bytes) -> None:
    if file.parent.exists() and not file.parent.is_dir():
        raise UsageError(f"--out {file.parent} is a file", "a folder", "Name another place.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, lines)
    except OSError as error:
        raise unwritable(error, file) from error
