"""Visual tokens of the training images: computed once and kept, where memory allows, else computed per batch."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL.Image import Image

from masp.backbones.base import Backbone
from masp.data.images import open_image
from masp.data.quarantine import Quarantine
from masp.errors import DataError, ImageError
from masp.training.interrupts import StopRequest
from masp.training.progress import Bar
from masp.types import Pixels, VisualTokens

log = logging.getLogger(__name__)

READ_TOGETHER = 16  # images per pass of the vision tower while the store is filled
GIGA = 1024**3

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Loading:
    """How images are read.

    Attributes:
        longest_side: shrink larger ones to it; None: never.
        workers: threads that read ahead of the vision tower.
        budget: bytes of visual tokens that may be kept.
        strict: stop at the first bad image.
    """

    longest_side: int | None = None
    workers: int = 2
    budget: int = 4 * GIGA
    strict: bool = False


class VisualTokenStore:
    """Visual tokens by the number of their image.

    Places on the image (`boxes`) are not kept: training does not need them.

    Args:
        backbone: computes them.
        paths: the images; numbers count in this order.
        loading: how they are read, and how much is kept.
    """

    def __init__(self, backbone: Backbone, paths: Sequence[Path], loading: Loading) -> None:
        self.backbone, self.paths, self.loading = backbone, paths, loading
        self.usable: list[bool] = [False] * len(paths)
        self.kept = True
        self._kept: list[VisualTokens | None] = [None] * len(paths)

    def fill(self, stop: StopRequest) -> Quarantine:
        """Read every image once: find the bad ones, and keep the visual tokens if they fit.

        Returns:
            The account of what was read, used and left out.

        Raises:
            DataError: too many images are bad.
            Interrupted: a signal arrived.
        """
        account = Quarantine(self.loading.strict)
        starts = range(0, len(self.paths), READ_TOGETHER)
        groups = (range(start, min(start + READ_TOGETHER, len(self.paths))) for start in starts)
        size = 0
        with Bar("reading images", len(self.paths)) as bar:
            for group, read in ahead(groups, self._try, self.loading.workers):
                stop.check()
                for number in group:
                    self._count(number, read.problems.get(number), account)
                good = [number for number in group if self.usable[number]]
                if self.kept and read.pixels is not None:
                    size += self._keep(good, self.backbone.visual_tokens(read.pixels.to(self.backbone.device)))
                    self._compare(size, sum(self.usable), group.stop)
                bar.show(group.stop)
        account.finish()
        return account

    def stream(
        self, items: Iterable[Item], images: Callable[[Item], Sequence[int]]
    ) -> Iterator[tuple[Item, VisualTokens]]:
        """Visual tokens of one batch after the other, on the backbone's device; an image may occur several times.

        Args:
            items: batches, as the caller names them.
            images: the numbers of a batch's images.
        """
        if self.kept:
            for item in items:
                yield item, self._batch(images(item))
            return
        for (item, distinct), pixels in ahead(
            ((item, list(dict.fromkeys(images(item)))) for item in items), self._pixels, self.loading.workers
        ):
            visual = self.backbone.visual_tokens(pixels.to(self.backbone.device))
            place = {number: row for row, number in enumerate(distinct)}
            yield item, replace(visual, boxes=None).select([place[number] for number in images(item)])

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """Visual tokens of one batch, on the backbone's device."""
        return next(tokens for _, tokens in self.stream([images], lambda batch: batch))

    def _batch(self, images: Sequence[int]) -> VisualTokens:
        """Kept visual tokens of these images, on the backbone's device."""
        found = [self._kept[number] for number in images]
        parts = [part for part in found if part is not None]
        assert len(parts) == len(images), "only images that were read and found good can be asked for"
        return VisualTokens.stack(parts).to(self.backbone.device)

    def _pixels(self, wanted: tuple[Item, Sequence[int]]) -> Pixels:
        """Pixels of images that were good before.

        Raises:
            DataError: one no longer is.
        """
        try:
            return self.backbone.preprocess([self._open(number) for number in wanted[1]])
        except ImageError as error:
            todo = "Leave the data set alone while it is trained on, or start again with another --out."
            raise DataError(f"{error.path} could be read before and cannot now ({error.reason})", "", todo) from error

    def _open(self, number: int) -> Image:
        return open_image(self.paths[number], self.loading.longest_side)

    def _try(self, group: range) -> "_Read":
        """Pixels of those images of a group that can be read."""
        images, problems = [], {}
        for number in group:
            try:
                images.append(self._open(number))
            except ImageError as error:
                problems[number] = error.reason
        return _Read(self.backbone.preprocess(images) if images and self.kept else None, problems)

    def _count(self, number: int, problem: str | None, account: Quarantine) -> None:
        self.usable[number] = problem is None
        if problem is None:
            account.accept()
        else:
            account.reject(self.paths[number], problem)

    def _keep(self, numbers: Sequence[int], visual: VisualTokens) -> int:
        """Store what was computed for these images, and say how many bytes it takes."""
        size = 0
        for row, number in enumerate(numbers):
            count = int(visual.mask[row].sum())
            one = VisualTokens(
                tokens=visual.tokens[row : row + 1, :count].to("cpu", copy=True),
                mask=visual.mask[row : row + 1, :count].to("cpu", copy=True),
                grid=None if visual.grid is None else visual.grid[row : row + 1].to("cpu", copy=True),
            )
            self._kept[number] = one
            size += one.tokens.numel() * one.tokens.element_size()
        return size

    def _compare(self, size: int, used: int, read: int) -> None:
        """Give up keeping as soon as it is clear that everything together will not fit."""
        expected = size / max(used, 1) * (used + len(self.paths) - read)
        if max(size, expected) <= self.loading.budget:
            return
        log.info(
            "visual tokens of %d images would take %.1f GB, more than feature_memory_gb allows (%.1f): "
            "they are computed again for every batch",
            len(self.paths),
            expected / GIGA,
            self.loading.budget / GIGA,
        )
        self.kept = False
        self._kept = [None] * len(self.paths)


@dataclass(frozen=True)
class _Read:
    """What a thread read of a group: pixels of the good images, and what is wrong with the others."""

    pixels: Pixels | None
    problems: dict[int, str]


def ahead(items: Iterable[Item], make: Callable[[Item], Made], workers: int) -> Iterator[tuple[Item, Made]]:
    """Each item with what `make` makes of it, in order; threads work up to two items per worker ahead."""
    if workers == 0:
        for item in items:
            yield item, make(item)
        return
    waiting: deque[tuple[Item, Future[Made]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="masp-read") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(make, item)))
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def account_lines(account: Quarantine) -> bytes:
    """The lines of quarantine.jsonl: one per bad file, and the sum at the end."""
    rows: list[dict[str, object]] = [{"path": str(bad.path), "reason": bad.reason} for bad in account.rejected]
    rows.append({"read": account.read, "used": account.used, "quarantined": len(account.rejected)})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
