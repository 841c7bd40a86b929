"""What a check can find, how bad each of it is, and in which words it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]

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
