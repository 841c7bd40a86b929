"""The order in which examples are seen: a function of (seed, epoch) alone, so that a run can resume in mid-epoch."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from masp.core.errors import UsageError


@dataclass(frozen=True)
class EpochOrder:
    """The order of `n` examples in one epoch.

    Sorting by a hash is the same permutation on every machine and with every version of every library.
    """

    n: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return self.n

    def indices(self) -> list[int]:
        """Every number from 0 to n - 1 once."""
        return _shuffled(self.n, f"{self.seed}:{self.epoch}:examples")


def _shuffled(n: int, name: str) -> list[int]:
    start = hashlib.blake2b(name.encode(), digest_size=16)

    def key(index: int) -> bytes:
        state = start.copy()
        state.update(index.to_bytes(8, "little"))
        return state.digest()

    return sorted(range(n), key=key)


class Batches:
    """The batches of every epoch.

    Args:
        n: number of examples.
        batch_size: examples per batch; the last one of an epoch may be smaller.
        seed: another seed is another order.
        lengths: a length for each example. When given, examples of similar length share a batch, which saves padding:
            the shuffled order is cut into windows, each window is sorted by length, and the batches of the epoch are
            shuffled.
        window: batches per window.

    Raises:
        UsageError: a size below 1, or not one length per example.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None, window: int = 32
    ) -> None:
        if n < 1 or batch_size < 1 or window < 1:
            raise UsageError(
                f"there are {n} examples, {batch_size} per batch and {window} batches per window",
                "1 or more of each",
                "Check the data set and batch_size.",
            )
        if lengths is not None and len(lengths) != n:
            raise UsageError(f"there are {len(lengths)} lengths", f"one for each of {n} examples", "Pass them all.")
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.window = window

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.n // self.batch_size)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[int, ...]]:
        """The batches of an epoch from number `start_batch` on, as indices of examples.

        Every example is in exactly one batch of the epoch, whatever number an earlier run stopped at.

        Raises:
            UsageError: `start_batch` is not a batch of the epoch (or its end).
        """
        if not 0 <= start_batch <= self.per_epoch:
            raise UsageError(
                f"batch {start_batch} of an epoch",
                f"0 to {self.per_epoch}",
                "Resume with the same data and batch size.",
            )
        order = EpochOrder(self.n, self.seed, epoch).indices()
        chosen = self._cut(order) if self.lengths is None else self._bucketed(order, self.lengths, epoch)
        yield from chosen[start_batch:]

    def _cut(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order[start : start + self.batch_size]) for start in range(0, len(order), self.batch_size)]

    def _bucketed(self, order: Sequence[int], lengths: Sequence[int], epoch: int) -> list[tuple[int, ...]]:
        span = self.window * self.batch_size
        batches: list[tuple[int, ...]] = []
        for start in range(0, len(order), span):
            batches += self._cut(sorted(order[start : start + span], key=lambda index: lengths[index]))
        return [batches[place] for place in _shuffled(len(batches), f"{self.seed}:{epoch}:batches")]
