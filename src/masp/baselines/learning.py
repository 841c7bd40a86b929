"""What systems that learn have in common: training data, a folder of their own, parts computed once, modules fitted.

`out/` holds run.json (what decides the result), `read/` (what was read from each image, a group at a time),
`<part>/checkpoints` and `<part>/metrics.jsonl` of each part that is fitted, and `learned/`, which is written last.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from masp.backbones.base import Backbone
from masp.baselines.base import Example, TrainingData
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.flops import images_at_once
from masp.core.runtime import Bar
from masp.core.settings import TrainConfig
from masp.core.types import VisualTokens
from masp.data.records import BadFiles, Dataset, Record, read_account, write_account
from masp.data.splits import Batches
from masp.evaluation.predict_split import labelled
from masp.training.checkpoints import Checkpoint, CheckpointStore, load_parameters, writing
from masp.training.disk_cache import CacheGroup, DiskCache, key_of
from masp.training.feature_cache import FeatureCache, ImageReading
from masp.training.run_dir import RunFolder, hash_of, reading
from masp.training.run_stage import loop_settings, make_accelerator
from masp.training.signals import StopRequest
from masp.training.trainer import Trainer, TrainTask, groups_of

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
            DataError: an image of an example cannot be read any more.
        """
        self.fill()
        yield from self.store.stream(items, images)

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """See `Images`.

        Raises:
            Interrupted: a signal arrived while the images were read.
            DataError: an image of an example cannot be read any more.
        """
        self.fill()
        return self.store.visual(images)

    def fill(self) -> BadFiles | None:
        """Read all images, once; the account of it, None where it was done before."""
        if self.filled:
            return None
        with StopRequest() as stop:
            account = self.store.fill(stop, None if self.known is None else set(map(Path, self.known)))
        self.filled = True
        log.info("images: %s", account.summary())
        return account


def make_training_data(
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
        labels: what an example's label has to be one of.
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
    data = _read_data(backbone, dataset, chosen, out, seed, reading)
    if not data.val:
        log.warning("there is no validation split: nothing is chosen by it")
    return data


def make_annotated_data(
    backbone: Backbone, dataset: Dataset, out: Path, reading: ImageReading | None = None
) -> TrainingData:
    """The readable images of train that are annotated with an aspect, whatever their label; see `make_training_data`.

    Raises:
        DataError: none is annotated, or too many images are bad.
    """
    chosen = [("train", record) for record in dataset.split("train") if record.annotations]
    if not chosen:
        raise DataError(f"no training image of {dataset.name} is annotated", "annotated aspects, as in EmoSet")
    return _read_data(backbone, dataset, chosen, out, 0, reading)


def _read_data(
    backbone: Backbone,
    dataset: Dataset,
    chosen: Sequence[tuple[str, Record]],
    out: Path,
    seed: int,
    reading: ImageReading | None,
) -> TrainingData:
    """The readable ones of some images with their splits."""
    store = FeatureCache(backbone, [record.path for _, record in chosen], reading or ImageReading())
    file = out / QUARANTINE
    known = _known_bad(read_account(file), dataset)
    images = LazyImages(store, known)
    bad = set() if known is None else set(known)
    if known is None:
        account = images.fill()
        assert account is not None
        bad = {str(path) for path, usable in zip(store.paths, store.usable, strict=True) if not usable}
        _write_account(file, account)
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for index, (split, record) in enumerate(chosen):
        if str(record.path) not in bad:
            examples[split].append(Example(index, record.label or "", dict(record.annotations)))
    train, val = (tuple(examples[split]) for split in SPLITS)
    return TrainingData(images, train, val, out, seed, dataset.fingerprint(), dataset.name)


def _records(dataset: Dataset, split: str, labels: Sequence[str]) -> list[Record]:
    """The labelled records of a split; val may be missing or bare."""
    if split != "train" and not any(record.label is not None for record in dataset.splits.get(split, ())):
        return []
    return labelled(dataset.split(split), labels)


def _known_bad(account: dict[str, str] | None, dataset: Dataset) -> dict[str, str] | None:
    """What an earlier start found, unless the data set has moved since."""
    if account is None or not account.keys() <= {str(record.path) for record in dataset.records}:
        return None
    return account


def _write_account(file: Path, account: BadFiles) -> None:
    if file.parent.exists() and not file.parent.is_dir():
        raise UsageError(f"--out {file.parent} is a file", "a folder", "Name another place.")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_account(file, account)


SMALLEST = 1e-6  # a column that hardly varies is not blown up
GROUP = 8  # batches whose results are written together


@dataclass(frozen=True)
class Study:
    """One call of `fit` that holds its folder."""

    backbone: Backbone  # what the system stands on
    data: TrainingData  # what it learns from
    labels: tuple[str, ...]  # what it learns to name
    stop: StopRequest  # is asked between steps
    identity: Mapping[str, Any]  # all that decides the result, as JSON values

    @property
    def at_once(self) -> int:
        """Images that are read in one batch."""
        return images_at_once(self.backbone.dim)

    @property
    def examples(self) -> tuple[Example, ...]:
        """Lessons of both splits, those to learn from first."""
        return self.data.train + self.data.val

    def target(self, example: Example) -> int:
        """The index of an example's label."""
        return self.labels.index(example.label)

    def table(
        self, name: str, read: Callable[[VisualTokens], Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[int, int]]:
        """What `read` makes of every training image, one row an image; what an earlier start read is loaded.

        Images are always read in the same batches, so an interrupted call goes on to the same bits.

        Returns:
            Tensors by name, on the CPU, and the row of each image.

        Raises:
            Interrupted: a signal arrived; whole groups of images are saved.
        """
        images = sorted({example.image for example in self.examples})
        disk_cache, parts, done = DiskCache(self.data.out / "read", sys.maxsize), [], 0
        with Bar(name, len(images)) as bar:
            for chosen in groups_of(images, self.at_once * GROUP):
                key = key_of({"kind": name, "images": chosen, **self.identity})
                parts.append((disk_cache.load(key) or disk_cache.save(key, self._group(chosen, read))).tensors)
                done += len(chosen)
                bar.show(done)
        columns = {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
        return columns, {image: row for row, image in enumerate(images)}

    def _group(self, images: Sequence[int], read: Callable[[VisualTokens], Mapping[str, Tensor]]) -> CacheGroup:
        parts: list[Mapping[str, Tensor]] = []
        groups = self.stop.between(groups_of(images, self.at_once))
        for _, visual in self.data.images.stream(groups, lambda group: group):
            assert visual is not None
            with torch.no_grad():
                parts.append(read(visual))
        return CacheGroup({name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}, {})

    def fit(self, stage: TrainTask, settings: TrainConfig) -> dict[str, float]:
        """Train the parameters of a stage, going on where an earlier start was; finished, they are loaded.

        Returns:
            The validation metrics of the state that was kept, empty without a validation split.

        Raises:
            Interrupted: a signal arrived; the checkpoint is written.
        """
        folder = self.data.out / stage.name

        def run() -> Checkpoint:
            folder.mkdir(exist_ok=True)
            checkpoints = CheckpointStore(folder / "checkpoints", settings.keep_checkpoints)
            checkpoints.clean()
            order = Batches(len(self.data.train), settings.batch_size, settings.seed)
            loop = loop_settings(settings, order, hash_of({"part": stage.name, **self.identity}))
            with torch.random.fork_rng():  # dropout; the caller's own random numbers stay as they are
                torch.manual_seed(settings.seed)
                accelerator = make_accelerator(settings, self.backbone, folder, stage.name)
                fit = Trainer(stage, loop, checkpoints, accelerator).fit(folder / "metrics.jsonl", self.stop)
            tensors = {name: tensor.detach().cpu() for name, tensor in stage.parameters().items()}
            return Checkpoint(fit.steps, tensors, {"metrics": fit.metrics})

        checkpoint = once(folder / "learned", run)
        load_parameters(
            {name: tensor.to(self.backbone.device) for name, tensor in checkpoint.tensors.items()}, stage.parameters()
        )
        return checkpoint.state["metrics"]

    def once(self, make: Callable[[], Checkpoint]) -> Checkpoint:
        """All that the system learns: loaded where it is there, otherwise made and saved."""
        return once(self.data.out / "learned", make)


@contextmanager
def studying(
    system: str, backbone: Backbone, labels: tuple[str, ...], examples: TrainingData, settings: Mapping[str, Any]
) -> Iterator[Study]:
    """Hold the folder of the training data while a system learns.

    Args:
        system: its name.
        backbone: what it stands on.
        labels: what it chooses from.
        examples: what it learns from.
        settings: its own settings, and whatever else its result depends on, as JSON values.

    Raises:
        DataError: there is nothing to learn from, or an example has a label that is none of the labels.
        UsageError: the folder belongs to other examples, another system, or another backbone.
        CheckpointError: the folder cannot be written, or another process is using it.
    """
    check_training_data(examples, labels)
    content = [[[example.image, example.label] for example in split] for split in (examples.train, examples.val)]
    identity = {
        "system": system,
        "backbone": backbone.fingerprint(),
        **reading(backbone),
        "backbone.dtype": str(backbone.dtype).removeprefix("torch."),
        "image_transform": backbone.image_transform,
        "labels": list(labels),
        "data": examples.fingerprint,
        "lessons": hash_of({"told": content}),
        "seed": examples.seed,
        **settings,
    }
    with StopRequest() as stop, RunFolder(examples.out).opened(identity, {}):
        yield Study(backbone, examples, labels, stop, identity)


def check_training_data(examples: TrainingData, labels: Sequence[str]) -> None:
    """Make sure that there is something to learn, and nothing that cannot be answered.

    Raises:
        DataError: nothing to learn from, or a label that is none of the labels.
    """
    if not examples.train:
        raise DataError("there is no labelled image to learn from", "at least one", "Check the split train.")
    strange = sorted({example.label for example in (*examples.train, *examples.val)} - set(labels))
    if strange:
        hint = f"{did_you_mean(strange[0], labels)} Correct the data set, or --labels."
        raise DataError(f"an example has the label '{strange[0]}'", "a label of this system", hint)


def once(folder: Path, make: Callable[[], Checkpoint]) -> Checkpoint:
    """What is saved in a folder, or else made and saved there, whole or not at all.

    What was just made is read back as well. A tensor with other strides has the same numbers, but sums of products with
    it may be taken in another order, and then the last bits of an answer would depend on who fitted the system.
    """
    store = CheckpointStore(folder, keep=1)
    store.clean()
    result = store.latest()
    if result is None:
        store.save(make())
        result = store.latest()
        assert result is not None, f"what was just written to {folder} cannot be read"
    return result


def unlearned(name: str) -> UsageError:
    """The error of a system that is asked before it has learned."""
    return UsageError(f"the system {name} was asked before it learned", "", "Call fit first.")


def read_with(backbone: Backbone, visual: VisualTokens, question: str) -> VisualTokens:
    """The visual tokens in the space of the language model, read with a question where the family's depend on one."""
    return backbone.condition_on(visual, [question] * len(visual))


def pooled_features(visual: VisualTokens) -> Float[Tensor, "batch features"]:
    """What the vision tower knows of each whole image where the backbone gives it, else the mean visual token; fp32."""
    return mean_token(visual) if visual.pooled is None else visual.pooled.float()


def mean_token(visual: VisualTokens) -> Float[Tensor, "batch dim"]:
    """The mean of each image's visual tokens, fp32; padding does not count."""
    return visual.mean()
