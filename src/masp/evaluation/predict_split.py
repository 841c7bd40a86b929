"""A system answers about the images of one split: batch by batch, resumable, shared by several processes.

While it goes on there is one line per batch on the disk, written before the next batch begins, so that an interrupted
evaluation continues where it stopped. The first line, and the name of the file, say which run it is; a file of another
run is never read, and what follows a line that was cut short is asked again.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from masp.backbones.base import Backbone
from masp.baselines.base import System, SystemPrediction
from masp.core.atomic_io import flush, lock
from masp.core.errors import DataError, UsageError, did_you_mean, shown
from masp.core.flops import images_at_once
from masp.core.types import VisualTokens
from masp.data.images import Rounding
from masp.data.prefetch import LoadedBatch, Loading, prefetch, prefetch_batches
from masp.data.records import BadFiles, Dataset, Record
from masp.evaluation.result import LOWEST, LabelledPrediction, SkippedImage
from masp.training.distributed import Processes, launched

log = logging.getLogger(__name__)

LOG_FORMAT = 1
ENDING = ".partial.jsonl"


@dataclass(frozen=True)
class Batching:
    """How images are read for a measurement.

    Attributes:
        batch_size: images that go through the model together; None: as `images_at_once` says of the backbone, on the
            command line and in Python alike. The last bits of an answer depend on it, and so the name of a run.
        workers: threads that read ahead.
        longest_side: images with a longer side are shrunk to it first; None: never.
        rounding: of the shorter side then.
        progress: is told how many images each batch had.
    """

    batch_size: int | None = None
    workers: int = 2
    longest_side: int | None = None
    rounding: Rounding = "nearest"
    progress: Callable[[int], object] | None = None

    def size_on(self, backbone: Backbone) -> int:
        """Images that go through this backbone together.

        Raises:
            UsageError: fewer than one.
        """
        size = images_at_once(backbone.dim) if self.batch_size is None else self.batch_size
        if size < 1:
            raise UsageError(f"batch_size is {size}", "1 or more", "Correct batch_size.")
        return size

    def advance(self, images: int) -> None:
        """Tells `progress`, if there is one."""
        if self.progress is not None:
            self.progress(images)


def visual_batches(
    backbone: Backbone, records: Sequence[Record], batching: Batching, account: BadFiles
) -> Iterator[tuple[list[Record], VisualTokens]]:
    """The readable records with their visual tokens, batch by batch in order; the others go to the account.

    Raises:
        DataError: too many images cannot be read, or none can.
    """
    paths, size = [record.path for record in records], batching.size_on(backbone)
    how = (size, batching.workers, batching.longest_side)
    for batch in prefetch(paths, backbone.preprocess, *how, bad_files=account, rounding=batching.rounding):
        if batch.indices:
            yield [records[index] for index in batch.indices], backbone.visual_tokens(batch.pixels.to(backbone.device))
        batching.advance(len(batch.indices) + len(batch.failures))
    account.finish()


def labelled(records: Sequence[Record], labels: Sequence[str]) -> list[Record]:
    """The records that have a label.

    Raises:
        DataError: none has one.
        UsageError: one has a label that the model does not choose from.
    """
    known = [record for record in records if record.label is not None]
    if not known:
        raise DataError("no image has a label", "labelled images", "Check the layout of the data set.")
    for record in known:
        if record.label not in labels:
            expected = f"the labels of the adapter: {', '.join(labels)}"
            todo = did_you_mean(record.label or "", labels)
            raise UsageError(f"the data set has the label '{record.label}'", expected, todo if "Did" in todo else "")
    return known


def predict_batch(
    system: System, dataset: Dataset, records: Sequence[Record], visual: VisualTokens
) -> tuple[LabelledPrediction, ...]:
    """What a system says about labelled images with their visual tokens, once it is certain that it can be counted.

    Raises:
        UsageError: it names a label that is none of its own, or its log-probabilities are no distribution over them.
    """
    pairs = zip(records, system.predict(visual), strict=True)
    return tuple(
        _checked(dataset.relative_path(record.path), record.label or "", one, system.labels) for record, one in pairs
    )


def _checked(image: str, target: str, prediction: SystemPrediction, labels: Sequence[str]) -> LabelledPrediction:
    logs = prediction.log_probabilities
    if prediction.predicted is not None and prediction.predicted not in labels:
        raise UsageError(f"the system names {shown(prediction.predicted)} for {image}", f"one of {', '.join(labels)}")
    if logs is not None:
        if set(logs) != set(labels) or not abs(sum(map(math.exp, logs.values())) - 1) < 1e-3:
            raise UsageError(f"the system gives {image} the log-probabilities {shown(dict(logs))}", "all, normalised")
        logs = {label: max(LOWEST, logs[label]) for label in labels}
    return LabelledPrediction(image, target, prediction.predicted, logs, prediction.answer, prediction.exact)


@dataclass(frozen=True)
class SplitPredictions:
    """What a system said about some labelled images, in their order: one batch, or a whole split."""

    answers: tuple[LabelledPrediction, ...]  # in the order of the split
    left_out: tuple[SkippedImage, ...]  # images that could not be read
    seconds: float  # spent on it, interrupted parts included
    unlabelled: int = 0  # images without a label, which were not asked about

    @property
    def images(self) -> set[str]:
        """All images."""
        return {one.image for one in (*self.answers, *self.left_out)}


def predict_split(
    system: System, dataset: Dataset, split: str, batching: Batching, keep: tuple[Path, str] | None = None
) -> SplitPredictions:
    """Asks a system about every labelled image of a split, once.

    Batches are the same ones whatever the number of processes and however often the run was interrupted, and so, on one
    machine, is every answer to the last bit.

    Args:
        system: is asked.
        dataset: has the split.
        split: name of the split.
        batching: how images are read.
        keep: a folder, and the hash of the run, to keep what was said until the result is written; None: do not.

    Raises:
        DataError: no such split, no labels in it, or too many unreadable images.
        UsageError: a label that the system does not know, or another process that asks the same.
        OSError: what was said cannot be written.
    """
    records = dataset.split(split)
    known, size = labelled(records, system.labels), batching.size_on(system.backbone)
    images = [dataset.relative_path(record.path) for record in known]
    batches: list[SplitPredictions] = []
    processes = launched(system.backbone.device)
    with processes.guarded(), ExitStack() as stack:
        resume_log = stack.enter_context(ResumeLog(*keep)) if keep and processes.main else None
        account = BadFiles(total=len(known))
        before = processes.on_main(lambda: () if resume_log is None else resume_log.batches_of(images, size))
        rest = known[len(before) * size :]
        for one in chain(before, _fresh(system, dataset, rest, batching, processes)):
            account.accept(len(one.answers))
            for bad in one.left_out:
                account.reject(dataset.root / bad.image, bad.reason)
            if resume_log is not None and len(batches) >= len(before):
                resume_log.add(one)
            batching.advance(len(one.answers) + len(one.left_out))
            batches.append(one)
        account.finish()
    return SplitPredictions(
        tuple(answer for one in batches for answer in one.answers),
        tuple(bad for one in batches for bad in one.left_out),
        sum(one.seconds for one in batches),
        len(records) - len(known),
    )


def _fresh(
    system: System, dataset: Dataset, records: Sequence[Record], batching: Batching, processes: Processes
) -> Iterator[SplitPredictions]:
    """Batches that are not done yet, each by one of the processes; all hear every answer.

    The seconds of a batch are its share of the time that all processes took.

    Raises:
        MaspError: another process failed.
    """
    backbone, size, started = system.backbone, batching.size_on(system.backbone), time.perf_counter()

    def answer(batch: LoadedBatch) -> SplitPredictions:
        nonlocal started
        readable, answers = [records[index] for index in batch.indices], ()
        if readable:
            visual = backbone.visual_tokens(batch.pixels.to(backbone.device))
            answers = predict_batch(system, dataset, readable, visual)
        bad = tuple(SkippedImage(dataset.relative_path(failed.path), failed.reason) for failed in batch.failures)
        since, started = started, time.perf_counter()
        return SplitPredictions(answers, bad, (started - since) / processes.count)

    groups = [range(start, min(start + size, len(records))) for start in range(0, len(records), size)]
    own = processes.shard(groups)
    side, rounding = batching.longest_side, batching.rounding
    loading = Loading(backbone.preprocess, side, workers=batching.workers, rounding=rounding)
    read = prefetch_batches([record.path for record in records], own, loading)
    yield from processes.share(groups, lambda _: answer(next(read)))


class ResumeLog:
    """The batches of one run, those from before an interruption and those that are added; a context.

    Args:
        folder: where the result will be.
        run: hash of all that the answers depend on.

    Attributes:
        found: the batches that were on the disk already.

    Raises:
        UsageError: another process is writing it.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{run[:12]}{ENDING}"
        self._file = self.path.open("a+b")
        try:
            if not lock(self._file.fileno()):
                got = f"another process is writing the same evaluation into {folder}"
                raise UsageError(got, "one at a time", "Wait for it, or name another --out.")
            self.found, end = self._read(run)
            self._file.truncate(end)
            if end == 0:
                self._write({"format": LOG_FORMAT, "run": run})
                flush(folder)
        except BaseException:
            self._file.close()
            raise
        if self.found:
            log.info("going on after %d batches, from %s", len(self.found), self.path.name)

    def batches_of(self, images: Sequence[str], size: int) -> tuple[SplitPredictions, ...]:
        """The batches, as far as they are those of a split; the others are dropped from the disk too."""
        for index, one in enumerate(self.found):
            if one.images != set(images[index * size : (index + 1) * size]):  # the split is in another order now
                self._file.seek(0)
                self._file.truncate(sum(map(len, self._file.readlines()[: 1 + index])))
                self.found = self.found[:index]
                break
        return self.found

    def add(self, batch: SplitPredictions) -> None:
        """Brings one batch to the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        content = asdict(batch)
        del content["unlabelled"]
        self._write(content)

    def _read(self, run: str) -> tuple[tuple[SplitPredictions, ...], int]:
        """The whole batches of this run, and where the last of them ends."""
        self._file.seek(0)
        lines = self._file.readlines()
        if not lines or _content(lines[0]) != {"format": LOG_FORMAT, "run": run}:
            return (), 0
        parts, end = list[SplitPredictions](), len(lines[0])
        for line in lines[1:]:
            try:
                content: Any = _content(line)
                answers = tuple(LabelledPrediction(**row) for row in content["answers"])
                left_out = tuple(SkippedImage(**row) for row in content["left_out"])
                parts.append(SplitPredictions(answers, left_out, float(content["seconds"])))
            except (KeyError, TypeError, ValueError):
                break
            end += len(line)
        return tuple(parts), end

    def _write(self, content: object) -> None:
        self._file.write((json.dumps(content, allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "ResumeLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _content(line: bytes) -> object:
    """What a line holds; None where it was cut short or never reached the disk."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
