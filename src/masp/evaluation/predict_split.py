"""A system is asked about the images of one split, batch by batch, resumable and shared by several processes."""

import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from masp.backbones.base import Backbone
from masp.baselines.base import System, SystemPrediction
from masp.core.atomic_io import flush
from masp.core.errors import DataError, UsageError, did_you_mean, shown
from masp.core.flops import images_at_once
from masp.core.types import VisualTokens
from masp.data.bad_files import BadFiles
from masp.data.images import Rounding
from masp.data.prefetch import LoadedBatch, Loading, prefetch, prefetch_batches
from masp.data.records import Dataset, Record
from masp.evaluation.predictions import LOWEST, LabelledPrediction
from masp.evaluation.result import SkippedImage
from masp.training.distributed import Processes, launched


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


def visual_batches(
    backbone: Backbone, records: Sequence[Record], batching: Batching, account: BadFiles
) -> Iterator[tuple[list[Record], VisualTokens]]:
    """The readable records with their visual tokens, batch by batch in order; the others go to the account.

    Raises:
        DataError: too many images cannot be read, or none can.
    """
    paths, size = [record.path for record in records], batching.size_on(backbone)
    how = (size, batching.workers, batching.longest_side)
    loaded = prefetch(paths, backbone.preprocess, *how, quarantine=account, rounding=batching.rounding)
    for batch in loaded:
        if batch.indices:
            yield [records[index] for index in batch.indices], backbone.visual_tokens(batch.pixels.to(backbone.device))
        if batching.progress is not None:
            batching.progress(len(batch.indices) + len(batch.failures))
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


log = logging.getLogger(__name__)

LOG_FORMAT = 1
ENDING = ".partial.jsonl"


@dataclass(frozen=True)
class LoggedAnswer:
    """One batch: what was said about its images, which of them could not be read, and the seconds it took."""

    answers: tuple[LabelledPrediction, ...]
    left_out: tuple[SkippedImage, ...]
    seconds: float

    @property
    def images(self) -> set[str]:
        """All images of the batch."""
        return {one.image for one in self.answers} | {one.image for one in self.left_out}


class ResumeLog:
    """The batches of one run, those from before an interruption and those that are added.

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
            self._lock()
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

    def add(self, asked: LoggedAnswer) -> None:
        """Brings one batch to the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self._write(asdict(asked))

    def forget(self, kept: int) -> None:
        """Keeps the first batches only, and drops the others from the disk.

        Raises:
            OSError: the disk cannot be written.
        """
        self._file.seek(0)
        lines = self._file.readlines()[: 1 + kept]
        self._file.truncate(sum(map(len, lines)))
        self.found = self.found[:kept]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got = f"another process is writing the same evaluation into {self.path.parent}"
            raise UsageError(got, "one at a time", "Wait for it, or name another --out.") from None

    def _read(self, run: str) -> tuple[tuple[LoggedAnswer, ...], int]:
        """The whole batches of this run, and where the last of them ends."""
        self._file.seek(0)
        lines = self._file.readlines()
        if not lines or _content(lines[0]) != {"format": LOG_FORMAT, "run": run}:
            return (), 0
        found: list[LoggedAnswer] = []
        end = len(lines[0])
        for line in lines[1:]:
            asked = _asked(_content(line))
            if asked is None:
                break
            found.append(asked)
            end += len(line)
        return tuple(found), end

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(content, allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "ResumeLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def remove_journals(folder: Path) -> None:
    """Removes what is not needed any more once the result is on the disk, that of other runs included."""
    for path in folder.glob(f"{'[0-9a-f]' * 12}{ENDING}"):
        path.unlink(missing_ok=True)


def _content(line: bytes) -> object:
    """What a line holds; None where it was cut short or never reached the disk."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _asked(content: object) -> LoggedAnswer | None:
    if not isinstance(content, dict):
        return None
    try:
        answers = tuple(LabelledPrediction(**row) for row in content["answers"])
        left_out = tuple(SkippedImage(**row) for row in content["left_out"])
        return LoggedAnswer(answers, left_out, float(content["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None


T = TypeVar("T")


def shared_batches(
    backbone: Backbone,
    paths: Sequence[Path],
    batching: Batching,
    answer: Callable[[LoadedBatch], T],
    processes: Processes,
) -> Iterator[T]:
    """What `answer` says about each batch, in their order.

    Batches are the same ones whatever the number of processes, and so, on one machine, is every answer to the last bit.

    Raises:
        MaspError: another process failed.
    """
    size = batching.size_on(backbone)
    groups = [range(start, min(start + size, len(paths))) for start in range(0, len(paths), size)]
    own = groups if processes.alike else processes.shard(groups)
    side, rounding = batching.longest_side, batching.rounding
    loading = Loading(backbone.preprocess, side, workers=batching.workers, rounding=rounding)
    read = prefetch_batches(paths, own, loading)
    yield from processes.share(groups, lambda _: answer(next(read)))


@dataclass(frozen=True)
class SplitPredictions:
    """All that a system said about one split.

    Attributes:
        answers: in the order of the split.
        left_out: images that could not be read.
        unlabelled: images without a label, which were not asked about.
        seconds: spent on it, interrupted parts included.
    """

    answers: tuple[LabelledPrediction, ...]
    left_out: tuple[SkippedImage, ...]
    unlabelled: int
    seconds: float


def ask(
    system: System, dataset: Dataset, split: str, batching: Batching, keep: tuple[Path, str] | None = None
) -> SplitPredictions:
    """Asks a system about every labelled image of a split, once.

    Args:
        system: is asked.
        dataset: has the split.
        split: name of the split.
        batching: how images are read. Batches are the same however often the run was interrupted.
        keep: a folder, and the hash of the run, to keep what was said until the result is written; None: do not.

    Raises:
        DataError: no such split, no labels in it, or too many unreadable images.
        UsageError: a label that the system does not know, or another process that asks the same.
        OSError: what was said cannot be written.
    """
    records = dataset.split(split)
    known = labelled(records, system.labels)
    size = batching.size_on(system.backbone)
    asked: list[LoggedAnswer] = []
    processes = launched(system.backbone.device, system.backbone.sharded)
    with processes.guarded(), ExitStack() as stack:
        journal = stack.enter_context(ResumeLog(*keep)) if keep and processes.main else None
        account = BadFiles(total=len(known))
        before = processes.on_main(lambda: _before(journal, dataset, known, size))
        for one in chain(before, _fresh(system, dataset, known, batching, len(before), processes)):
            account.accept(len(one.answers))
            for bad in one.left_out:
                account.reject(dataset.root / bad.image, bad.reason)
            if journal is not None and len(asked) >= len(before):
                journal.add(one)
            _tell(batching, one)
            asked.append(one)
        account.finish()
    return SplitPredictions(
        tuple(answer for one in asked for answer in one.answers),
        tuple(bad for one in asked for bad in one.left_out),
        len(records) - len(known),
        sum(one.seconds for one in asked),
    )


def _before(
    journal: ResumeLog | None, dataset: Dataset, known: Sequence[Record], size: int
) -> tuple[LoggedAnswer, ...]:
    """The batches in the journal, as far as they are these batches."""
    if journal is None:
        return ()
    images = [dataset.place(record.path) for record in known]
    for number, one in enumerate(journal.found):
        if one.images != set(images[number * size : (number + 1) * size]):  # the split is in another order now
            journal.forget(number)
            break
    return journal.found


def _fresh(
    system: System, dataset: Dataset, known: Sequence[Record], batching: Batching, done: int, processes: Processes
) -> Iterator[LoggedAnswer]:
    """The batches after the first `done` ones; the seconds of one are its share of the time that all processes took."""
    rest = known[done * batching.size_on(system.backbone) :]
    started = time.perf_counter()

    def answer(batch: LoadedBatch) -> LoggedAnswer:
        nonlocal started
        answers = _answers(system, dataset, [rest[index] for index in batch.indices], batch)
        bad = tuple(SkippedImage(dataset.place(failed.path), failed.reason) for failed in batch.failures)
        since, started = started, time.perf_counter()
        return LoggedAnswer(answers, bad, (started - since) / processes.count)

    return shared_batches(system.backbone, [record.path for record in rest], batching, answer, processes)


def _answers(
    system: System, dataset: Dataset, records: Sequence[Record], batch: LoadedBatch
) -> tuple[LabelledPrediction, ...]:
    if not records:
        return ()
    backbone = system.backbone
    said = system.predict(backbone.visual_tokens(batch.pixels.to(backbone.device)))
    rows = zip(records, said, strict=True)
    return tuple(_answered(dataset.place(record.path), record.label or "", one, system.labels) for record, one in rows)


def _answered(image: str, truth: str, said: SystemPrediction, labels: Sequence[str]) -> LabelledPrediction:
    """What was said, once it is certain that it can be measured.

    Raises:
        UsageError: it names another label, or its log-probabilities are none.
    """
    logs = said.log_probabilities
    if said.predicted is not None and said.predicted not in labels:
        raise UsageError(f"the system names {shown(said.predicted)} for {image}", f"one of {', '.join(labels)}")
    if logs is not None:
        if set(logs) != set(labels) or not abs(sum(map(math.exp, logs.values())) - 1) < 1e-3:
            raise UsageError(f"the system gives {image} the log-probabilities {shown(dict(logs))}", "all, normalised")
        logs = {label: max(LOWEST, logs[label]) for label in labels}
    return LabelledPrediction(image, truth, said.predicted, logs, said.answer, said.exact)


def _tell(batching: Batching, one: LoggedAnswer) -> None:
    if batching.progress is not None:
        batching.progress(len(one.answers) + len(one.left_out))
