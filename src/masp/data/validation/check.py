"""The check itself: read everything, look at every image once, tell what was found."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from masp.core.aspects import ASPECTS
from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS, spelled
from masp.data.images import suffix_fits
from masp.data.readers.common import Reading, exists
from masp.data.readers.open_dataset import usable_labels
from masp.data.records import Record
from masp.data.validation.duplicates import Seen, by_content, copies, near_copies, near_shared, shared
from masp.data.validation.inspect_image import Hasher, look_at_all
from masp.data.validation.issues import Cases, Issue, IssueCase, found
from masp.data.validation.near_duplicates import DISTANCE
from masp.data.validation.open_datasets import UNDIVIDED, OpenedDataset

NO_LABEL = "(no label)"
"""Where images without a label are counted."""

_FIXED_LABELS = {"emotion6": LABEL_SETS["emotion6"]}  # layouts whose reader takes any folder for a label


@dataclass(frozen=True)
class Depth:
    """How much is looked at.

    Attributes:
        images: whether the images are opened; without it only lists and annotations are read.
        hasher: makes perceptual hashes (see `near.hasher`); None: near-duplicates are not looked for.
        distance: bits in which near-duplicates may differ.
        workers: threads that read images.
        labels: the set that labels have to belong to; None: what the layout says.
    """

    images: bool = True
    hasher: Hasher | None = None
    distance: int = DISTANCE
    workers: int = 2
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DatasetCheck:
    """What is known about one data set after a check.

    Attributes:
        path: as the user named it.
        layout: the layout that was recognised; None where none could be read.
        labels: every label, in the order of the release; `NO_LABEL` last where images have none.
        counts: split → label → images.
        aspects: aspect → images with an answer; empty where there are no annotations.
        skipped: reason → rows or files that the release itself says not to use.
        formats: format → images, by content; empty where images were not opened.
        findings: what is wrong.
        split_by: where the splits come from, see `Dataset.split_by`; None where there are none.
    """

    path: Path
    layout: str | None
    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    aspects: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Issue, ...] = ()
    split_by: str | None = None

    @property
    def images(self) -> int:
        """Images in all splits."""
        return sum(sum(labels.values()) for labels in self.counts.values())


@dataclass(frozen=True)
class CrossDatasetCheck:
    """What two data sets share."""

    first: Path
    second: Path
    findings: tuple[Issue, ...]


@dataclass(frozen=True)
class Report:
    """A whole check.

    Attributes:
        data_sets: one by one.
        between: every pair of them.
        depth: what was looked at.
    """

    data_sets: tuple[DatasetCheck, ...]
    between: tuple[CrossDatasetCheck, ...]
    depth: Depth

    @property
    def findings(self) -> tuple[Issue, ...]:
        """All of them."""
        return tuple(one for part in (*self.data_sets, *self.between) for one in part.findings)

    @property
    def errors(self) -> int:
        """Cases of kinds that are errors."""
        return sum(one.count for one in self.findings if one.severity == "error")

    @property
    def warnings(self) -> int:
        """Cases of kinds that are warnings."""
        return sum(one.count for one in self.findings if one.severity == "warning")


def check(opened: Sequence[OpenedDataset], depth: Depth, progress: Callable[[int], None] | None = None) -> Report:
    """Look at data sets that `open_together` read, one by one and against each other.

    Only hashes of the images are kept, so memory does not grow with their size.

    Args:
        opened: the data sets.
        depth: how much is looked at.
        progress: called with the number of images looked at since the last call.
    """
    checked: list[DatasetCheck] = []
    contents: list[dict[bytes, list[Seen]]] = []
    for one in opened:
        result, seen = _check_one(one, depth, progress)
        checked.append(result)
        contents.append(by_content(seen))
    between = [
        CrossDatasetCheck(opened[one].path, opened[other].path, _compare(contents[one], contents[other], depth))
        for one, other in combinations(range(len(opened)), 2)
    ]
    return Report(tuple(checked), tuple(between), depth)


def _compare(first: dict[bytes, list[Seen]], second: dict[bytes, list[Seen]], depth: Depth) -> tuple[Issue, ...]:
    cases = shared(first, second)
    if depth.hasher is not None:
        cases["near_shared"] = near_shared(first, second, depth.distance)
    return found(cases)


def _check_one(
    opened: OpenedDataset, depth: Depth, progress: Callable[[int], None] | None
) -> tuple[DatasetCheck, list[Seen]]:
    reading = opened.reading
    if reading is None:
        return DatasetCheck(
            opened.path, None, (), {}, findings=found({"layout": [IssueCase(opened.problem or "")]})
        ), []
    cases = _listed(opened, reading, depth)
    formats: Counter[str] = Counter()
    seen = _looked_at(opened, depth, cases, formats, progress) if depth.images else []
    contents = by_content(seen)
    cases |= copies(contents)
    if depth.hasher is not None:
        cases |= near_copies(contents, depth.distance)
    aspects = Counter(aspect for _, record in opened.records for aspect in record.annotations)
    unlabelled = [record for _, record in opened.records if record.label is None]
    labels = (*reading.labels, NO_LABEL) if unlabelled else reading.labels
    result = DatasetCheck(
        path=opened.path,
        layout=reading.layout,
        labels=labels,
        counts={name: _by_label(records, labels) for name, records in reading.splits.items()},
        aspects={aspect: aspects[aspect] for aspect in ASPECTS if aspects[aspect]},
        skipped=reading.skipped,
        formats=dict(formats.most_common()),
        findings=found(cases),
        split_by=opened.split_by,
    )
    return result, seen


def _by_label(records: Sequence[Record], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(_shown_label(record) for record in records)
    return {label: counts[label] for label in labels}


def _shown_label(record: Record) -> str:
    return NO_LABEL if record.label is None else record.label


def _listed(opened: OpenedDataset, reading: Reading, depth: Depth) -> Cases:
    """What is wrong with lists, labels and annotations."""
    cases: Cases = {}
    for rejected in reading.account.rejected:
        kind = "row" if rejected.fault == "file" else rejected.fault
        place = _place(opened, rejected.path)
        cases.setdefault(kind, []).append(IssueCase(f"{place}: {rejected.reason}", (place,)))
    cases["unannotated"] = [IssueCase(place, (place,)) for place in (_place(opened, path) for path in reading.missing)]
    try:
        usable_labels(reading, opened.path)
    except DataError as error:
        cases["layout"] = [IssueCase(str(error))]
    counts = Counter(record.label for _, record in opened.records)
    if set(counts) != {None}:
        cases["empty_class"] = [IssueCase(label) for label in reading.labels if not counts[label]]
    known = depth.labels or _FIXED_LABELS.get(reading.layout, ())
    for split, record in opened.records if known else ():
        meant = None if record.label is None else spelled(record.label, known)
        if record.label is not None and meant != record.label:
            kind, words = ("label", "") if meant is None else ("spelling", f", which is {meant}")
            place = _place(opened, record.path)
            where = place if split == UNDIVIDED else f"{place} ({split})"
            cases.setdefault(kind, []).append(IssueCase(f"{where}: the label is {record.label}{words}", (place,)))
    return cases


def _looked_at(
    opened: OpenedDataset,
    depth: Depth,
    cases: Cases,
    formats: Counter[str],
    progress: Callable[[int], None] | None,
) -> list[Seen]:
    """Every image that can be read; what is wrong with an image goes to `cases`."""
    records = opened.records
    seen: list[Seen] = []
    looks = look_at_all([record.path for _, record in records], depth.hasher, depth.workers)
    for (split, record), look in zip(records, looks, strict=True):
        place = _place(opened, record.path)
        formats[look.kind or "unknown"] += 1
        if look.problem is not None:
            kind = "unreadable" if exists(record.path) else "picture"
            cases.setdefault(kind, []).append(IssueCase(f"{place}: {look.problem}", (place,)))
        elif look.kind is not None and not suffix_fits(record.path.suffix, look.kind):
            cases.setdefault("suffix", []).append(IssueCase(f"{place} is {look.kind}", (place,)))
        if look.digest is not None:
            seen.append(Seen(place, split, record.label, look.digest, look.likeness))
        if progress is not None:
            progress(1)
    return seen


def _place(opened: OpenedDataset, path: Path) -> str:
    return path.relative_to(opened.root).as_posix() if path.is_relative_to(opened.root) else path.as_posix()
