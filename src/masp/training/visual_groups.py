"""Visual tokens as they are kept: images that were read together, in memory or packed for a shelf, and what names them.

What reads the images, and decides what is kept, is in `features`.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from masp.adapters import library_versions
from masp.backbones.base import Backbone
from masp.core.atomic_io import digest
from masp.core.types import VisualTokens
from masp.data.images import Rounding
from masp.training.disk_cache import CacheGroup, key_of

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
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


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


@functools.cache
def _versions() -> dict[str, str]:
    """They are read from files, which would be done again for every group."""
    return library_versions()


@dataclass(frozen=True)
class VisualGroup:
    """Images that were read together, by their numbers.

    Attributes:
        good: the readable ones.
        bad: the others, each with the reason.
        tokens: visual tokens of the good ones; empty where they are not kept, or left on a shelf.
        size: bytes of the visual tokens.
    """

    good: tuple[int, ...]
    bad: tuple[tuple[int, str], ...]
    tokens: tuple[VisualTokens, ...]
    size: int

    @property
    def numbers(self) -> list[int]:
        """All of them, in order."""
        return sorted([*self.good, *(number for number, _ in self.bad)])

    def packed(self) -> CacheGroup:
        """As it lies on a shelf; images are counted from 0 there, as other runs number them differently."""
        numbers = self.numbers
        tensors: dict[str, Tensor] = {}
        notes = {"bad": json.dumps({numbers.index(number): reason for number, reason in self.bad})}
        for number, one in zip(self.good, self.tokens, strict=True):
            place = numbers.index(number)
            parts = {"tokens": one.tokens, "mask": one.mask, "grid": one.grid, "deep": one.deep}
            tensors |= {f"{name}.{place}": part for name, part in parts.items() if part is not None}
            notes[f"shapes.{place}"] = json.dumps(one.shapes)
        return CacheGroup(tensors, notes)

    @staticmethod
    def unpacked(group: CacheGroup, numbers: Sequence[int]) -> "VisualGroup":
        """What `packed` made of the images with these numbers."""
        reasons = {int(place): reason for place, reason in json.loads(group.notes["bad"]).items()}
        bad = tuple((number, reasons[place]) for place, number in enumerate(numbers) if place in reasons)
        good = {number: place for place, number in enumerate(numbers) if place not in reasons}
        tokens = tuple(_unpacked(group, place) for place in good.values())
        return VisualGroup(tuple(good), bad, tokens, sum(map(bytes_of, tokens)))


def _unpacked(group: CacheGroup, place: int) -> VisualTokens:
    shapes = json.loads(group.notes[f"shapes.{place}"])
    return VisualTokens(
        tokens=group.tensors[f"tokens.{place}"],
        mask=group.tensors[f"mask.{place}"],
        grid=group.tensors.get(f"grid.{place}"),
        shapes=None if shapes is None else tuple(tuple(shape) for shape in shapes),
        deep=group.tensors.get(f"deep.{place}"),
    )


def in_groups(numbers: Sequence[int]) -> list[list[int]]:
    """The numbers, as many together as go through the vision tower at once."""
    return [list(numbers[start : start + READ_TOGETHER]) for start in range(0, len(numbers), READ_TOGETHER)]


def rows_of(visual: VisualTokens) -> list[VisualTokens]:
    """The visual tokens of each image of a batch, without padding and places on the image, on the CPU."""
    rows = []
    for row in range(len(visual)):
        count = int(visual.mask[row].sum())
        rows.append(
            VisualTokens(
                tokens=visual.tokens[row : row + 1, :count].to("cpu", copy=True),
                mask=visual.mask[row : row + 1, :count].to("cpu", copy=True),
                grid=None if visual.grid is None else visual.grid[row : row + 1].to("cpu", copy=True),
                shapes=None if visual.shapes is None else visual.shapes[row : row + 1],
                deep=None if visual.deep is None else visual.deep[row : row + 1, :count].to("cpu", copy=True),
            )
        )
    return rows


def bytes_of(visual: VisualTokens) -> int:
    """Memory that visual tokens take."""
    kept = [visual.tokens] if visual.deep is None else [visual.tokens, visual.deep]
    return sum(part.numel() * part.element_size() for part in kept)


def content_hash(path: Path) -> str:
    """Hash of a file's content; of its name alone where it cannot be read."""
    try:
        return digest(path)
    except OSError:
        return f"unreadable: {path.name}"
