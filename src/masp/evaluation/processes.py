"""A measurement that several processes share: each batch is answered by one of them, and all hear every answer."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from masp.backbones.base import Backbone
from masp.data.prefetch import LoadedBatch, Loading, prefetch_batches
from masp.evaluation.batches import Batching
from masp.training.distributed import Processes

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
    own = processes.shard(groups)
    side, rounding = batching.longest_side, batching.rounding
    loading = Loading(backbone.preprocess, side, workers=batching.workers, rounding=rounding)
    read = prefetch_batches(paths, own, loading)
    yield from processes.share(groups, lambda _: answer(next(read)))
