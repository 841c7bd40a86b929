"""The check itself: read everything, look at every image once, tell what was found."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from masp import __version__
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import write_file
from masp.core.config import DataConfig
from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS, spelled
from masp.data.images import suffix_fits
from masp.data.readers.common import Reading, exists
from masp.data.readers.open_dataset import divided, existing_path, read_dataset, usable_labels
from masp.data.records import BadFiles, Record, path_below
from masp.data.validation.duplicates import (
    DISTANCE,
    KINDS,
    UNDIVIDED,
    Cases,
    Hasher,
    Issue,
    IssueCase,
    Seen,
    by_content,
    copies,
    found,
    look_at_all,
    near_copies,
    near_shared,
    shared,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedDataset:
    """A data set whose lists and annotations are read.

    Attributes:
        path: as the user named it.
        reading: its records; None where they cannot be read, `problem` says why.
        problem: what is wrong with the whole of it.
        split_by: where its splits come from, see `Dataset.split_by`; None where it has none.
    """

    path: Path
    reading: Reading | None
    problem: str | None = None
    split_by: str | None = None

    @property
    def root(self) -> Path:
        """The folder that paths are told from."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def records(self) -> list[tuple[str, Record]]:
        """(Split, record) for every image."""
        if self.reading is None:
            return []
        return [(split, record) for split, records in self.reading.splits.items() for record in records]


def open_together(settings: Sequence[DataConfig]) -> list[OpenedDataset]:
    """The lists and annotations of data sets, however many of them are damaged.

    Where the settings name a division they are divided as for training, otherwise left as they were published. A file
    with a division divides those of them whose images it names, one at least; the others stay as they are.

    Raises:
        DataError: a path does not exist, or is a file that is no table; a division that is none, or another one's.
    """
    result: list[OpenedDataset] = []
    strangers: list[DataError] = []
    for one in settings:
        opened = _read(one)
        try:
            result.append(_as_training(opened, one))
        except DataError as error:
            if one.splits.file is None or len(settings) == 1:
                raise
            result.append(opened)
            strangers.append(error)
            log.info("%s is not divided by %s, which is another data set's", one.path, one.splits.file)
    if strangers and not any(one.split_by == "file" for one in result):
        reasons = "; ".join(error.got for error in strangers)
        todo = "Write it again with masp data split."
        raise DataError(f"no data set fits the division ({reasons})", "one whose images it names", todo)
    return result


def _read(settings: DataConfig) -> OpenedDataset:
    path = existing_path(settings)
    try:
        reading = read_dataset(settings, BadFiles(tolerant=True))
    except DataError as error:
        return OpenedDataset(path, None, str(error))
    return OpenedDataset(path, reading, split_by=None if UNDIVIDED in reading.splits else "published")


def _as_training(opened: OpenedDataset, settings: DataConfig) -> OpenedDataset:
    """The data set in the splits of training, where the settings say anything about splits.

    Files that cannot be read cannot be divided by their content: they stay behind in a split of their own, so that they
    are told as what they are.
    """
    reading = opened.reading
    if reading is None or "splits" not in settings.model_fields_set:
        return opened
    behind: tuple[Record, ...] = ()
    if settings.splits.file is None:
        there = {split: [one for one in some if _opens(one.path)] for split, some in reading.splits.items()}
        used = {one.path for some in there.values() for one in some}
        behind = tuple(one for some in reading.splits.values() for one in some if one.path not in used)
        splits, split_by = divided(replace(reading, splits=there), opened.root, settings)
        if split_by == "published":
            return opened
    else:
        splits, split_by = divided(reading, opened.root, settings)
    left: Mapping[str, tuple[Record, ...]] = {UNDIVIDED: behind} if behind else {}
    return replace(opened, reading=replace(reading, splits={**splits, **left}), split_by=split_by)


def _opens(path: Path) -> bool:
    try:
        path.open("rb").close()
    except (OSError, ValueError):
        return False
    return True


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
    counts = Counter(NO_LABEL if record.label is None else record.label for record in records)
    return {label: counts[label] for label in labels}


def _listed(opened: OpenedDataset, reading: Reading, depth: Depth) -> Cases:
    """What is wrong with lists, labels and annotations."""
    cases: Cases = {}
    for rejected in reading.account.rejected:
        kind = "row" if rejected.fault == "file" else rejected.fault
        place = path_below(opened.root, rejected.path)
        cases.setdefault(kind, []).append(IssueCase(f"{place}: {rejected.reason}", (place,)))
    cases["unannotated"] = [
        IssueCase(place, (place,)) for place in (path_below(opened.root, path) for path in reading.missing)
    ]
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
            place = path_below(opened.root, record.path)
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
        path = path_below(opened.root, record.path)
        formats[look.kind or "unknown"] += 1
        if look.problem is not None:
            kind = "unreadable" if exists(record.path) else "picture"
            cases.setdefault(kind, []).append(IssueCase(f"{path}: {look.problem}", (path,)))
        elif look.kind is not None and not suffix_fits(record.path.suffix, look.kind):
            cases.setdefault("suffix", []).append(IssueCase(f"{path} is {look.kind}", (path,)))
        if look.digest is not None:
            seen.append(Seen(path, split, record.label, look.digest, look.likeness))
        if progress is not None:
            progress(1)
    return seen


FORMAT = 1


def as_json(report: Report) -> dict[str, object]:
    """The report as plain values."""
    near = report.depth.hasher is not None and report.depth.images
    return {
        "format": FORMAT,
        "masp": __version__,
        "images_opened": report.depth.images,
        "near_duplicates": f"pHash, at most {report.depth.distance} of 64 bits" if near else None,
        "errors": report.errors,
        "warnings": report.warnings,
        "data_sets": [_data_set_json(checked) for checked in report.data_sets],
        "between": [
            {
                "first": str(pair.first),
                "second": str(pair.second),
                "findings": [_finding(one) for one in pair.findings],
            }
            for pair in report.between
        ],
    }


def _data_set_json(checked: DatasetCheck) -> dict[str, object]:
    return {
        "path": str(checked.path),
        "layout": checked.layout,
        "images": checked.images,
        "split_by": checked.split_by,
        "labels": list(checked.labels),
        "splits": {split: dict(counts) for split, counts in checked.counts.items()},
        "aspects": dict(checked.aspects),
        "skipped": dict(checked.skipped),
        "formats": dict(checked.formats),
        "findings": [_finding(one) for one in checked.findings],
    }


def _finding(one: Issue) -> dict[str, object]:
    return {
        "kind": one.kind,
        "severity": one.severity,
        "says": KINDS[one.kind].says,
        "count": one.count,
        "cases": [{name: value for name, value in case._asdict().items() if value} for case in one.cases],
    }


def write_report(report: Report, file: Path) -> None:
    """Write the report.

    Raises:
        DataError: the file cannot be written.
    """
    content = json.dumps(as_json(report), indent=1, ensure_ascii=True) + "\n"
    try:
        write_file(file, content.encode("ascii"))
    except OSError as error:
        raise DataError(f"the report {file} cannot be written ({error.strerror})", "", "Check the folder.") from None
