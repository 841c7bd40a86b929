"""The order of examples depends on seed and epoch alone, and a run can start in the middle of it."""

import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.core.errors import UsageError
from masp.data.splits import Batches, epoch_order


def test_the_order_is_pinned() -> None:
    """Another order would break the resuming of running trainings, so these numbers must never change."""
    assert epoch_order(11, 0, 0) == [2, 10, 7, 5, 1, 9, 4, 6, 3, 0, 8]
    assert hashlib.sha256(str(epoch_order(1009, 3, 5)).encode()).hexdigest()[:16] == "fb8ab32fdfc94416"


@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 50))
def test_an_epoch_sees_every_example_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(n, seed, epoch)) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(30, seed, epoch)) for seed in range(7) for epoch in range(5)}
    assert len(orders) == 35


@pytest.mark.parametrize("hash_seed", ["0", "1", "77"])
def test_hash_seeds_do_not_matter(hash_seed: str) -> None:
    code = "from masp.data.splits import Batches; print(list(Batches(23, 5, 3, list(range(23))).batches(2)))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(list(Batches(23, 5, 3, list(range(23))).batches(2)))


@given(st.integers(1, 200), st.integers(1, 17), st.booleans(), st.integers(0, 5), st.data())
def test_resuming_anywhere_continues_the_same_epoch(
    n: int, size: int, bucketed: bool, epoch: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) if bucketed else None
    batches = Batches(n, size, 7, lengths, window=3)
    whole = list(batches.batches(epoch))
    assert sorted(index for batch in whole for index in batch) == list(range(n))
    assert len(whole) == batches.per_epoch == -(-n // size)
    start = data.draw(st.integers(0, len(whole)))
    assert list(batches.batches(epoch, start)) == whole[start:]
    assert all(len(batch) == size for batch in whole) or sorted(map(len, whole))[1:] == [size] * (len(whole) - 1)


def test_without_lengths_batches_follow_the_order() -> None:
    batches = list(Batches(11, 3, 2).batches(4))
    assert [index for batch in batches for index in batch] == epoch_order(11, 2, 4)
    assert [len(batch) for batch in batches] == [3, 3, 3, 2]


def test_buckets_bring_similar_lengths_together() -> None:
    lengths = [(index * 37) % 101 for index in range(700)]

    def padding(batches: Batches) -> int:
        chosen = [[lengths[index] for index in batch] for batch in batches.batches(0)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in chosen)

    assert padding(Batches(700, 7, 0, lengths)) < padding(Batches(700, 7, 0)) / 5
    starts = [lengths[batch[0]] for batch in Batches(700, 7, 0, lengths).batches(0)]
    assert starts != sorted(starts)  # the batches themselves come in any order
    assert list(Batches(700, 7, 0, lengths).batches(0)) != list(Batches(700, 7, 0, lengths).batches(1))


def test_sizes_that_make_no_sense_are_refused() -> None:
    for n, size, window in ((0, 3, 2), (5, 0, 2), (5, 3, 0)):
        with pytest.raises(
            UsageError, match=rf"there are {n} examples, {size} per batch and {window} batches per window"
        ):
            Batches(n, size, 0, window=window)
    with pytest.raises(UsageError, match="there are 3 lengths; expected one for each of 5 examples"):
        Batches(5, 2, 0, [1, 2, 3])
    for start in (-1, 4):
        with pytest.raises(UsageError, match=rf"batch {start} of an epoch; expected 0 to 3"):
            list(Batches(5, 2, 0).batches(0, start))
