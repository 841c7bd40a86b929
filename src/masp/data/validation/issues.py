"""What a check can find, how bad each of it is, and in which words it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]

MOST_CASES = 1000
"""Cases of one kind that are listed; the others are counted."""


class Kind(NamedTuple):
    """How bad a kind of finding is, and what it says about its cases."""

    severity: Severity
    says: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "layout": Kind("error", "the data set cannot be used"),
        "row": Kind("error", "rows or files that cannot be used"),
        "label": Kind("error", "images with a label outside the set"),
        "annotation": Kind("error", "damaged annotations"),
        "picture": Kind("error", "listed images that are not there"),
        "unreadable": Kind("error", "images that cannot be read"),
        "placeholder": Kind("error", "pictures that stand for many missing ones, under different labels"),
        "leak": Kind("error", "images that are in two splits"),
        "shared_leak": Kind("error", "images to train on in one data set and to test on in the other"),
        "conflict": Kind("warning", "images under two labels"),
        "duplicate": Kind("warning", "images that occur more than once"),
        "near_leak": Kind("warning", "groups of near-duplicates in two splits"),
        "near": Kind("warning", "groups of near-duplicates"),
        "shared": Kind(
            "warning",
            "images in both data sets, of which one is not divided: data.splits.kind=auto divides it as training would "
            "and tells which images one trains on and the other tests on",
        ),
        "shared_alike": Kind("warning", "images that both data sets train on, or both test on"),
        "near_shared": Kind("warning", "groups of near-duplicates between the data sets"),
        "unannotated": Kind("warning", "promised annotations that are not there"),
        "suffix": Kind("warning", "images whose name says another format than their content"),
        "spelling": Kind("warning", "images whose label is spelt otherwise than in the set"),
        "empty_class": Kind("warning", "labels without an image"),
    }
)


class Case(NamedTuple):
    """One case of a kind.

    Attributes:
        says: what it is, for people.
        files: the files it is about, seen from the data set's folder.
        others: between two data sets, the files of the second.
    """

    says: str
    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


Cases = dict[str, list[Case]]
"""Kind → its cases."""


@dataclass(frozen=True)
class Finding:
    """Cases of one kind.

    Attributes:
        kind: a name of `KINDS`.
        count: how many cases there are.
        cases: the first of them.
    """

    kind: str
    count: int
    cases: tuple[Case, ...]

    @property
    def severity(self) -> Severity:
        """Error or warning."""
        return KINDS[self.kind].severity


def found(cases: Mapping[str, Sequence[Case]]) -> tuple[Finding, ...]:
    """The kinds that have cases, in the order of `KINDS`, which is errors first."""
    assert set(cases) <= set(KINDS)
    return tuple(Finding(kind, len(cases[kind]), tuple(cases[kind][:MOST_CASES])) for kind in KINDS if cases.get(kind))
