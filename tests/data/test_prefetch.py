"""Batches come in order, whatever the number of threads; what is bad is counted; memory stays bounded."""

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixtures.pictures import noise, put
from masp.core.errors import DataError, UsageError
from masp.data.prefetch import Failed, LoadedBatch, Loading, load, prefetch, prefetch_batches
from masp.data.records import BadFiles
from masp.data.splits import Batches


def mean(images: Sequence[Image.Image]) -> list[float]:
    """A stand-in for preprocessing that tells images apart."""
    return [float(np.asarray(image).mean()) for image in images]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [put(tmp_path / f"{number:02d}.png", number) for number in range(23)]
    paths[4].write_bytes(b"junk")
    paths[17].unlink()
    return paths


def content(batches: Iterator[LoadedBatch]) -> list[tuple[object, ...]]:
    return [(batch.indices, batch.paths, batch.pixels, batch.failures) for batch in batches]


def test_batches_keep_the_order_and_leave_bad_pictures_out(pictures: list[Path]) -> None:
    batches = list(prefetch(pictures, mean, batch_size=5))
    assert [batch.indices for batch in batches] == [
        (0, 1, 2, 3),
        (5, 6, 7, 8, 9),
        (10, 11, 12, 13, 14),
        (15, 16, 18, 19),
        (20, 21, 22),
    ]
    assert batches[0].pixels == mean([noise(seed=number) for number in range(4)])
    assert batches[0].paths == tuple(pictures[:4])
    assert batches[0].failures == (Failed(4, pictures[4], "not a JPEG, PNG, WEBP, GIF, BMP, AVIF or HEIC file"),)
    assert batches[3].failures[0].reason == "cannot be read (No such file or directory)"


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_threads_does_not_matter(pictures: list[Path], workers: int) -> None:
    def slow_at_first(images: Sequence[Image.Image]) -> list[float]:
        time.sleep(0.02 if mean(images)[0] == mean([noise(seed=0)])[0] else 0)
        return mean(images)

    assert content(prefetch(pictures, slow_at_first, 3, workers)) == content(prefetch(pictures, mean, 3, workers=0))


def test_pictures_are_shrunk_before_preprocessing(pictures: list[Path]) -> None:
    (first, *_) = prefetch(pictures, lambda images: [image.size for image in images], 3, longest_side=4)
    assert first.pixels == [(4, 3)] * 3


def test_a_batch_without_a_good_picture_is_empty(tmp_path: Path) -> None:
    (batch,) = prefetch([tmp_path / "a.png", str(tmp_path / "b.png")], mean)
    assert (batch.indices, batch.pixels, len(batch.failures)) == ((), None, 2)
    assert list(prefetch([], mean)) == []


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:60])])
def test_a_bad_picture_does_not_keep_the_others_in_memory(
    pictures: list[Path], damage: Callable[[Path], object]
) -> None:
    """Not even until the collector of cycles comes by: batches follow each other faster."""
    damage(pictures[1])
    made: list[weakref.ref[Image.Image]] = []

    def watched(images: Sequence[Image.Image]) -> int:
        made.extend(map(weakref.ref, images))
        return len(images)

    gc.disable()
    try:
        (batch,) = prefetch(pictures[:4], watched, 4, workers=0)
        alive = [one for one in made if one() is not None]
    finally:
        gc.enable()
    assert (batch.pixels, len(batch.failures), alive) == (3, 1, [])


def test_given_batches_are_read_in_the_given_order(pictures: list[Path]) -> None:
    order = Batches(23, 4, seed=3)
    batches = list(prefetch_batches(pictures, order.batches(2, 1), Loading(mean, workers=2)))
    wanted = [tuple(index for index in batch if index not in (4, 17)) for batch in order.batches(2, 1)]
    assert [batch.indices for batch in batches] == wanted


def test_a_picture_that_preprocessing_refuses_fails_alone(pictures: list[Path]) -> None:
    def picky(images: Sequence[Image.Image]) -> list[float]:
        if any(image.getpixel((0, 0)) == noise(seed=7).getpixel((0, 0)) for image in images):
            raise ValueError("too\nthin")
        return mean(images)

    batches = list(prefetch(pictures, picky, batch_size=5))
    assert batches[1].indices == (5, 6, 8, 9)
    assert batches[1].pixels == mean([noise(seed=number) for number in (5, 6, 8, 9)])
    assert batches[1].failures == (Failed(7, pictures[7], "too thin"),)


def test_a_mistake_in_preprocessing_is_not_the_pictures_fault(pictures: list[Path]) -> None:
    def broken(images: Sequence[Image.Image]) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        next(prefetch(pictures, broken))

    def only_batches(images: Sequence[Image.Image]) -> None:
        if len(images) > 1:
            raise ValueError("no batches")

    with pytest.raises(ValueError, match="no batches"):
        next(prefetch(pictures, only_batches))


def test_the_account_is_exact(pictures: list[Path]) -> None:
    account = BadFiles()
    batches = list(prefetch(pictures, mean, 5, bad_files=account))
    assert account.used == sum(len(batch.indices) for batch in batches) == 21
    assert (account.read, [rejected.path for rejected in account.rejected]) == (23, [pictures[4], pictures[17]])


@pytest.mark.parametrize("workers", [0, 3])
def test_the_quarantine_stops_the_stream(pictures: list[Path], workers: int) -> None:
    stream = prefetch(pictures, mean, 2, workers, bad_files=BadFiles(strict=True))
    assert [next(stream).indices, next(stream).indices] == [(0, 1), (2, 3)]
    with pytest.raises(DataError, match=r"04\.png cannot be used: not a JPEG"):
        next(stream)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_error_of_the_stream_comes_after_what_was_before_it(pictures: list[Path], workers: int) -> None:
    def paths() -> Iterator[Path]:
        yield from pictures[:4]
        raise DataError("the folder is gone")

    seen: list[tuple[int, ...]] = []
    with pytest.raises(DataError, match="the folder is gone"):
        seen.extend(batch.indices for batch in prefetch(paths(), mean, 3, workers))
    assert seen == [(0, 1, 2), (3,)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_reading_ahead_is_bounded(pictures: list[Path], workers: int) -> None:
    asked = 0

    def chunks() -> Iterator[list[tuple[int, Path]]]:
        nonlocal asked
        for number in itertools.count():
            asked += 1
            yield [(number, pictures[0])]

    stream = load(chunks(), Loading(mean, workers=workers))
    for taken in range(1, 8):
        next(stream)
        time.sleep(0.01)
        assert asked <= taken + workers
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_threads_work_while_the_caller_computes(pictures: list[Path]) -> None:
    started = threading.Event()
    calls = itertools.count()

    def noticed(images: Sequence[Image.Image]) -> list[float]:
        if next(calls) == 1:
            started.set()
        return mean(images)

    stream = prefetch(pictures, noticed, 2, workers=1)
    next(stream)
    assert started.wait(5)  # the second batch is begun although nobody has asked for it


def test_closing_the_stream_ends_its_threads(pictures: list[Path]) -> None:
    before = threading.active_count()
    stream = prefetch(itertools.cycle(pictures[:3]), mean, 2, workers=3)
    next(stream)
    assert threading.active_count() > before
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_a_batch_size_below_one_is_refused(pictures: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"batch_size is 0; expected 1 or more"):
        next(prefetch(pictures, mean, 0))
