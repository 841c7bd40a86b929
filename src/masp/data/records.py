"""One image with what is known about it, and the data set it belongs to."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from masp.core.errors import DataError, did_you_mean
from masp.data.bad_files import Rejected

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

    def place(self, path: Path) -> str:
        """A file as seen from the data set's folder, so that it means the same on every machine."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def _facts(self, record: Record) -> list[object]:
        try:
            size = record.path.stat().st_size
        except OSError:
            size = -1
        votes = dict(record.distribution) if record.distribution is not None else None
        return [self.place(record.path), record.label, size, votes, dict(record.annotations)]

    def summary(self) -> str:
        """One line: name, layout, sizes of the splits, labels, and how many files were left out."""
        sizes = ", ".join(f"{name} {len(records):,}" for name, records in self.splits.items())
        left_out = f"; {len(self.rejected):,} left out" if self.rejected else ""
        return f"{self.name} ({self.layout}, split: {self.split_by}): {sizes}; {', '.join(self.labels)}{left_out}"
