"""What a check can find: kinds of issues, every image looked at once, exact copies and near-duplicates."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masp.core.errors import ImageError
from masp.data.images import decode_image, format_of, read_content

Severity = Literal["error", "warning"]

UNDIVIDED = "all"
"""The split of what is in no split."""

MOST_CASES = 1000
"""Cases of one kind that are listed; the others are counted."""


class IssueKind(NamedTuple):
    """How bad a kind of finding is, and what it says about its cases."""

    severity: Severity
    says: str


KINDS: Mapping[str, IssueKind] = MappingProxyType(
    {
        "layout": IssueKind("error", "the data set cannot be used"),
        "row": IssueKind("error", "rows or files that cannot be used"),
        "label": IssueKind("error", "images with a label outside the set"),
        "annotation": IssueKind("error", "damaged annotations"),
        "picture": IssueKind("error", "listed images that are not there"),
        "unreadable": IssueKind("error", "images that cannot be read"),
        "placeholder": IssueKind("error", "images that stand for many missing ones, under different labels"),
        "leak": IssueKind("error", "images that are in two splits"),
        "shared_leak": IssueKind("error", "images to train on in one data set and to test on in the other"),
        "conflict": IssueKind("warning", "images under two labels"),
        "duplicate": IssueKind("warning", "images that occur more than once"),
        "near_leak": IssueKind("warning", "groups of near-duplicates in two splits"),
        "near": IssueKind("warning", "groups of near-duplicates"),
        "shared": IssueKind(
            "warning",
            "images in both data sets, of which one is not divided: data.splits.kind=auto divides it as training would "
            "and tells which images one trains on and the other tests on",
        ),
        "shared_alike": IssueKind("warning", "images that both data sets train on, or both test on"),
        "near_shared": IssueKind("warning", "groups of near-duplicates between the data sets"),
        "unannotated": IssueKind("warning", "promised annotations that are not there"),
        "suffix": IssueKind("warning", "images whose name says another format than their content"),
        "spelling": IssueKind("warning", "images whose label is spelt otherwise than in the set"),
        "empty_class": IssueKind("warning", "labels without an image"),
    }
)


class IssueCase(NamedTuple):
    """One case of a kind.

    Attributes:
        says: what it is, for people.
        files: the files it is about, seen from the data set's folder.
        others: between two data sets, the files of the second.
    """

    says: str
    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


Cases = dict[str, list[IssueCase]]
"""Kind → its cases."""


@dataclass(frozen=True)
class Issue:
    """Cases of one kind.

    Attributes:
        kind: a name of `KINDS`.
        count: how many cases there are.
        cases: the first of them.
    """

    kind: str
    count: int
    cases: tuple[IssueCase, ...]

    @property
    def severity(self) -> Severity:
        """Error or warning."""
        return KINDS[self.kind].severity


def found(cases: Mapping[str, Sequence[IssueCase]]) -> tuple[Issue, ...]:
    """The kinds that have cases, in the order of `KINDS`, which is errors first."""
    assert set(cases) <= set(KINDS)
    return tuple(Issue(kind, len(cases[kind]), tuple(cases[kind][:MOST_CASES])) for kind in KINDS if cases.get(kind))


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
        indices = np.arange(len(values))
        for step in count(1):
            indices = indices[indices + step < len(values)]
            indices = indices[band[indices] == band[indices + step]]
            if not len(indices):
                break
            differing = np.bitwise_count(sorted_values[indices] ^ sorted_values[indices + step])
            near = indices[differing <= distance]
            if len(near):
                yield order[near], order[near + step]


def near_groups(hashes: Sequence[int], distance: int) -> list[list[int]]:
    """Places of hashes that hang together through pairs of `near_pairs`, in groups of at least two.

    Equal hashes are joined first, so that thousands of them make no millions of pairs. Groups and places are sorted.
    """
    values, inverse = np.unique(np.asarray(hashes, dtype=np.uint64), return_inverse=True)
    parents = list(range(len(values)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for first, second in near_pairs(values, distance):
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((root(one), root(other)))
            parents[high] = low
    members: dict[int, list[int]] = {}
    for index, value in enumerate(inverse.tolist()):
        members.setdefault(root(value), []).append(index)
    return [group for group in members.values() if len(group) > 1]


PLACEHOLDER_COPIES = 5
"""So many copies of one image under different labels are a stand-in, such as a site's "photo removed"."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that could be opened.

    Attributes:
        place: its path, seen from the data set's folder.
        split: its split, `UNDIVIDED` where there are none.
        label: its label.
        digest: see `look.Look`.
        likeness: see `look.Look`.
    """

    place: str
    split: str
    label: str | None
    digest: bytes
    likeness: int | None


def by_content(seen: Sequence[Seen]) -> dict[bytes, list[Seen]]:
    """Content → the files that have it, in the order of their first."""
    contents: dict[bytes, list[Seen]] = {}
    for one in seen:
        contents.setdefault(one.digest, []).append(one)
    return contents


def copies(contents: Mapping[bytes, Sequence[Seen]]) -> Cases:
    """Cases of exact copies; every content is a case of one kind, the worst."""
    cases: Cases = {}
    for files in contents.values():
        if len(files) > 1:
            cases.setdefault(_kind(files), []).append(IssueCase(_listing(files), _paths(files)))
    return cases


def _kind(files: Sequence[Seen]) -> str:
    labels = {file.label for file in files}
    if len(files) >= PLACEHOLDER_COPIES and len(labels) > 1:
        return "placeholder"
    if len({file.split for file in files}) > 1:
        return "leak"
    return "conflict" if len(labels) > 1 else "duplicate"


def near_copies(contents: Mapping[bytes, Sequence[Seen]], distance: int) -> Cases:
    """Groups of different contents that look alike."""
    cases: Cases = {}
    for firsts in _alike(contents.values(), distance):
        files = [file for first in firsts for file in contents[first.digest]]
        kind = "near_leak" if len({file.split for file in files}) > 1 else "near"
        cases.setdefault(kind, []).append(IssueCase(_listing(files), _paths(files)))
    return cases


def _alike(contents: Iterable[Sequence[Seen]], distance: int) -> list[list[Seen]]:
    """The first files of contents that look alike, in groups of at least two."""
    firsts: list[Seen] = []
    likenesses: list[int] = []
    for files in contents:
        if files[0].likeness is not None:
            firsts.append(files[0])
            likenesses.append(files[0].likeness)
    return [[firsts[index] for index in group] for group in near_groups(likenesses, distance)]


def shared(first: Mapping[bytes, Sequence[Seen]], second: Mapping[bytes, Sequence[Seen]]) -> Cases:
    """Contents that two data sets have in common."""
    cases: Cases = {}
    for digest, ours in first.items():
        theirs = second.get(digest)
        if theirs is not None:
            cases.setdefault(_shared_kind(ours, theirs), []).append(_pair(ours, "=", theirs))
    return cases


def near_shared(
    first: Mapping[bytes, Sequence[Seen]], second: Mapping[bytes, Sequence[Seen]], distance: int
) -> list[IssueCase]:
    """Groups of different contents that look alike and come from both data sets."""
    cases: list[IssueCase] = []
    for group in _alike([*first.values(), *second.values()], distance):
        digests = list(dict.fromkeys(file.digest for file in group))
        ours = [file for digest in digests for file in first.get(digest, ())]
        theirs = [file for digest in digests for file in second.get(digest, ())]
        if len(digests) > 1 and ours and theirs:
            cases.append(_pair(ours, "~", theirs))
    return cases


def _shared_kind(ours: Sequence[Seen], theirs: Sequence[Seen]) -> str:
    if _trains_and_tests(ours, theirs):
        return "shared_leak"
    return "shared" if any(file.split == UNDIVIDED for file in (*ours, *theirs)) else "shared_alike"


def _trains_and_tests(ours: Sequence[Seen], theirs: Sequence[Seen]) -> bool:
    """Whether one of the two data sets trains on the image and the other tests on it."""
    first, second = ({file.split for file in files} for files in (ours, theirs))
    trained, tested = {"train", "val"}, {"test", "shifted"}
    return bool((first & trained and second & tested) or (first & tested and second & trained))


def _pair(ours: Sequence[Seen], sign: str, theirs: Sequence[Seen]) -> IssueCase:
    return IssueCase(f"{_listing(ours)} {sign} {_listing(theirs)}", _paths(ours), _paths(theirs))


def _paths(files: Sequence[Seen]) -> tuple[str, ...]:
    return tuple(file.place for file in files)


def _listing(files: Sequence[Seen], most: int = 4) -> str:
    """A few of the files with their splits and labels."""
    words = [f"{file.place} ({', '.join(filter(None, (_named(file.split), file.label)))})" for file in files[:most]]
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(words) + more


def _named(split: str) -> str:
    return "" if split == "all" else split
