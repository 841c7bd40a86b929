"""What cells share: the backbone, opened data sets, and the visual tokens of each, computed once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.baselines.base import Example, TrainingData
from masp.data.images import image_size
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset, Record, Rejected
from masp.evaluation.result import SkippedImage
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.measure import SplitImages
from masp.training.disk_cache import DiskCache
from masp.training.feature_cache import GIGA, FeatureCache, ImageReading, VisualMemory
from masp.training.signals import StopRequest

log = logging.getLogger(__name__)

TAUGHT = ("train", "val")
"""Splits that systems learn from."""


@dataclass(frozen=True)
class ReadSplits:
    """What was read of some splits.

    Attributes:
        store: visual tokens.
        records: for each split its usable, labelled records with their numbers in the store.
        rejected: images that could not be read.
    """

    store: FeatureCache
    records: Mapping[str, Sequence[tuple[int, Record]]]
    rejected: tuple[Rejected, ...]


class Library:
    """Holds what is expensive to make; one for each process.

    Visual tokens lie on a shelf below the job's work folder, so that all processes and later calls find them.

    Args:
        job: what is asked.
    """

    def __init__(self, job: ReproduceConfig) -> None:
        self.job = job
        self._datasets: dict[str, Dataset] = {}
        self._memory: dict[str, VisualMemory] = {}
        self._stores: dict[tuple[str | int | None, ...], ReadSplits] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen model.

        Raises:
            BackboneError: it cannot be loaded.
        """
        return load_backbone(self.job.config.backbone)

    @property
    def shelf(self) -> Path | None:
        """Where visual tokens are kept; None where nothing is to be kept."""
        settings = self.job.config.prompt
        return None if settings.store == "none" else settings.store_dir or self.job.work / "store"

    def dataset(self, name: str) -> Dataset:
        """A data set, opened once.

        Raises:
            DataError: it cannot be read.
        """
        if name not in self._datasets:
            self._datasets[name] = open_dataset(self.job.source(name).data)
        return self._datasets[name]

    def memory(self, name: str) -> VisualMemory:
        """The visual tokens of a data set that are in memory; those of other data sets are let go."""
        if name not in self._memory:
            self._memory, self._stores = {name: VisualMemory()}, {}
        return self._memory[name]

    def taught(self, name: str, stop: StopRequest) -> ReadSplits:
        """The splits to learn from."""
        splits = self.dataset(name).splits
        return self._filled(name, {split: splits.get(split, ()) for split in TAUGHT}, stop)

    def tested(self, name: str, stop: StopRequest, alone: bool = False) -> SplitImages:
        """The images of the test split; `alone` as in `pictures`.

        Raises:
            DataError: there is no test split, or too many images are bad.
        """
        return self.pictures(name, "test", stop, alone)

    def pictures(self, name: str, split: str, stop: StopRequest, alone: bool = False) -> SplitImages:
        """The labelled images of a split, and those that are left out.

        Args:
            name: of the data set.
            split: name of the split.
            stop: asked between images.
            alone: read them for a backbone that answers alone (`Job.side_of`).

        Raises:
            DataError: there is no such split, or too many images are bad.
        """
        dataset = self.dataset(name)
        found = self._filled(name, {split: dataset.split(split)}, stop, alone)
        chosen = found.records[split]
        records, places = tuple(record for _, record in chosen), tuple(number for number, _ in chosen)
        bad = tuple(SkippedImage(dataset.place(one.path), one.reason) for one in found.rejected)
        bare = sum(not record.label for record in dataset.split(split))
        return SplitImages(dataset, records, places, found.store, bad, bare)

    def learned_from(self, name: str) -> Sequence[Record]:
        """The labelled training images of a data set, those included that turn out unreadable."""
        return [record for record in self.dataset(name).splits.get("train", ()) if record.label]

    def shrunk(self, name: str) -> int:
        """How many images of the test split have a longer side than rows with a trained part read."""
        side = self.job.side_of(name, alone=False)
        return sum(_exceeds(record, side) for record in self.dataset(name).split("test") if record.label)

    def lessons(self, name: str, out: Path, seed: int, stop: StopRequest) -> TrainingData:
        """What a system learns from a data set: labels and, where they are, annotations of train and val."""
        found = self.taught(name, stop)
        train, val = (tuple(_lesson(*pair) for pair in found.records[split]) for split in TAUGHT)
        out.mkdir(parents=True, exist_ok=True)
        return TrainingData(found.store, train, val, out, seed, self.dataset(name).fingerprint())

    def _side(self, name: str, records: Sequence[Record], alone: bool) -> int | None:
        """The side that images are shrunk to; where it makes no difference, the one that is read anyway."""
        usual, wanted = self.job.side_of(name, alone=False), self.job.side_of(name, alone)
        if wanted == usual or any(_exceeds(record, usual) for record in records):
            return wanted
        return usual

    def _filled(
        self, name: str, splits: dict[str, Sequence[Record]], stop: StopRequest, alone: bool = False
    ) -> ReadSplits:
        """Read once in a process, in the order of training, so that all find what the first of them computed."""
        side = self._side(name, [record for records in splits.values() for record in records], alone)
        memory, key = self.memory(name), (name, side, *splits)
        if key in self._stores:
            return self._stores[key]
        labelled = [(split, record) for split, records in splits.items() for record in records if record.label]
        settings, data = self.job.config.prompt, self.job.source(name).data
        shelf = None if self.shelf is None else DiskCache(self.shelf, int(settings.store_disk_gb * GIGA))
        budget = 0 if shelf is None else shelf.budget
        reading = ImageReading(side, data.workers, budget, settings.strict, rounding=self.job.rounding)
        paths = [record.path for _, record in labelled]
        store = FeatureCache(self.backbone, paths, reading, memory, shelf)
        account = store.fill(stop)
        log.info("%s: %s", name, account.summary())
        numbers: dict[str, list[tuple[int, Record]]] = {split: [] for split in splits}
        for number, (split, record) in enumerate(labelled):
            if store.usable[number]:
                numbers[split].append((number, record))
        self._stores[key] = ReadSplits(store, numbers, tuple(account.rejected))
        return self._stores[key]


def _exceeds(record: Record, side: int | None) -> bool:
    """Whether an image would be shrunk to a side."""
    size = image_size(record.path)
    return side is not None and size is not None and max(size) > side


def _lesson(number: int, record: Record) -> Example:
    return Example(number, record.label or "", record.annotations)
