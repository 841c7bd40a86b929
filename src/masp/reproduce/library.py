"""What experiments share: the backbone, opened data sets, their visual tokens; and measuring a system on these."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.baselines.base import Example, Images, System, TrainingData
from masp.baselines.prompted import Prompted
from masp.core.errors import DataError
from masp.core.flops import images_at_once
from masp.core.runtime import Bar
from masp.core.types import VisualTokens
from masp.data.images import image_size
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset, Record, Rejected
from masp.evaluation import metrics
from masp.evaluation.explanation_metrics import ceiling
from masp.evaluation.predict_split import SplitPredictions, predict_batch
from masp.evaluation.result import Evaluation, LabelledPrediction, SkippedImage
from masp.model.explain import normalised, prompt_attention
from masp.reproduce.config import ReproduceConfig
from masp.training.disk_cache import DiskCache
from masp.training.feature_cache import GIGA, FeatureCache, ImageReading, VisualMemory
from masp.training.signals import StopRequest
from masp.training.trainer import groups_of

log = logging.getLogger(__name__)

EXAMPLES = 3  # images of Figure 4


@dataclass(frozen=True)
class SplitImages:
    """Labelled images of one split, and where their visual tokens are."""

    dataset: Dataset  # what they belong to
    records: tuple[Record, ...]  # the readable, labelled ones
    numbers: tuple[int, ...]  # the number of each in `images`
    images: Images  # visual tokens by number
    left_out: tuple[SkippedImage, ...] = ()  # those that cannot be read
    unlabelled: int = 0  # how many have no label

    def batches(self, backbone: Backbone, stop: StopRequest) -> Iterator[tuple[list[Record], VisualTokens]]:
        """The records with their visual tokens, batch by batch in order, read ahead.

        Raises:
            Interrupted: a signal arrived.
        """
        groups = stop.between(groups_of(range(len(self.records)), images_at_once(backbone.dim)))
        for group, visual in self.images.stream(groups, lambda group: [self.numbers[index] for index in group]):
            assert visual is not None
            yield [self.records[index] for index in group], visual

    def examples(self) -> tuple[list[int], "SplitImages"]:
        """The first image of each of some labels, so that the same data gives the same ones, and their places."""
        first: dict[str | None, int] = {}
        for index, record in enumerate(self.records):
            first.setdefault(record.label, index)
        chosen = sorted(first.values())[:EXAMPLES]
        records, indices = (tuple(row[index] for index in chosen) for row in (self.records, self.numbers))
        return chosen, replace(self, records=records, numbers=indices)


def answers(system: System, images: SplitImages, stop: StopRequest, title: str) -> SplitPredictions:
    """What a system says about every image, in order.

    Raises:
        Interrupted: a signal arrived.
    """
    result, started = list[LabelledPrediction](), time.perf_counter()
    with Bar(title, len(images.records)) as bar:
        for records, visual in images.batches(system.backbone, stop):
            result += predict_batch(system, images.dataset, records, visual)
            bar.show(len(result))
    return SplitPredictions(tuple(result), images.left_out, time.perf_counter() - started, images.unlabelled)


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures that tables are made of, ready for JSON; all others are in the result itself."""
    content: dict[str, Any] = {
        "images": evaluation.used,
        "accuracy": asdict(evaluation.accuracy),
        "macro_f1": asdict(evaluation.macro_f1),
        "unparsed": evaluation.unparsed,
    }
    if evaluation.exact is not None:
        content["exact"] = asdict(evaluation.exact)
    chances = evaluation.chances
    if chances is not None:
        content["negative_log_likelihood"] = asdict(chances.negative_log_likelihood)
        content["calibration_error"] = asdict(chances.calibration_error)
        if chances.calibrated is not None:
            content["temperature"] = chances.calibrated.temperature
            content["calibration_error_scaled"] = asdict(chances.calibrated.calibration_error)
    return content


def facts(images: SplitImages) -> dict[str, Any]:
    """What accuracies on a data set have to be read against; ready for JSON."""
    dataset = images.dataset
    targets = [record.label or "" for record in images.records]
    if not targets:
        raise DataError(f"no test image of {dataset.name} has a label and can be read", "some", "Check the data set.")
    content: dict[str, Any] = {
        "labels": list(dataset.labels),
        "layout": dataset.layout,
        "split_by": dataset.split_by,
        "splits": {name: len(records) for name, records in dataset.splits.items()},
        "images": len(targets),
        "unreadable": len(images.left_out),
        "classes": dict(sorted(Counter(targets).items())),
        "guess": 1 / len(dataset.labels),
        "majority": asdict(metrics.majority_accuracy(targets)),
    }
    if all("emoji" in record.extra for record in images.records):
        content["ceiling"] = asdict(ceiling(images.records))
    return content


def attention(system: Prompted, images: SplitImages, stop: StopRequest) -> dict[str, Any]:
    """Attention from the soft prompt to each aspect (Figure 4): mean over the images, and some images.

    `raw` are weights of the final layer, `normalised` the same as shares of the aspects; `spread` is the standard
    deviation over the images.
    """
    model, use = system.model, system.use
    assert use is not None
    batches = images.batches(model.backbone, stop)
    raw = torch.cat([prompt_attention(model, visual, system.question, use).cpu().double() for _, visual in batches])
    shares, (indices, examples) = normalised(raw), images.examples()

    def named(row: torch.Tensor) -> dict[str, float]:
        return dict(zip(use.aspects, row.tolist(), strict=True))

    return {
        "images": len(raw),
        "raw": named(raw.mean(0)),
        "normalised": named(shares.mean(0)),
        "spread": named(shares.std(0, correction=0)),
        "examples": [
            {
                "image": one.image,
                "truth": one.truth,
                "predicted": one.predicted,
                "raw": named(raw[index]),
                "normalised": named(shares[index]),
            }
            for index, one in zip(indices, answers(system, examples, stop, "examples").answers, strict=True)
        ],
    }


TAUGHT = ("train", "val")
"""Splits that systems learn from."""


@dataclass(frozen=True)
class ReadSplits:
    """What was read of some splits."""

    store: FeatureCache  # visual tokens
    # for each split its usable, labelled records with their numbers in the store
    records: Mapping[str, Sequence[tuple[int, Record]]]
    rejected: tuple[Rejected, ...]  # images that could not be read


class Library:
    """Holds what is expensive to make; one for each process.

    Visual tokens are cached below the work folder, so that all processes and later calls find them.

    Args:
        config: what is asked.
    """

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config
        self._datasets: dict[str, Dataset] = {}
        self._memory: dict[str, VisualMemory] = {}
        self._stores: dict[tuple[str | int | None, ...], ReadSplits] = {}

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen model.

        Raises:
            BackboneError: it cannot be loaded.
        """
        return load_backbone(self.config.settings.backbone)

    @property
    def cache_folder(self) -> Path | None:
        """Where visual tokens are kept; None where nothing is to be kept."""
        settings = self.config.settings.prompt
        return None if settings.store == "none" else settings.store_dir or self.config.work / "store"

    def dataset(self, name: str) -> Dataset:
        """A data set, opened once.

        Raises:
            DataError: it cannot be read.
        """
        if name not in self._datasets:
            self._datasets[name] = open_dataset(self.config.source(name).data)
        return self._datasets[name]

    def memory(self, name: str) -> VisualMemory:
        """The visual tokens of a data set that are in memory; those of other data sets are dropped."""
        if name not in self._memory:
            self._memory, self._stores = {name: VisualMemory()}, {}
        return self._memory[name]

    def taught(self, name: str, stop: StopRequest) -> ReadSplits:
        """The splits to learn from."""
        splits = self.dataset(name).splits
        return self._filled(name, {split: splits.get(split, ()) for split in TAUGHT}, stop)

    def images(self, name: str, split: str, stop: StopRequest, alone: bool = False) -> SplitImages:
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
        read = self._filled(name, {split: dataset.split(split)}, stop, alone)
        chosen = read.records[split]
        records, indices = tuple(record for _, record in chosen), tuple(index for index, _ in chosen)
        bad = tuple(SkippedImage(dataset.relative_path(one.path), one.reason) for one in read.rejected)
        bare = sum(not record.label for record in dataset.split(split))
        return SplitImages(dataset, records, indices, read.store, bad, bare)

    def learned_from(self, name: str) -> Sequence[Record]:
        """The labelled training images of a data set, those included that turn out unreadable."""
        return [record for record in self.dataset(name).splits.get("train", ()) if record.label]

    def shrunk(self, name: str) -> int:
        """How many images of the test split have a longer side than rows with a trained part read."""
        side = self.config.side_of(name, alone=False)
        return sum(_exceeds(record, side) for record in self.dataset(name).split("test") if record.label)

    def training_data(self, name: str, out: Path, seed: int, stop: StopRequest) -> TrainingData:
        """What a system learns from a data set: labels and, where they are, annotations of train and val."""
        read = self.taught(name, stop)
        train, val = (
            tuple(Example(index, one.label or "", one.annotations) for index, one in read.records[split])
            for split in TAUGHT
        )
        out.mkdir(parents=True, exist_ok=True)
        return TrainingData(read.store, train, val, out, seed, self.dataset(name).fingerprint())

    def _side(self, name: str, records: Sequence[Record], alone: bool) -> int | None:
        """The side that images are shrunk to; where it makes no difference, the one that is read anyway."""
        usual, wanted = self.config.side_of(name, alone=False), self.config.side_of(name, alone)
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
        settings, data = self.config.settings.prompt, self.config.source(name).data
        disk_cache = (
            None if self.cache_folder is None else DiskCache(self.cache_folder, int(settings.store_disk_gb * GIGA))
        )
        budget = 0 if disk_cache is None else disk_cache.budget
        reading = ImageReading(side, data.workers, budget, settings.strict, rounding=self.config.rounding)
        paths = [record.path for _, record in labelled]
        store = FeatureCache(self.backbone, paths, reading, memory, disk_cache)
        account = store.fill(stop)
        log.info("%s: %s", name, account.summary())
        indexed: dict[str, list[tuple[int, Record]]] = {split: [] for split in splits}
        for index, (split, record) in enumerate(labelled):
            if store.usable[index]:
                indexed[split].append((index, record))
        self._stores[key] = ReadSplits(store, indexed, tuple(account.rejected))
        return self._stores[key]


def _exceeds(record: Record, side: int | None) -> bool:
    """Whether an image would be shrunk to a side."""
    size = image_size(record.path)
    return side is not None and size is not None and max(size) > side
