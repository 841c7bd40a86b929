"""Dividing records by a hash of their files, and the order of examples by a hash of (seed, epoch): alike everywhere."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from masp.core.atomic_io import digest, write_file
from masp.core.errors import DataError, UsageError
from masp.data.records import Dataset, Record, read_json


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of `n` examples in one epoch: every number from 0 to n - 1 once.

    Sorting by a hash is the same permutation on every machine and with every version of every library.
    """
    return _shuffled(n, f"{seed}:{epoch}:examples")


def _shuffled(n: int, name: str) -> list[int]:
    start = hashlib.blake2b(name.encode(), digest_size=16)

    def key(index: int) -> bytes:
        state = start.copy()
        state.update(index.to_bytes(8, "little"))
        return state.digest()

    return sorted(range(n), key=key)


class Batches:
    """The batches of every epoch.

    Args:
        n: number of examples.
        batch_size: examples per batch; the last one of an epoch may be smaller.
        seed: another seed is another order.
        lengths: a length for each example. When given, examples of similar length share a batch, which saves padding:
            the shuffled order is cut into windows, each window is sorted by length, and the batches of the epoch are
            shuffled.
        window: batches per window.

    Raises:
        UsageError: a size below 1, or not one length per example.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None, window: int = 32
    ) -> None:
        if n < 1 or batch_size < 1 or window < 1:
            raise UsageError(
                f"there are {n} examples, {batch_size} per batch and {window} batches per window",
                "1 or more of each",
                "Check the data set and batch_size.",
            )
        if lengths is not None and len(lengths) != n:
            raise UsageError(f"there are {len(lengths)} lengths", f"one for each of {n} examples", "Pass them all.")
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.window = window

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.n // self.batch_size)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[int, ...]]:
        """The batches of an epoch from number `start_batch` on, as indices of examples.

        Every example is in exactly one batch of the epoch, whatever number an earlier run stopped at.

        Raises:
            UsageError: `start_batch` is not a batch of the epoch (or its end).
        """
        if not 0 <= start_batch <= self.per_epoch:
            raise UsageError(
                f"batch {start_batch} of an epoch",
                f"0 to {self.per_epoch}",
                "Resume with the same data and batch size.",
            )
        order = epoch_order(self.n, self.seed, epoch)
        chosen = self._cut(order) if self.lengths is None else self._bucketed(order, self.lengths, epoch)
        yield from chosen[start_batch:]

    def _cut(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(order[start : start + self.batch_size]) for start in range(0, len(order), self.batch_size)]

    def _bucketed(self, order: Sequence[int], lengths: Sequence[int], epoch: int) -> list[tuple[int, ...]]:
        span = self.window * self.batch_size
        batches: list[tuple[int, ...]] = []
        for start in range(0, len(order), span):
            batches += self._cut(sorted(order[start : start + span], key=lambda index: lengths[index]))
        return [batches[position] for position in _shuffled(len(batches), f"{self.seed}:{epoch}:batches")]


log = logging.getLogger(__name__)

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "val": 0.05, "test": 0.15}

_READERS = 8  # threads; hashing lets go of the interpreter, so that they read side by side
_PAPER_TEST = {"emotion6": 0.3}  # shares that the figures of the paper imply; 0.2 fits the others
_FORMAT = 1


RUN_SPLITS = "splits.json"
"""In the folder of a run: which image stood in which split."""

ASPECTS_SPLITS = "splits.aspects.json"
"""In the folder of a run of stage 2: the same of its aspects, where they were trained on images divided otherwise."""


@dataclass(frozen=True)
class SplitFile:
    """A split file.

    Attributes:
        file: the file itself.
        fingerprint: of the data set that it was written for.
        places: split name → images, as seen from the data set's folder.
    """

    file: Path
    fingerprint: str | None
    places: Mapping[str, tuple[str, ...]]


def paper_like(name: str) -> dict[str, float]:
    """The fractions that the paper's percentages imply for a data set: test 30 % for Emotion6 and 20 % for others.

    The paper names no validation split; ours is 5 % of all images.
    """
    test = _PAPER_TEST.get(name.lower(), 0.2)
    return {"train": 1 - 0.05 - test, "val": 0.05, "test": test}


def content_digests(records: Sequence[Record]) -> list[str]:
    """SHA-256 of every record's file, in order.

    Raises:
        DataError: a file cannot be read.
    """

    def one(record: Record) -> str:
        try:
            return digest(record.path)
        except OSError as error:
            raise DataError(f"{record.path} cannot be read ({error.strerror})", "", "Check the data set.") from None

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(one, records))


def by_content(
    records: Sequence[Record], fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> dict[str, tuple[Record, ...]]:
    """Divide records so that every label is divided alike and the same content never stands in two splits.

    Within a label, files are ordered by a hash of their content and the seed and cut at the fractions (largest
    remainders). A file that occurs under two labels follows the first of them.

    Args:
        records: labelled or not.
        fractions: split name → share; they make 1.
        seed: another seed is another split.

    Raises:
        DataError: fractions that do not make 1, or a file that cannot be read.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(f"the fractions are {dict(fractions)}", "numbers from 0 that make 1", "Correct data.splits.")
    keyed: dict[str, list[tuple[str, Record]]] = {}
    for content, record in zip(content_digests(records), records, strict=True):
        key = hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
        keyed.setdefault(record.label or "", []).append((key, record))
    home: dict[str, str] = {}
    for label in sorted(keyed):
        _assign([key for key, _ in keyed[label]], fractions, home)
    split: dict[str, list[Record]] = {name: [] for name in fractions}
    for label in sorted(keyed):
        for key, record in sorted(keyed[label], key=lambda pair: (pair[0], pair[1].path.as_posix())):
            split[home[key]].append(record)
    return {name: tuple(sorted(chosen, key=lambda r: r.path.as_posix())) for name, chosen in split.items()}


def _assign(keys: Sequence[str], fractions: Mapping[str, float], home: dict[str, str]) -> None:
    """Give each key a split: those that have one keep it, the others fill the quotas in the order of the keys."""
    quotas = _quotas(len(keys), fractions)
    waiting: dict[str, int] = {}
    for key in sorted(keys):
        if key in home:
            quotas[home[key]] -= 1
        else:
            waiting[key] = waiting.get(key, 0) + 1
    names = list(fractions)
    for key, copies in waiting.items():
        name = next((name for name in names if quotas[name] > 0), names[0])
        home[key] = name
        quotas[name] -= copies


def _quotas(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    exact = {name: count * share for name, share in fractions.items()}
    quotas = {name: int(value + 1e-9) for name, value in exact.items()}
    order = sorted(fractions, key=lambda name: (round(quotas[name] - exact[name], 9), list(fractions).index(name)))
    for name in order[: count - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def split_content(dataset: Dataset) -> bytes:
    """A split file: which image stands in which split, for people to read and for `read_split`."""
    splits = {
        name: [[dataset.relative_path(record.path), record.label] for record in records]
        for name, records in dataset.splits.items()
    }
    content = {
        "format": _FORMAT,
        "dataset": dataset.name,
        "split_by": dataset.split_by,
        "fingerprint": dataset.fingerprint(),
        "splits": splits,
    }
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def write_split(file: Path, dataset: Dataset) -> None:
    """Write a split file, in the place of an older one.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        write_file(file, split_content(dataset))
    except OSError as error:
        raise DataError(f"the split {file} cannot be written ({error.strerror})", "", "Check the folder.") from None


def read_split(file: Path, dataset: Dataset) -> dict[str, tuple[Record, ...]]:
    """The records of a data set in the splits that `write_split` wrote.

    Raises:
        DataError: the file is not a split, or names an image that the data set does not have.
    """
    known = {dataset.relative_path(record.path): record for record in dataset.records}
    splits: dict[str, tuple[Record, ...]] = {}
    for name, paths in read_division(file).places.items():
        strange = next((path for path in paths if path not in known), None)
        if strange is not None:
            raise DataError(f"{file} names {strange}, which {dataset.root} does not have", "", "Use its own data set.")
        splits[name] = tuple(known[path] for path in paths)
    return splits


def read_division(file: Path) -> SplitFile:
    """What `write_split` wrote, without the data set.

    Raises:
        DataError: the file is not a split.
    """
    content = read_json(file, largest=None)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("splits"), dict):
        raise DataError(f"{file} is not a split", f"a file of format {_FORMAT}", "Write it again.")
    paths = {
        name: tuple(str(row[0]) for row in rows if isinstance(row, list) and row) if isinstance(rows, list) else ()
        for name, rows in content["splits"].items()
    }
    fingerprint = content.get("fingerprint")
    return SplitFile(file, fingerprint if isinstance(fingerprint, str) else None, paths)


def division_in(folder: Path, fingerprint: str) -> SplitFile | None:
    """The division that a data set of this fingerprint had in the run of a folder; None where it is not there."""
    for name in (RUN_SPLITS, ASPECTS_SPLITS):
        try:
            result = read_division(folder / name)
        except DataError:
            continue
        if result.fingerprint == fingerprint:
            return result
    return None


def divided_by_file(dataset: Dataset, file: Path) -> Dataset:
    """The data set in the division that a file holds; images that the file does not name are left out.

    Raises:
        DataError: as for `read_split`.
    """
    splits = read_split(file, dataset)
    left_out = len(dataset.records) - sum(map(len, splits.values()))
    if left_out:
        log.warning("%s names all images of %s but %d, which are left out", file, dataset.root, left_out)
    return replace(dataset, splits=splits, split_by="file")


def write_division(out: Path, dataset: Dataset) -> None:
    """Write a division: as a split file (`.json`), as one table (`.csv`), or as a new folder with both kinds.

    The folder holds `split.json` and a table for every split. Tables have the columns path (seen from the data set's
    folder), label and split. What is already there is left alone, unless it would be written again byte for byte.

    Raises:
        DataError: the file or folder is there and holds something else, or cannot be written.
    """
    suffix = out.suffix.lower()
    files = {out: _table(dataset, tuple(dataset.splits))} if suffix == ".csv" else {out: split_content(dataset)}
    if suffix not in (".csv", ".json"):
        files = {out / f"{name}.csv": _table(dataset, (name,)) for name in dataset.splits}
        files[out / "split.json"] = split_content(dataset)
    strange = next((file for file, content in files.items() if file.exists() and file.read_bytes() != content), None)
    if strange is not None:
        raise DataError(f"{strange} is there already and holds something else", "a new name", "Choose another --out.")
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, content)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror})", "", "Check the folder.") from None


def _table(dataset: Dataset, names: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    for name in names:
        writer.writerows(
            (dataset.relative_path(record.path), record.label or "", name) for record in dataset.splits[name]
        )
    return text.getvalue().encode()
