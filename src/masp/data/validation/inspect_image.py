"""Looking at every image once: what its bytes are, what it resembles, and whether it can be read at all."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image

from masp.core.errors import ImageError
from masp.data.images import decode_image, format_of, read_content

Hasher = Callable[[Image.Image], int | None]

_AT_ONCE = 256  # files in the hands of the threads; images are forgotten as soon as they are looked at


@dataclass(frozen=True, slots=True)
class ImageInspection:
    """What is kept of an image.

    Attributes:
        digest: the first 16 bytes of the content's SHA-256; None where the file cannot be opened.
        likeness: the perceptual hash, 64 bits; None without a hasher, and where an image has nothing to compare.
        kind: the format that the content tells.
        problem: why the image cannot be read; None where it can.
    """

    digest: bytes | None
    likeness: int | None
    kind: str | None
    problem: str | None


def look_at(path: Path, hasher: Hasher | None = None) -> ImageInspection:
    """One image, decoded as it is for training."""
    try:
        content = read_content(path)
    except ImageError as error:
        return ImageInspection(None, None, None, error.reason)
    digest, kind = sha256(content).digest()[:16], format_of(content)
    try:
        image = decode_image(content, path)
        return ImageInspection(digest, hasher(image) if hasher is not None else None, kind, None)
    except ImageError as error:
        return ImageInspection(digest, None, kind, error.reason)


def look_at_all(paths: Sequence[Path], hasher: Hasher | None, workers: int) -> Iterator[ImageInspection]:
    """Every image, in order; the result does not depend on the number of threads.

    Args:
        paths: the files.
        hasher: see `near.hasher`.
        workers: threads; 0 looks in the caller's own.
    """
    if workers == 0:
        yield from (look_at(path, hasher) for path in paths)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="masp-look") as pool:
        for start in range(0, len(paths), _AT_ONCE):
            yield from pool.map(lambda path: look_at(path, hasher), paths[start : start + _AT_ONCE])
