"""A system is asked about the images of one split, batch by batch; what was asked before an interruption is not."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from masp.baselines.base import System, SystemPrediction
from masp.core.errors import UsageError, shown
from masp.data.prefetch import LoadedBatch
from masp.data.records import BadFiles, Dataset, Record
from masp.evaluation.batches import Batching, labelled
from masp.evaluation.predictions import LOWEST, LabelledPrediction
from masp.evaluation.processes import shared_batches
from masp.evaluation.result import SkippedImage
from masp.evaluation.resume_log import LoggedAnswer, ResumeLog
from masp.training.distributed import Processes, launched


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
    processes = launched(system.backbone.device)
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
