"""Pictures that a table lists: any table of path and label, and the tables of votes of Flickr and Instagram."""

import logging
from collections import Counter
from pathlib import Path

from masp.data.folders import SPLITS
from masp.data.places import Places
from masp.data.quarantine import Quarantine
from masp.data.reading import LabelError, Reading, by_split, label_of
from masp.data.records import Record
from masp.data.tables import Table, columns_of, is_table, read_table
from masp.data.walk import listing
from masp.errors import DataError
from masp.labels import LABEL_SETS
from masp.settings import ColumnsConfig

log = logging.getLogger(__name__)

PATHS = (
    *("path", "image path", "img path", "file path", "file", "file name", "image file", "image", "img"),
    *("image name", "img name", "picture", "photo", "photo id", "image id", "flickr id", "id", "name"),
)
LABELS = ("label", "emotion", "class", "category", "sentiment", "polarity", "emotion label", "label name", "target")
SPLIT = ("split", "set", "subset", "partition", "fold")
POSITIVE = ("positive", "pos", "num of positive", "n positive", "positive votes", "positive count")
NEGATIVE = ("negative", "neg", "num of negative", "n negative", "negative votes", "negative count")
NEUTRAL = ("neutral", "neu", "num of neutral", "n neutral", "neutral votes", "neutral count")

_UNDECIDED = "rows without a majority for positive or negative"
_GONE = "rows without a picture"


def table_in(path: Path) -> Path | None:
    """The table that a data set is read from: the file itself, or the only table directly inside the folder."""
    if not path.is_dir():
        return path
    tables = [file for file in listing(path)[1] if is_table(file)]
    return tables[0] if len(tables) == 1 else None


def has_labels(path: Path, names: ColumnsConfig) -> bool:
    """Whether there is one table, with a column of paths and one of labels."""
    return _has(path, (names.path, PATHS), (names.label, LABELS))


def has_votes(path: Path, names: ColumnsConfig) -> bool:
    """Whether there is one table, with columns of pictures and of votes for positive and negative."""
    return _has(path, (names.path, PATHS), (names.positive, POSITIVE), (names.negative, NEGATIVE))


def _has(path: Path, *wanted: tuple[str | None, tuple[str, ...]]) -> bool:
    file = table_in(path)
    if file is None or not is_table(file):
        return False
    table = Table(file, columns_of(file), ())
    try:
        return all(table.find(given, usual) is not None for given, usual in wanted)
    except DataError:
        return False


def read_labels(path: Path, names: ColumnsConfig, account: Quarantine) -> Reading:
    """Records of a table of path and label, and perhaps split. Paths are seen from the table's folder.

    Raises:
        DataError: no table, or one without these columns, or too many rows that cannot be used.
    """
    table, places = _opened(path)
    picture_at = _needed(table, names.path, PATHS, "pictures", "path")
    label_at = _needed(table, names.label, LABELS, "labels", "label")
    split_at = table.find(names.split, SPLIT)
    found: list[tuple[str, Record]] = []
    for number, cells in enumerate(table.rows, start=1):
        try:
            split = _split(_cell(cells, split_at)) if split_at is not None else "all"
            label = label_of(_cell(cells, label_at))
            picture = places.find(_cell(cells, picture_at))
        except DataError as error:
            fault = "label" if isinstance(error, LabelError) else "row"
            account.reject(table.file, f"row {number}: {error}", fault)
            continue
        if not label:
            account.reject(table.file, f"row {number}: the label is blank", "label")
        elif picture is None:
            account.reject(table.file, f"row {number}: there is no picture {_cell(cells, picture_at)}", "picture")
        else:
            account.accept()
            found.append((split, Record(picture, label)))
    account.finish()
    labels = tuple(sorted({record.label for _, record in found if record.label is not None}))
    return Reading("table", labels, by_split(found), account)


def read_votes(path: Path, names: ColumnsConfig, account: Quarantine) -> Reading:
    """Records of a table of votes for positive, negative and perhaps neutral, by photo.

    The label is what most people chose; neutral and ties are left out, and so are photos that are gone, which are
    many in a release of links. The distribution has the shares of all columns of votes.

    Raises:
        DataError: no table, or one without these columns, or too many rows that cannot be used.
    """
    table, places = _opened(path)
    picture_at = _needed(table, names.path, PATHS, "pictures", "path")
    columns = {
        "positive": _needed(table, names.positive, POSITIVE, "votes for positive", "positive"),
        "negative": _needed(table, names.negative, NEGATIVE, "votes for negative", "negative"),
    }
    neutral = table.find(names.neutral, NEUTRAL)
    if neutral is not None:
        columns["neutral"] = neutral
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    for number, cells in enumerate(table.rows, start=1):
        try:
            votes = {name: _count(_cell(cells, place)) for name, place in columns.items()}
            picture = places.find(_cell(cells, picture_at))
        except DataError as error:
            account.reject(table.file, f"row {number}: {error}", "annotation")
            continue
        account.accept()
        best = [name for name, count in votes.items() if count == max(votes.values())]
        if len(best) > 1 or best == ["neutral"]:
            skipped[_UNDECIDED] += 1
        elif picture is None:
            skipped[_GONE] += 1
        else:
            total = sum(votes.values())
            records.append(Record(picture, best[0], distribution={name: n / total for name, n in votes.items()}))
    account.finish()
    for reason, count in skipped.items():
        log.info("%s: %d %s", table.file, count, reason)
    return Reading("votes", LABEL_SETS["flickr"], {"all": records}, account, skipped=skipped)


def _opened(path: Path) -> tuple[Table, Places]:
    file = table_in(path)
    if file is None:
        raise DataError(f"{path} does not hold one table", "one CSV, TSV or Parquet file", "Name the table itself.")
    return read_table(file), Places(file.parent)


def _needed(table: Table, given: str | None, usual: tuple[str, ...], what: str, setting: str) -> int:
    place = table.find(given, usual)
    if place is None:
        known = ", ".join(repr(name) for name in table.columns)
        todo = f"Name it with data.columns.{setting}."
        raise DataError(f"{table.file} has the columns {known:.120}", f"one of {what}, such as '{usual[0]}'", todo)
    return place


def _cell(cells: tuple[str, ...], place: int) -> str:
    if place >= len(cells):
        raise DataError(f"there are {len(cells)} cells", f"at least {place + 1}", "Correct the table.")
    if "\n" in cells[place]:
        raise DataError(f"a cell is {cells[place]!r:.60}", "one line", "Close the quotation marks.")
    return cells[place]


def _split(name: str) -> str:
    split = SPLITS.get(name.lower())
    if split is None:
        raise DataError(f"the split is {name!r:.40}", "train, val or test", "Correct the table.")
    return split


def _count(cell: str) -> int:
    if not cell.isdecimal():
        raise DataError(f"a count of votes is {cell!r:.40}", "a whole number", "Correct the table.")
    return int(cell[:9])
