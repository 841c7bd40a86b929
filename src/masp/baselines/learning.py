"""What systems that learn have in common: a folder of their own, parts that are computed once, modules that are fitted.

`out/` holds run.json (what decides the result), `read/` (what was read from each image, a group at a time),
`<part>/checkpoints` and `<part>/metrics.jsonl` of each part that is fitted, and `learned/`, which is written last.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masp.backbones.base import Backbone
from masp.baselines.base import Example, TrainingData
from masp.core.errors import DataError, UsageError
from masp.core.flops import images_at_once
from masp.core.runtime import Bar
from masp.core.settings import TrainConfig
from masp.core.types import VisualTokens
from masp.data.splits import Batches
from masp.training.checkpoints import Checkpoint, CheckpointStore, load_parameters
from masp.training.disk_cache import CacheGroup, DiskCache, key_of
from masp.training.run_dir import RunFolder, hash_of, reading
from masp.training.run_stage import loop_settings, make_accelerator
from masp.training.signals import StopRequest
from masp.training.trainer import Trainer, TrainTask, groups_of

GROUP = 8  # batches whose results are written together


@dataclass(frozen=True)
class Study:
    """One call of `learn` that holds its folder.

    Attributes:
        backbone: what the system stands on.
        lessons: what it learns from.
        labels: what it learns to name.
        stop: is asked between steps.
        identity: all that decides the result, as JSON values.
    """

    backbone: Backbone
    lessons: TrainingData
    labels: tuple[str, ...]
    stop: StopRequest
    identity: Mapping[str, Any]

    @property
    def at_once(self) -> int:
        """Images that are read in one batch."""
        return images_at_once(self.backbone.dim)

    @property
    def examples(self) -> tuple[Example, ...]:
        """Lessons of both splits, those to learn from first."""
        return self.lessons.train + self.lessons.val

    def target(self, lesson: Example) -> int:
        """The number of a lesson's label."""
        return self.labels.index(lesson.label)

    def table(
        self, name: str, read: Callable[[VisualTokens], Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[int, int]]:
        """What `read` makes of every image of the lessons, one row an image; what an earlier start read is loaded.

        Images are always read in the same batches, so an interrupted call goes on to the same bits.

        Returns:
            Tensors by name, on the CPU, and the row of each image.

        Raises:
            Interrupted: a signal arrived; whole groups of images are saved.
        """
        images = sorted({lesson.image for lesson in self.examples})
        shelf, parts, done = DiskCache(self.lessons.out / "read", sys.maxsize), [], 0
        with Bar(name, len(images)) as bar:
            for chosen in groups_of(images, self.at_once * GROUP):
                key = key_of({"kind": name, "images": chosen, **self.identity})
                parts.append((shelf.load(key) or shelf.save(key, self._group(chosen, read))).tensors)
                done += len(chosen)
                bar.show(done)
        columns = {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
        return columns, {image: row for row, image in enumerate(images)}

    def _group(self, images: Sequence[int], read: Callable[[VisualTokens], Mapping[str, Tensor]]) -> CacheGroup:
        found: list[Mapping[str, Tensor]] = []
        groups = self.stop.between(groups_of(images, self.at_once))
        for _, visual in self.lessons.images.stream(groups, lambda group: group):
            assert visual is not None
            with torch.no_grad():
                found.append(read(visual))
        return CacheGroup({name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}, {})

    def fit(self, stage: TrainTask, settings: TrainConfig) -> dict[str, float]:
        """Train the parameters of a stage, going on where an earlier start was; finished, they are loaded.

        Returns:
            The validation metrics of the state that was kept, empty without a validation split.

        Raises:
            Interrupted: a signal arrived; the checkpoint is written.
        """
        folder = self.lessons.out / stage.name

        def run() -> Checkpoint:
            folder.mkdir(exist_ok=True)
            checkpoints = CheckpointStore(folder / "checkpoints", settings.keep_checkpoints)
            checkpoints.clean()
            order = Batches(len(self.lessons.train), settings.batch_size, settings.seed)
            loop = loop_settings(settings, order, hash_of({"part": stage.name, **self.identity}))
            with torch.random.fork_rng():  # dropout; the caller's own random numbers stay as they are
                torch.manual_seed(settings.seed)
                accelerator = make_accelerator(settings, self.backbone, folder, stage.name)
                fit = Trainer(stage, loop, checkpoints, accelerator).fit(folder / "metrics.jsonl", self.stop)
            tensors = {name: tensor.detach().cpu() for name, tensor in stage.parameters().items()}
            return Checkpoint(fit.steps, tensors, {"metrics": fit.metrics})

        found = once(folder / "learned", run)
        load_parameters(
            {name: tensor.to(self.backbone.device) for name, tensor in found.tensors.items()}, stage.parameters()
        )
        return found.state["metrics"]

    def once(self, make: Callable[[], Checkpoint]) -> Checkpoint:
        """All that the system learns: loaded where it is there, otherwise made and saved."""
        return once(self.lessons.out / "learned", make)


@contextmanager
def studying(
    system: str, backbone: Backbone, labels: tuple[str, ...], lessons: TrainingData, settings: Mapping[str, Any]
) -> Iterator[Study]:
    """Hold the folder of the lessons while a system learns.

    Args:
        system: its name.
        backbone: what it stands on.
        labels: what it chooses from.
        lessons: what it learns from.
        settings: its own settings, and whatever else its result depends on, as JSON values.

    Raises:
        DataError: there is nothing to learn from, or a lesson has a label that is none of the labels.
        UsageError: the folder belongs to other lessons, another system, or another backbone.
        CheckpointError: the folder cannot be written, or another process is using it.
    """
    check_lessons(lessons, labels)
    told = [[[lesson.image, lesson.label] for lesson in split] for split in (lessons.train, lessons.val)]
    identity = {
        "system": system,
        "backbone": backbone.fingerprint(),
        **reading(backbone),
        "backbone.dtype": str(backbone.dtype).removeprefix("torch."),
        "image_transform": backbone.image_transform,
        "labels": list(labels),
        "data": lessons.fingerprint,
        "lessons": hash_of({"told": told}),
        "seed": lessons.seed,
        **settings,
    }
    with StopRequest() as stop, RunFolder(lessons.out).opened(identity, {}):
        yield Study(backbone, lessons, labels, stop, identity)


def check_lessons(lessons: TrainingData, labels: Sequence[str]) -> None:
    """Make sure that there is something to learn, and nothing that cannot be answered.

    Raises:
        DataError: nothing to learn from, or a label that is none of the labels.
    """
    if not lessons.train:
        raise DataError("there is no labelled image to learn from", "at least one", "Check the split train.")
    strange = sorted({lesson.label for lesson in (*lessons.train, *lessons.val)} - set(labels))
    if strange:
        raise DataError(
            f"the lessons have the label '{strange[0]}'", f"one of {', '.join(labels)}", "Correct --labels."
        )


def once(folder: Path, make: Callable[[], Checkpoint]) -> Checkpoint:
    """What is saved in a folder, or else made and saved there, whole or not at all.

    What was just made is read back as well. A tensor with other strides has the same numbers, but sums of products with
    it may be taken in another order, and then the last bits of an answer would depend on who fitted the system.
    """
    store = CheckpointStore(folder, keep=1)
    store.clean()
    found = store.latest()
    if found is None:
        store.save(make())
        found = store.latest()
        assert found is not None, f"what was just written to {folder} cannot be read"
    return found


def unlearned(name: str) -> UsageError:
    """The error of a system that is asked before it has learned."""
    return UsageError(f"the system {name} was asked before it learned", "", "Call learn first.")
