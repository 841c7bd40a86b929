"""Emotion6 as it is published: folders of images by search word, and a table of the votes."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from masp.core.errors import DataError
from masp.data.file_listing import is_image_file, listing
from masp.data.readers.common import Reading, label_of, number_in
from masp.data.records import BadFiles, Record

log = logging.getLogger(__name__)

VOTES = "ground_truth.txt"
PICTURES = "images"
_SLACK = 0.02  # the published shares are rounded


def is_published(root: Path) -> bool:
    """Whether a folder holds the table and the images of the published layout."""
    return (root / VOTES).is_file() and (root / PICTURES).is_dir()


def read_emotion6(root: Path, account: BadFiles, label_from: Literal["folder", "majority"] = "folder") -> Reading:
    """Records with the distribution of the votes (neutral included) and, as extras, valence and arousal (1 to 9).

    Args:
        root: the folder with `ground_truth.txt` and `images/`.
        account: counts what can be used and what cannot.
        label_from: the folder, which is the search word (as in the paper), or the class with most votes, neutral
            left out; of equal classes the folder's if it is among them, otherwise the first in the table.

    Raises:
        DataError: the table or the folders cannot be read, or too many rows cannot be used.
    """
    table = root / VOTES
    columns, rows = _table(table)
    folders = [folder for folder in listing(root / PICTURES)[0] if any(map(is_image_file, listing(folder)[1]))]
    labels = tuple(sorted(label_of(folder.name) for folder in folders))
    records: list[Record] = []
    voteless: list[Path] = []
    seen = 0
    for folder in folders:
        for image in filter(is_image_file, listing(folder)[1]):
            cells = rows.get(f"{folder.name}/{image.name}")
            seen += cells is not None
            if cells is None:
                voteless.append(image)
            try:
                record = _record(image, label_of(folder.name), columns, cells)
                records.append(_by_majority(record, labels) if label_from == "majority" else record)
            except DataError as error:
                account.reject(image, str(error), "annotation")
                continue
            account.accept()
    account.finish()
    skipped: dict[str, int] = {}
    if seen < len(rows):
        log.warning("%s has %d rows without an image", table, len(rows) - seen)
        skipped[f"rows of {VOTES} without an image"] = len(rows) - seen
    return Reading("emotion6", labels, {"all": records}, account, tuple(voteless), skipped)


def _table(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the columns after the first, and the cells of every row by the image it is about."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "", "Check the path and the rights.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text", "the published table", "Copy it again from its source.") from None
    header, *rest = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()] or [[]]
    columns = [cell.strip("[] ").lower() for cell in header[1:]]
    if not any(column.startswith("prob") for column in columns):
        raise DataError(f"{file} has the header {header!r:.80}", "[prob. …] columns", "Copy it again from its source.")
    return columns, {row[0].replace("\\", "/").lstrip("./"): row[1:] for row in rest}


def _record(image: Path, label: str, columns: list[str], cells: list[str] | None) -> Record:
    if cells is None:
        return Record(image, label)
    if len(cells) < len(columns):
        raise DataError(f"its row in {VOTES} has {len(cells) + 1} cells", f"{len(columns) + 1}", "Correct the table.")
    values = {column: _number(cell) for column, cell in zip(columns, cells, strict=False)}
    votes = {re.sub(r"^prob\.?\s*", "", name): value for name, value in values.items() if name.startswith("prob")}
    extra = {name: value for name, value in values.items() if not name.startswith("prob")}
    total = sum(votes.values())
    if min(votes.values()) < 0 or abs(total - 1) > _SLACK:
        raise DataError(f"its votes in {VOTES} make {total:g}", "shares that make 1", "Correct the table.")
    return Record(image, label, distribution={name: vote / total for name, vote in votes.items()}, extra=extra)


def _number(cell: str) -> float:
    value = number_in(cell)
    if value is None:
        raise DataError(f"its row in {VOTES} has the cell {cell!r:.40}", "a number", "Correct the table.")
    return value


def _by_majority(record: Record, labels: tuple[str, ...]) -> Record:
    votes: Mapping[str, float] = record.distribution or {}
    known = {label: votes[label] for label in labels if label in votes}
    if not known:
        raise DataError(f"{record.path.name} has no votes in {VOTES}", "a row of votes", "Use label_from: folder.")
    most = max(known.values())
    winners = [label for label, vote in known.items() if vote >= most - 1e-9]
    label = record.label if record.label in winners else winners[0]
    return Record(record.path, label, record.annotations, record.distribution, record.extra)
