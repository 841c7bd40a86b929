"""A measurement that several processes share: every image is answered by one of them, and all of them know all answers."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from masp.backbones.base import Backbone
from masp.data.loading import Failed, LoadedBatch, Loading, prefetch_batches
from masp.data.quarantine import Quarantine
from masp.data.records import Record
from masp.evaluation.batches import Batching
from masp.training.processes import Processes
from masp.types import VisualTokens

T = TypeVar("T")
Answer = Callable[[list[Record], VisualTokens], list[T]]


def answered(
    backbone: Backbone,
    records: Sequence[Record],
    batching: Batching,
    account: Quarantine,
    answer: Answer[T],
    processes: Processes,
) -> list[T]:
    """What `answer` says about every readable record, in their order; the others go to the account.

    Batches are the same ones whatever the number of processes, and so, on one machine, is every answer to the last bit.

    Raises:
        DataError: too many images cannot be read, or none can.
        MaspError: another process failed.
    """
    size = batching.batch_size
    groups = [range(start, min(start + size, len(records))) for start in range(0, len(records), size)]
    loading = Loading(backbone.preprocess, batching.longest_side, workers=batching.workers)
    own = groups if processes.alike else processes.own(groups)
    reader = prefetch_batches([record.path for record in records], own, loading)

    def work(_: Sequence[int]) -> tuple[int, tuple[Failed, ...], list[T]]:
        read: LoadedBatch = next(reader)
        answers: list[T] = []
        if read.indices:
            visual = backbone.visual_tokens(read.pixels.to(backbone.device))
            answers = answer([records[index] for index in read.indices], visual)
        return len(read.indices), read.failures, answers

    found: list[T] = []
    for good, failures, answers in processes.share(groups, work):
        account.accept(good)
        for failed in failures:
            account.reject(failed.path, failed.reason)
        found += answers
        if batching.progress is not None:
            batching.progress(good + len(failures))
    account.finish()
    return found
