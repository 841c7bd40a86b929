"""Near-duplicates: images whose perceptual hashes differ in a few bits."""

from collections.abc import Iterator, Sequence
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masp.data.validation.inspect_image import Hasher

BITS = 64
DISTANCE = 4
"""Bits of 64 in which two near-duplicates may differ.

Measured on 120 photographs of Emotion6: copies in grey, of a third of the size, or saved at JPEG quality 20 differ in 2
bits at most, copies without 2 % of every edge in 4 (median), and two different photographs in 14 at least.
"""

_FLATTEST = 8  # levels of 256; an image with less contrast has no shape that a hash could compare

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


def hasher() -> Hasher | None:
    """A function from an image to its 64-bit perceptual hash, or None where ImageHash is not installed.

    The hash (pHash) has a bit for each of the 64 lowest frequencies of the grey image: above their median or not.
    """
    try:
        from imagehash import phash  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def likeness(image: Image.Image) -> int | None:
        grey = image.convert("L")
        darkest, lightest = grey.resize((32, 32), Image.Resampling.BOX).getextrema()
        if lightest - darkest < _FLATTEST:  # pyright: ignore[reportOperatorIssue]  (one band, so two numbers)
            return None
        return int.from_bytes(np.packbits(phash(grey).hash.reshape(-1)).tobytes(), "big")

    return likeness


def near_pairs(values: NDArray[np.uint64], distance: int) -> Iterator[Pairs]:
    """Places of all pairs of hashes that differ in at most `distance` bits, each pair at least once.

    The 64 bits are cut into `distance` + 1 bands. Two hashes that differ in at most `distance` bits agree in one band
    at least, so only hashes that agree in a band are compared. Memory grows with the hashes, not with the pairs.
    """
    edges = [round(BITS * part / (distance + 1)) for part in range(distance + 2)]
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, sorted_values = band[order], values[order]
        places = np.arange(len(values))
        for step in count(1):
            places = places[places + step < len(values)]
            places = places[band[places] == band[places + step]]
            if not len(places):
                break
            differing = np.bitwise_count(sorted_values[places] ^ sorted_values[places + step])
            near = places[differing <= distance]
            if len(near):
                yield order[near], order[near + step]


def near_groups(hashes: Sequence[int], distance: int) -> list[list[int]]:
    """Places of hashes that hang together through pairs of `near_pairs`, in groups of at least two.

    Equal hashes are joined first, so that thousands of them make no millions of pairs. Groups and places are sorted.
    """
    values, inverse = np.unique(np.asarray(hashes, dtype=np.uint64), return_inverse=True)
    parents = list(range(len(values)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for first, second in near_pairs(values, distance):
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((root(one), root(other)))
            parents[high] = low
    members: dict[int, list[int]] = {}
    for place, value in enumerate(inverse.tolist()):
        members.setdefault(root(value), []).append(place)
    return [group for group in members.values() if len(group) > 1]
