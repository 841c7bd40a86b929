"""Reading images ahead of the computation: threads decode and preprocess, the order stays, memory is bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from masp.core.errors import ImageError, MaspError, UsageError
from masp.data.images import Rounding, open_image, shrink, to_rgb
from masp.data.records import BadFiles

Preprocess = Callable[[Sequence[Image.Image]], Any]
Item = tuple[int, Path]
ImageLike = str | Path | Image.Image


@dataclass(frozen=True)
class Failed:
    """An image that could not be used.

    Attributes:
        index: its number among the paths.
        path: the file.
        reason: why.
        passing: whether it may be readable another time (see `ImageError`).
    """

    index: int
    path: Path
    reason: str
    passing: bool = False


@dataclass(frozen=True)
class LoadedBatch:
    """Images that are ready for the backbone.

    Attributes:
        indices: numbers of the good images among the paths, in the order of the batch.
        paths: their files.
        pixels: what `preprocess` made of them; None without a good image.
        failures: the images of the batch that could not be used.
    """

    indices: tuple[int, ...]
    paths: tuple[Path, ...]
    pixels: Any
    failures: tuple[Failed, ...]


@dataclass(frozen=True)
class Loading:
    """How images are read.

    Attributes:
        preprocess: makes the backbone's tensors from RGB images; runs in the threads.
        longest_side: see `open_image`.
        workers: threads; 0 reads in the caller's own. The result does not depend on it. One batch more than there are
            threads is read or waits to be fetched at most.
        rounding: see `open_image`.
    """

    preprocess: Preprocess
    longest_side: int | None = None
    workers: int = 2
    rounding: Rounding = "nearest"


def prefetch(
    paths: Iterable[str | Path],
    preprocess: Preprocess,
    batch_size: int = 16,
    workers: int = 2,
    longest_side: int | None = None,
    bad_files: BadFiles | None = None,
    rounding: Rounding = "nearest",
) -> Iterator[LoadedBatch]:
    """Batches of the images that a stream of paths names, in its order; the stream is read only a little ahead.

    An image that cannot be used is missing from its batch and stands in `failures`. An error of the stream itself is
    raised after everything before it has been handed out.

    Args:
        paths: files; may be endless.
        preprocess: see `Loading`.
        batch_size: images per batch.
        workers: threads.
        longest_side: largest side of an image.
        bad_files: the account to keep; it stops the stream when too much is bad.
        rounding: see `Loading`.

    Raises:
        DataError: the account of bad files stopped the stream.
        UsageError: a batch size below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}", "1 or more", "Correct batch_size.")
    loading = Loading(preprocess, longest_side, workers, rounding)
    return load(_chunks(paths, batch_size), loading, bad_files)


def prefetch_batches(
    paths: Sequence[Path], batches: Iterable[Sequence[int]], loading: Loading, bad_files: BadFiles | None = None
) -> Iterator[LoadedBatch]:
    """The images of given batches of indices (see `splits.Batches`), in the given order.

    Raises:
        DataError: the account of bad files stopped the stream.
    """
    return load((tuple((index, paths[index]) for index in batch) for batch in batches), loading, bad_files)


def load(
    chunks: Iterable[Sequence[Item]], loading: Loading, bad_files: BadFiles | None = None
) -> Iterator[LoadedBatch]:
    """A batch for every chunk of numbered files, in order.

    Raises:
        DataError: the account of bad files stopped the stream.
    """
    jobs = (partial(_batch, tuple(chunk), loading) for chunk in chunks)
    for batch in _ahead(jobs, loading) if loading.workers else (job() for job in jobs):
        if bad_files is not None:
            _account(batch, bad_files)
        yield batch


def _chunks(paths: Iterable[str | Path], size: int) -> Iterator[tuple[Item, ...]]:
    items: list[Item] = []
    try:
        for index, path in enumerate(paths):
            items.append((index, Path(path)))
            if len(items) == size:
                yield tuple(items)
                items = []
    except Exception:
        if items:
            yield tuple(items)
        raise
    if items:
        yield tuple(items)


def _ahead(jobs: Iterator[Callable[[], LoadedBatch]], loading: Loading) -> Iterator[LoadedBatch]:
    waiting: deque[Future[LoadedBatch]] = deque()
    error: Exception | None = None
    more = True
    with ThreadPoolExecutor(loading.workers, thread_name_prefix="masp-loader") as pool:
        try:
            while more or waiting:
                while more and len(waiting) <= loading.workers:
                    try:
                        waiting.append(pool.submit(next(jobs)))
                    except StopIteration:
                        more = False
                    except Exception as raised:  # of the stream: what came before it is handed out first
                        more, error = False, raised
                if waiting:
                    yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if error is not None:
        raise error


def _batch(items: tuple[Item, ...], loading: Loading) -> LoadedBatch:
    paths = [path for _, path in items]
    pixels, failed = prepare_images(paths, loading.preprocess, loading.longest_side, loading.rounding)
    good = [item for place, item in enumerate(items) if place not in failed]
    failures = tuple(Failed(*items[place], error.reason, error.passing) for place, error in failed.items())
    return LoadedBatch(tuple(index for index, _ in good), tuple(path for _, path in good), pixels, failures)


def prepared(images: Sequence[Image.Image], preprocess: Preprocess) -> tuple[Any, dict[int, str]]:
    """What preprocessing makes of images; those it refuses (such as 1 × 900 pixels) are left out alone.

    Returns:
        What it made of the others, None where there are none, and why for the place of each that was left out.

    Raises:
        ValueError: it takes every image alone and not all of them together.
    """
    try:
        return preprocess(images), {}
    except (ValueError, MaspError):
        unfit: dict[int, str] = {}
        for index, image in enumerate(images):
            try:
                preprocess([image])
            except (ValueError, MaspError) as error:
                unfit[index] = " ".join(str(error).split())
        if not unfit:
            raise
    fit = [image for index, image in enumerate(images) if index not in unfit]
    return preprocess(fit) if fit else None, unfit


def prepare_images(
    images: Sequence[ImageLike], preprocess: Preprocess, longest_side: int | None, rounding: Rounding
) -> tuple[Any, dict[int, ImageError]]:
    """What preprocessing makes of images in files or in memory, shrunk first.

    Returns:
        What it made of those that can be used, None where there are none, and what is wrong with each of the others, by
        its place.

    Raises:
        ValueError: preprocessing takes every image alone and not all of them together.
    """
    opened, failed = dict[int, Image.Image](), dict[int, ImageError]()
    for index, image in enumerate(images):
        try:
            opened[index] = open_any_image(image, longest_side, rounding)
        except ImageError as error:
            failed[index] = ImageError(*error.args)  # the one that was raised would keep all images of this call alive
    indices = list(opened)
    pixels, unfit = prepared(list(opened.values()), preprocess) if opened else (None, {})
    failed |= {indices[row]: ImageError(image_name(images[indices[row]]), why) for row, why in unfit.items()}
    return pixels, failed


def open_any_image(image: ImageLike, longest_side: int | None, rounding: Rounding) -> Image.Image:
    """An image from its file, or one in memory, as `open_image` gives it.

    Raises:
        ImageError: it cannot be read.
    """
    if not isinstance(image, Image.Image):
        return open_image(image, longest_side, rounding)
    try:
        return shrink(to_rgb(image), longest_side, rounding)
    except OSError as error:  # of a file that Pillow opened and had not read yet
        raise ImageError(image_name(image), f"damaged ({error})") from None


def image_name(image: ImageLike) -> str:
    """What an image is called in results."""
    return "(image in memory)" if isinstance(image, Image.Image) else str(image)


def _account(batch: LoadedBatch, bad_files: BadFiles) -> None:
    """Count a batch in the order of the stream, good images before bad ones of the same batch."""
    bad_files.accept(len(batch.indices))
    for failed in batch.failures:
        bad_files.reject(failed.path, failed.reason)
