"""One image with what is known about it, its data set with its labels, and the account of unreadable files."""

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from masp.core.atomic_io import write_file
from masp.core.errors import DataError, did_you_mean
from masp.core.labels import TAXONOMIES, Taxonomy, counterpart, mapping, taxonomy_of

log = logging.getLogger(__name__)

Fault = Literal["file", "row", "label", "annotation", "picture"]
"""What is wrong: a file, a row of a list, its label, the annotation it names, or the image it names."""


@dataclass(frozen=True)
class Rejected:
    """A file that was left out, why, and what kind of fault it is."""

    path: Path
    reason: str
    fault: Fault = "file"


class BadFiles:
    """The account of a pass over files: read = used + quarantined, exactly.

    Stops the pass when more than `share` of all its files are bad, or `patience` in a row, or, if `strict`, at the
    first one. A single bad file stops nothing otherwise, however few the others are. The share is of `total`, so that
    two bad files at the beginning of a long pass do not end it; where the total is not known, it is checked at the end.

    Args:
        strict: whether the first bad file stops the pass.
        share: how much of the files may be bad.
        patience: how many may be bad in a row.
        total: how many files the pass will look at; None if not known yet.
        tolerant: never stop, whatever is bad, and leave the log alone: the caller reads the account afterwards.

    Attributes:
        used: files that were good.
        rejected: files that were not, with their reasons.
    """

    def __init__(
        self,
        strict: bool = False,
        share: float = 0.01,
        patience: int = 100,
        total: int | None = None,
        tolerant: bool = False,
    ) -> None:
        self.strict = strict
        self.share = share
        self.patience = patience
        self.total = total
        self.tolerant = tolerant
        self.used = 0
        self.rejected: list[Rejected] = []
        self._in_a_row = 0

    @property
    def read(self) -> int:
        """Files that were looked at."""
        return self.used + len(self.rejected)

    def accept(self, count: int = 1) -> None:
        """Count good files."""
        if count:
            self._in_a_row = 0
        self.used += count

    def reject(self, path: Path, reason: str, fault: Fault = "file") -> None:
        """Count a bad file.

        Raises:
            DataError: too many were bad, or `strict` is set.
        """
        self.rejected.append(Rejected(path, reason, fault))
        if self.tolerant:
            return
        self._in_a_row += 1
        log.warning("left out %s: %s", path, reason)
        if self.strict:
            raise DataError(f"{path} cannot be used: {reason}", "", "Repair or remove it, or turn strict off.")
        if self._in_a_row >= self.patience:
            raise DataError(
                f"{self._in_a_row} files in a row cannot be used, the last is {path}: {reason}",
                "files that can be read",
                "Check that the data set is complete.",
            )
        if self.total is not None:
            self._check_share(max(self.total, self.read))

    def _check_share(self, total: int) -> None:
        bad = len(self.rejected)
        if bad > max(1, self.share * total):
            last = self.rejected[-1]
            raise DataError(
                f"{bad} of {total} files cannot be used, the last is {last.path}: {last.reason}",
                f"at most {self.share:.0%}",
                "Repair or remove them.",
            )

    def finish(self) -> None:
        """Close the account.

        Raises:
            DataError: files were read and none was good, or too few.
        """
        if self.tolerant:
            return
        if self.rejected and not self.used:
            last = self.rejected[-1]
            raise DataError(
                f"none of {self.read} files can be used, the last is {last.path}: {last.reason}",
                "files that can be read",
                "Check that the data set is complete.",
            )
        self._check_share(self.read)

    def summary(self) -> str:
        """One line for the log and the result: what was read, used and left out, and the commonest reasons."""
        reasons = Counter(rejected.reason for rejected in self.rejected).most_common(3)
        why = "".join(f"; {count} × {reason}" for reason, count in reasons)
        return f"{self.read} read = {self.used} used + {len(self.rejected)} quarantined{why}"


def _account_lines(account: BadFiles) -> bytes:
    """The lines of quarantine.jsonl: one per bad file, and the sum at the end."""
    rows: list[dict[str, object]] = [{"path": str(bad.path), "reason": bad.reason} for bad in account.rejected]
    rows.append({"read": account.read, "used": account.used, "quarantined": len(account.rejected)})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_account(path: Path, account: BadFiles) -> None:
    """Write quarantine.jsonl.

    Raises:
        OSError: the disk refuses to be written.
    """
    write_file(path, _account_lines(account))


def read_account(path: Path) -> dict[str, str] | None:
    """Bad images and their reasons out of quarantine.jsonl; None where there is none, or an unfinished one."""
    try:
        *bad, total = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["path"]: row["reason"] for row in bad} if total["quarantined"] == len(bad) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


_LARGEST_ANNOTATION = 16_777_216


def read_json(file: Path, largest: int | None = _LARGEST_ANNOTATION) -> object:
    """The content of a JSON file of at most `largest` bytes.

    Raises:
        DataError: it cannot be read, is too large or is not JSON.
    """
    try:
        size = file.stat().st_size
        if largest is not None and size > largest:
            raise DataError(f"{file} has {size:,} bytes", f"at most {largest:,}", "Shorten it.")
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "", "Check the path and the rights.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error})", "", "Copy it again from its source.") from None


def path_below(root: Path, path: Path) -> str:
    """A file as seen from a folder, where it lies below it."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


@dataclass(frozen=True, slots=True)
class LazyExtra:
    """Keys of an annotation file that masp itself does not use, read from the file when asked for.

    Behaves like a mapping; the names are known without reading, the values are never kept.
    """

    file: Path
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> object:
        if name not in self.names:
            raise KeyError(name)
        content = read_json(self.file)
        if not isinstance(content, dict) or name not in content:
            raise DataError(f"{self.file} has lost its key '{name}'", "", "Open the data set again.")
        return content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def keys(self) -> tuple[str, ...]:
        """The names."""
        return self.names

    def get(self, name: str, default: object = None) -> object:
        """The value of a name, or `default`."""
        return self[name] if name in self.names else default


@dataclass(frozen=True, slots=True)
class Record:
    """One image.

    Attributes:
        path: the file.
        label: class name; None where there is none.
        annotations: aspect → answer text; an aspect that is not annotated is absent.
        distribution: class name → share of the votes (they sum to 1), where the data set has votes.
        extra: anything else the data set says, such as "valence" or, for the emoji images, "emoji".
    """

    path: Path
    label: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    distribution: Mapping[str, float] | None = None
    extra: Mapping[str, object] | LazyExtra = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.path, self.label))


@dataclass(frozen=True)
class Dataset:
    """Images in named splits.

    Attributes:
        name: the name of its folder.
        root: its folder.
        labels: every class, in the order of the release where there is one, otherwise sorted.
        splits: split name ("train", "val", "test" or "all") → records.
        layout: how the folder was arranged: "folder", "split folders", or a name of `data.layout`.
        rejected: what could not be read of the annotations.
        split_by: where the splits come from: "published", "content", "paper-like", "file" or "run".
    """

    name: str
    root: Path
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Record, ...]]
    layout: str
    rejected: tuple[Rejected, ...] = ()
    split_by: str = "published"

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of all splits."""
        return tuple(record for records in self.splits.values() for record in records)

    def split(self, name: str) -> tuple[Record, ...]:
        """The records of one split.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if name not in self.splits:
            raise DataError(f"{self.root} has no split '{name}'", "", did_you_mean(name, self.splits))
        if not self.splits[name]:
            raise DataError(f"the split '{name}' of {self.root} is empty", "at least one image", "Add images.")
        return self.splits[name]

    def fingerprint(self) -> str:
        """SHA-256 of which files stand in which split with which label, votes, annotations and size.

        The same on every machine and wherever the data set lies. Contents count with their size only: reading
        100,000 images to name a data set would take minutes.
        """
        total = hashlib.sha256(json.dumps([self.layout, self.labels]).encode())
        for name in sorted(self.splits):
            lines = sorted(json.dumps([name, *self._facts(record)], sort_keys=True) for record in self.splits[name])
            total.update("\n".join(lines).encode())
        return total.hexdigest()

    def relative_path(self, path: Path) -> str:
        """A file as seen from the data set's folder, so that it means the same on every machine."""
        return path_below(self.root, path)

    def place(self, path: Path) -> str:
        """The former name of `relative_path`; it goes with version 0.3."""
        warnings.warn("Dataset.place is Dataset.relative_path now", DeprecationWarning, stacklevel=2)
        return self.relative_path(path)

    def _facts(self, record: Record) -> list[object]:
        try:
            size = record.path.stat().st_size
        except OSError:
            size = -1
        votes = dict(record.distribution) if record.distribution is not None else None
        return [self.relative_path(record.path), record.label, size, votes, dict(record.annotations)]

    def summary(self) -> str:
        """One line: name, layout, sizes of the splits, labels, and how many files were left out."""
        sizes = ", ".join(f"{name} {len(records):,}" for name, records in self.splits.items())
        left_out = f"; {len(self.rejected):,} left out" if self.rejected else ""
        return f"{self.name} ({self.layout}, split: {self.split_by}): {sizes}; {', '.join(self.labels)}{left_out}"


@dataclass(frozen=True)
class ClassBalance:
    """How evenly the labels occur.

    Attributes:
        counts: label → images, in the order of the labels.
        imbalance: largest count divided by the smallest one that is not 0.
        weights: label → weight of an example, such that every label weighs the same in sum and the mean over the
            examples is 1; 0 for a label without images.
    """

    counts: Mapping[str, int]
    imbalance: float
    weights: Mapping[str, float]

    def text(self) -> str:
        """A small table, one line per label."""
        width = max(len(name) for name in ("total", *self.counts))
        total = sum(self.counts.values())
        lines = [
            f"{label:<{width}}  {count:>7,}  {count / total:>6.1%}  weight {self.weights[label]:.2f}"
            for label, count in self.counts.items()
        ]
        return "\n".join([*lines, f"{'total':<{width}}  {total:>7,}  largest : smallest = {self.imbalance:.2f}"])


def class_balance(records: Sequence[Record], labels: Sequence[str] | None = None) -> ClassBalance:
    """Counts, imbalance and balanced weights of labelled records.

    Args:
        records: those without a label are not counted.
        labels: order of the result and labels that may not occur; without it, those that occur, sorted.

    Raises:
        DataError: no record has a label, or one has a label that is not in `labels`.
    """
    images = Counter(record.label for record in records if record.label is not None)
    names = tuple(labels) if labels is not None else tuple(sorted(images))
    strange = sorted(set(images) - set(names))
    if strange:
        raise DataError(f"unknown label '{strange[0]}'", "", did_you_mean(strange[0], names))
    if not images:
        raise DataError("no image has a label", "labelled images", "Check the layout of the data set.")
    counts = {name: images[name] for name in names}
    total, present = images.total(), len(images)
    weights = {name: total / (present * count) if count else 0.0 for name, count in counts.items()}
    return ClassBalance(counts, max(images.values()) / min(images.values()), weights)


def relabelled(dataset: Dataset, taxonomy: Taxonomy) -> Dataset:
    """The data set with labels of a taxonomy; images whose label has no counterpart there are left out and counted.

    Votes move with their labels; those without a counterpart are dropped, and the rest are shares of what is left.

    Raises:
        DataError: the labels belong to no taxonomy, or fewer than two of the target's labels are left.
    """
    table = mapping(dataset.labels, taxonomy)
    labels = tuple(label for label in TAXONOMIES[taxonomy] if label in table.values())
    if len(labels) < 2:
        raise DataError(
            f"the labels {', '.join(dataset.labels)} have {len(labels)} counterparts in {taxonomy}",
            "at least two",
            "Choose another data.taxonomy, or null.",
        )
    lost = Counter(record.label for record in dataset.records if record.label not in table)
    if lost:
        words = ", ".join(f"{count:,} × {label}" for label, count in lost.most_common())
        log.info("%s as %s: left out %s, which have no counterpart", dataset.name, taxonomy, words)
    source = taxonomy_of(dataset.labels)

    def vote(label: str) -> str | None:  # people may vote for labels that no image of the data set has
        return counterpart(label, source, taxonomy)

    splits = {
        name: tuple(_moved(record, table, vote) for record in records if record.label in table)
        for name, records in dataset.splits.items()
    }
    return replace(dataset, labels=labels, splits=splits)


def _moved(record: Record, table: Mapping[str, str], vote: Callable[[str], str | None]) -> Record:
    assert record.label is not None
    return replace(record, label=table[record.label], distribution=_votes(record.distribution, vote))


def _votes(votes: Mapping[str, float] | None, vote: Callable[[str], str | None]) -> dict[str, float] | None:
    moved: dict[str, float] = {}
    for label, share in (votes or {}).items():
        home = vote(label)
        if home is not None:
            moved[home] = moved.get(home, 0.0) + share
    total = sum(moved.values())
    return {label: share / total for label, share in moved.items()} if total > 0 else None
