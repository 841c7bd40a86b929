"""Visual tokens of the training images: computed once and kept, where memory or disk allow, else computed per batch."""

import functools
import json
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from masp.adapters import library_versions
from masp.backbones.base import Backbone
from masp.core.atomic_io import digest
from masp.core.errors import DataError, MaspError
from masp.core.runtime import Bar
from masp.core.types import ImageLayout, VisualTokens
from masp.data.images import Rounding
from masp.data.prefetch import LoadedBatch, Loading, prefetch_batches
from masp.data.records import BadFiles
from masp.training.disk_cache import GIGA, CacheGroup, DiskCache, key_of
from masp.training.distributed import ALONE, Processes
from masp.training.signals import StopRequest
from masp.training.trainer import groups_of

READ_TOGETHER = 16  # images per pass of the vision tower while the store is filled

MemoryKey = tuple[Path, tuple[int, int] | None, str]
"""A file, its state (bytes, and when it was changed), and everything else that its visual tokens depend on."""


class VisualMemory:
    """Visual tokens that several runs share.

    They are found again for the same file, unchanged, as the same backbone sees it at the same size; so runs on other
    backbones may use the same memory, and share nothing.

    A run that finds some of its images here computes the others in other batches than it would have alone, so its
    result may differ from a run without this memory in the last bits.
    """

    def __init__(self) -> None:
        self.tokens: dict[MemoryKey, VisualTokens] = {}


def memory_keys(
    paths: Sequence[Path], backbone: Backbone, longest_side: int | None, rounding: Rounding
) -> list[MemoryKey]:
    """The keys of images in a memory that several runs share."""
    origin = key_of(origin_of(backbone, longest_side, rounding))
    return [(path, _state(path), origin) for path in paths]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def origin_of(backbone: Backbone, longest_side: int | None, rounding: Rounding) -> dict[str, object]:
    """What visual tokens depend on beside their images, to the last bit."""
    return {
        "backbone": backbone.fingerprint(),
        "processor": backbone.hashes()["processor"],
        "transform": backbone.image_transform,
        "longest_side": longest_side,
        "rounding": rounding,
        "dtype": backbone.weight_dtype,
        "device": backbone.device.type,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


_versions = functools.cache(library_versions)  # they are read from files, which would be done for every group


@dataclass(frozen=True)
class VisualGroup:
    """Images that were read together, by their numbers.

    Attributes:
        good: the readable ones.
        bad: the others, each with the reason.
        tokens: visual tokens of the good ones; empty where they are not kept, or left in a disk cache.
        size: bytes of the visual tokens.
    """

    good: tuple[int, ...]
    bad: tuple[tuple[int, str], ...]
    tokens: tuple[VisualTokens, ...]
    size: int

    @property
    def numbers(self) -> list[int]:
        """All of them, in order."""
        return sorted([*self.good, *(index for index, _ in self.bad)])

    def packed(self) -> CacheGroup:
        """As it lies in a disk cache; images are counted from 0 there, as other runs number them differently."""
        indices = self.numbers
        tensors: dict[str, Tensor] = {}
        notes = {"bad": json.dumps({indices.index(index): reason for index, reason in self.bad})}
        for index, one in zip(self.good, self.tokens, strict=True):
            row = indices.index(index)
            parts = {"tokens": one.tokens, "mask": one.mask, "grid": one.grid, "deep": one.deep, "pooled": one.pooled}
            tensors |= {f"{name}.{row}": part for name, part in parts.items() if part is not None}
            notes[f"shapes.{row}"] = json.dumps(one.shapes)
        return CacheGroup(tensors, notes)

    @staticmethod
    def unpacked(group: CacheGroup, indices: Sequence[int]) -> "VisualGroup":
        """What `packed` made of the images with these numbers."""
        reasons = {int(row): reason for row, reason in json.loads(group.notes["bad"]).items()}
        bad = tuple((index, reasons[row]) for row, index in enumerate(indices) if row in reasons)
        good = {index: row for row, index in enumerate(indices) if row not in reasons}
        tokens = tuple(_unpacked(group, row) for row in good.values())
        return VisualGroup(tuple(good), bad, tokens, sum(map(bytes_of, tokens)))


def _unpacked(group: CacheGroup, row: int) -> VisualTokens:
    shapes = json.loads(group.notes[f"shapes.{row}"])
    return VisualTokens(
        tokens=group.tensors[f"tokens.{row}"],
        mask=group.tensors[f"mask.{row}"],
        grid=group.tensors.get(f"grid.{row}"),
        shapes=None if shapes is None else tuple(tuple(shape) for shape in shapes),
        deep=group.tensors.get(f"deep.{row}"),
        pooled=group.tensors.get(f"pooled.{row}"),
    )


def rows_of(visual: VisualTokens) -> list[VisualTokens]:
    """The visual tokens of each image of a batch, without padding and places on the image, on the CPU."""
    return [replace(visual.select([row]), boxes=None).to("cpu") for row in range(len(visual))]


def bytes_of(visual: VisualTokens) -> int:
    """Memory that visual tokens take."""
    tensors = (visual.tokens, visual.deep, visual.pooled)
    return sum(part.numel() * part.element_size() for part in tensors if part is not None)


def content_hash(path: Path) -> str:
    """Hash of a file's content; of its name alone where it cannot be read."""
    try:
        return digest(path)
    except OSError:
        return f"unreadable: {path.name}"


log = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageReading:
    """How images are read.

    Attributes:
        longest_side: shrink larger ones to it; None: never.
        workers: threads that read ahead of the vision tower.
        budget: bytes of visual tokens that may be kept; 0: keep none.
        strict: stop at the first bad image.
        wanted: the settings ask for them to be kept. If they cannot be, that is a warning; and what they need is found
            out even where the budget is 0.
        rounding: of the shorter side of an image that is shrunk.
    """

    longest_side: int | None = None
    workers: int = 2
    budget: int = 4 * GIGA
    strict: bool = False
    wanted: bool = False
    rounding: Rounding = "nearest"


class FeatureCache:
    """Visual tokens by the number of their image.

    Places on the image (`boxes`) are not kept: training does not need them.

    Args:
        backbone: computes them.
        paths: the images; numbers count in this order.
        reading: how they are read, and how much is kept.
        memory: where they are kept; None for a place of its own.
        disk_cache: where they are kept beyond this run; what is in memory is then only a map of its files.
        processes: that read the images together; afterwards each of them has all visual tokens.

    Attributes:
        usable: which images are good; known once the store is filled.
        kept: whether visual tokens are kept.
        needed: bytes that all of them would take, as far as it was found out before keeping them was given up.
        allowed: bytes that they may take.
    """

    def __init__(
        self,
        backbone: Backbone,
        paths: Sequence[Path],
        reading: ImageReading,
        memory: VisualMemory | None = None,
        disk_cache: DiskCache | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.backbone, self.paths, self.reading, self.disk_cache = backbone, paths, reading, disk_cache
        self.processes = processes
        self.hashes: list[str] = []  # of the content of every file, where there is a disk cache
        self.keys: set[str] = set()  # names of its groups there
        self.usable: list[bool] = [False] * len(paths)
        self.kept = reading.budget > 0 or reading.wanted
        self.needed = 0
        self.allowed = reading.budget
        self._own: VisualGroup | None = None  # what this process has just read
        self._size = 0
        shared = None if memory is None else memory_keys(paths, backbone, reading.longest_side, reading.rounding)
        self._keys: list[MemoryKey] = shared or [(path, None, "") for path in paths]
        self._kept = VisualMemory().tokens if memory is None else memory.tokens

    def fill(self, stop: StopRequest, before: Collection[Path] | None = None) -> BadFiles:
        """Read every image once: find the bad ones, and keep the visual tokens if they fit.

        Args:
            stop: asked between images.
            before: images that an earlier start of the same run left out, which are left out again, and no others; with
                it, nothing more is read once it is clear that the visual tokens are not kept.

        Returns:
            The account of what was read, used and left out.

        Raises:
            DataError: too many images are bad, or one cannot be read that was used before.
            Interrupted: a signal arrived.
        """
        account = BadFiles(self.reading.strict, total=len(self.paths))
        new = [index for index, key in enumerate(self._keys) if key not in self._kept]
        self.usable = [key in self._kept for key in self._keys]
        account.accept(len(self.paths) - len(new))
        groups = self._from_disk(groups_of(new, READ_TOGETHER), account)
        reader = self._reader(self.processes.shard(groups))

        def read() -> VisualGroup | None:
            stop.check()
            loaded = next(reader, None)
            result = None if loaded is None else self._computed(loaded)
            passing = loaded is not None and any(failed.passing for failed in loaded.failures)  # not to be remembered
            self._own = None if self.disk_cache is None or passing else result
            return (
                result if self._own is None else replace(self._own, tokens=())
            )  # the others find them in the disk cache

        with Bar("reading images", len(self.paths)) as bar:
            for start in range(0, len(groups), self.processes.count):
                result = [group for group in self.processes.all_gather(read) if group is not None]
                self.processes.all_gather(lambda result=result: self._take(result, account))
                if self.kept and self.disk_cache is not None:
                    pairs = zip(groups[start : start + self.processes.count], result, strict=True)
                    left = [indices for indices, group in pairs if group.good and not group.tokens]
                    self.processes.all_gather(lambda left=left: self._fetch(left))
                if before is not None and not self.kept:
                    self.usable = [path not in before for path in self.paths]
                    return account
                bar.show(account.read)
        self.processes.all_gather(account.finish)
        if before is not None:
            self._hold_to(before, account)
        return account

    def left_out(self) -> set[Path]:
        """The images that are not usable."""
        return {path for path, usable in zip(self.paths, self.usable, strict=True) if not usable}

    def _hold_to(self, before: Collection[Path], account: BadFiles) -> None:
        """Leave out the images that were left out before, and no others.

        The examples of a checkpoint are numbers of the images that were used when the run began; with one image more or
        fewer, every number behind it would name another.

        Raises:
            DataError: an image that was used before cannot be read now.
        """
        lost = sorted(self.left_out() - set(before))
        if lost:
            reasons = {bad.path: f"{bad.path} ({bad.reason})" for bad in account.rejected}
            then = (
                f"only these were left out then: {_named(sorted(map(str, before)))}" if before else "none was left out"
            )
            raise DataError(
                f"{len(lost)} of the images that this run began with cannot be read now: "
                f"{_named([reasons.get(path, str(path)) for path in lost])}",
                f"the images of its checkpoint ({then})",
                "Make them readable and give the same command again: it goes on. To do without them, "
                "name another --out.",
            )
        back = [path for path, usable in zip(self.paths, self.usable, strict=True) if usable and path in before]
        self.usable = [usable and path not in before for path, usable in zip(self.paths, self.usable, strict=True)]
        if back:
            log.warning(
                "left out to the end of this run, which began without, though readable now: %s. "
                "Its last bits may differ",
                _named(list(map(str, back))),
            )

    def _reader(self, groups: Iterable[Sequence[int]]) -> Iterator[LoadedBatch]:
        """The images of these groups, read ahead."""
        how = self.reading
        loading = Loading(self.backbone.preprocess, how.longest_side, workers=how.workers, rounding=how.rounding)
        return prefetch_batches(self.paths, groups, loading)

    def _computed(self, loaded: LoadedBatch) -> VisualGroup:
        """What is known of a group of images once it is read."""
        bad = tuple((failed.index, failed.reason) for failed in loaded.failures)
        tokens: list[VisualTokens] = []
        if self.kept and loaded.indices:
            tokens = rows_of(self.backbone.visual_tokens(loaded.pixels.to(self.backbone.device)))
        return VisualGroup(loaded.indices, bad, tuple(tokens), sum(map(bytes_of, tokens)))

    def _take(self, groups: Sequence[VisualGroup], account: BadFiles) -> None:
        """Account for groups that were read, and keep their visual tokens, or give up keeping any."""
        for group in groups:
            self._account(group, account)
            if self.kept:
                self._size += group.size
                self._keep(group)
                if group.good:
                    self._compare(self._size, account.used, account.read)
        if self.kept and self.disk_cache is not None and self._own is not None:
            self.disk_cache.save(self._key(self._own.numbers), self._own.packed())

    def _account(self, group: VisualGroup, account: BadFiles) -> None:
        account.accept(len(group.good))
        for index, reason in group.bad:
            account.reject(self.paths[index], reason)
        for index in group.good:
            self.usable[index] = True

    def _keep(self, group: VisualGroup) -> None:
        """Hold visual tokens, where the group has them."""
        self._kept.update(zip((self._keys[index] for index in group.good), group.tokens, strict=False))

    def _from_disk(self, groups: Sequence[Sequence[int]], account: BadFiles) -> list[Sequence[int]]:
        """Take what earlier runs have computed; the groups that are left."""
        self._size = self.bytes()
        if self.disk_cache is None or not self.kept:
            return list(groups)
        disk_cache = self.disk_cache
        self.hashes = self.processes.on_main(lambda: [content_hash(path) for path in self.paths])
        names = [self._key(indices) for indices in groups]
        self.keys, parts = set(names), [disk_cache.load(name) for name in names]
        everywhere = [
            all(there) for there in zip(*self.processes.all_gather(lambda: [g is not None for g in parts]), strict=True)
        ]
        left: list[Sequence[int]] = []
        for indices, packed, there in zip(groups, parts, everywhere, strict=True):
            if packed is None or not there:
                left.append(indices)
                continue
            group = VisualGroup.unpacked(packed, indices)
            self._account(group, account)
            self._keep(group)
        self._size = self.bytes()
        if self.allowed < sys.maxsize:  # otherwise it fitted when the run began
            self.allowed = self.processes.on_main(lambda: disk_cache.room(self.keys))
        return left

    def _fetch(self, groups: Sequence[Sequence[int]]) -> None:
        """Hold the visual tokens of these groups as maps of the disk cache's files, no longer in memory.

        Raises:
            MaspError: this process does not see what another one has just left there.
        """
        assert self.disk_cache is not None
        for indices in groups:
            group = self.disk_cache.load(self._key(indices))
            if group is None:
                raise MaspError(
                    f"process {self.processes.rank} does not find in {self.disk_cache.folder} what was just left there",
                    "a store_dir that all processes see, with room for all of them and for other runs that write there",
                    "Name another store_dir, or raise store_disk_gb.",
                )
            self._keep(VisualGroup.unpacked(group, indices))

    def _key(self, indices: Sequence[int]) -> str:
        """Name of a group of visual tokens: all that decides them, to the last bit."""
        return key_of({"kind": "features, pooled", **self.depends(indices)})

    def depends(self, indices: Sequence[int]) -> dict[str, object]:
        """What the visual tokens of these images depend on when they are computed together."""
        hashes = [self.hashes[index] for index in indices]
        return {"images": hashes, **origin_of(self.backbone, self.reading.longest_side, self.reading.rounding)}

    def stream(
        self, items: Iterable[Item], images: Callable[[Item], Sequence[int]]
    ) -> Iterator[tuple[Item, VisualTokens | None]]:
        """Visual tokens of one batch after the other, on the backbone's device; None for a batch without images.

        Args:
            items: batches, as the caller names them.
            images: the numbers of a batch's images; one may occur several times.

        Raises:
            DataError: an image that could be read before cannot be read now.
        """
        if self.kept:
            for item in items:
                yield item, self._batch(indices) if (indices := images(item)) else None
            return
        waiting: list[tuple[Item, Sequence[int]]] = []  # read ahead: in the order of the batches

        def distinct() -> Iterator[list[int]]:
            for item in items:
                indices = images(item)
                waiting.append((item, indices))
                yield list(dict.fromkeys(indices))

        for read in self._reader(distinct()):
            for failed in read.failures:
                todo = "Leave the data set alone while it is trained on, or start again with another --out."
                raise DataError(f"{failed.path} could be read before and cannot now ({failed.reason})", "", todo)
            item, indices = waiting.pop(0)
            if not indices:
                yield item, None
                continue
            visual = self.backbone.visual_tokens(read.pixels.to(self.backbone.device))
            row = {index: row for row, index in enumerate(read.indices)}
            yield item, replace(visual, boxes=None).select([row[index] for index in indices])

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """Visual tokens of one batch, with at least one image, on the backbone's device."""
        return next(tokens for _, tokens in self.stream([images], lambda batch: batch) if tokens is not None)

    def counts(self) -> list[int]:
        """Number of visual tokens of each usable image; they are kept."""
        return [self._kept[key].tokens.shape[1] for key, good in zip(self._keys, self.usable, strict=True) if good]

    def layout(self, index: int) -> ImageLayout:
        """How the kept visual tokens of an image are laid out."""
        return self._kept[self._keys[index]].layouts[0]

    def bytes(self) -> int:
        """Memory that the kept visual tokens of these images take."""
        return sum(bytes_of(self._kept[key]) for key in self._keys if key in self._kept)

    def _batch(self, images: Sequence[int]) -> VisualTokens:
        """Kept visual tokens of these images, on the backbone's device."""
        return VisualTokens.stack([self._kept[self._keys[index]] for index in images]).to(self.backbone.device)

    def _compare(self, size: int, used: int, read: int) -> None:
        """Give up keeping as soon as it is clear that everything together will not fit."""
        expected = size / used * (used + len(self.paths) - read)
        if expected <= self.allowed:
            return
        self.kept, self.needed = False, int(expected)
        setting = "feature_memory_gb" if self.disk_cache is None else "store_disk_gb"
        log.log(
            logging.WARNING if self.reading.wanted else logging.INFO,
            "the visual tokens of %d images need about %.3g GB, and %s allows %.3g: they are not kept, but computed "
            "again for every batch. To keep them, set %s=%g or more",
            len(self.paths),
            expected / GIGA,
            setting if self.disk_cache is None else f"{setting}, or the room that others leave there,",
            max(0, self.allowed) / GIGA,
            setting,
            math.ceil(expected / GIGA * 100) / 100,
        )
        for key in self._keys:
            self._kept.pop(key, None)


def _named(names: Sequence[str], most: int = 5) -> str:
    """The first few names of a list, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
