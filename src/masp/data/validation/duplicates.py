"""Images that occur more than once: by their content, and by their likeness."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from masp.data.validation.issues import Cases, IssueCase
from masp.data.validation.near_duplicates import near_groups
from masp.data.validation.open_datasets import UNDIVIDED

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
            cases.setdefault(_kind(files), []).append(IssueCase(_told(files), _places(files)))
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
        cases.setdefault(kind, []).append(IssueCase(_told(files), _places(files)))
    return cases


def _alike(contents: Iterable[Sequence[Seen]], distance: int) -> list[list[Seen]]:
    """The first files of contents that look alike, in groups of at least two."""
    firsts: list[Seen] = []
    likenesses: list[int] = []
    for files in contents:
        if files[0].likeness is not None:
            firsts.append(files[0])
            likenesses.append(files[0].likeness)
    return [[firsts[place] for place in group] for group in near_groups(likenesses, distance)]


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
    return IssueCase(f"{_told(ours)} {sign} {_told(theirs)}", _places(ours), _places(theirs))


def _places(files: Sequence[Seen]) -> tuple[str, ...]:
    return tuple(file.place for file in files)


def _told(files: Sequence[Seen], most: int = 4) -> str:
    """A few of the files with their splits and labels."""
    words = [f"{file.place} ({', '.join(filter(None, (_named(file.split), file.label)))})" for file in files[:most]]
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(words) + more


def _named(split: str) -> str:
    return "" if split == "all" else split
