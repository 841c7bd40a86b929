"""Images that a table lists: with a label, with votes (Flickr, Instagram), or with answers about single aspects."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from masp.core.aspects import ASPECTS, MEASURED, answer_text
from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS
from masp.core.settings import ColumnsConfig
from masp.data.file_listing import listing
from masp.data.readers.common import ImageLookup, LabelError, Reading, by_split, label_of, number_in
from masp.data.readers.folders import split_of
from masp.data.records import BadFiles, Record
from masp.data.tables import Table, columns_of, is_table, read_table

log = logging.getLogger(__name__)

PATHS = (
    *("path", "image path", "img path", "file path", "file", "file name", "image file", "image", "img"),
    *("image name", "img name", "picture", "photo", "photo id", "image id", "flickr id", "id", "name"),
)
LABELS = ("label", "emotion", "class", "category", "sentiment", "polarity", "emotion label", "label name", "target")
VALUES = ("valence mean", "mean valence", "valence", "value", "score")
THEMES = ("theme",)  # OASIS names images by it; elsewhere it is seldom an image's name
ASPECT = ("aspect", "attribute", "cue")
ANSWER = ("value", "answer", "annotation")
SPLIT = ("split", "set", "subset", "partition", "fold")
POSITIVE = ("positive", "pos", "num of positive", "n positive", "positive votes", "positive count")
NEGATIVE = ("negative", "neg", "num of negative", "n negative", "negative votes", "negative count")
NEUTRAL = ("neutral", "neu", "num of neutral", "n neutral", "neutral votes", "neutral count")

_UNDECIDED = "rows without a majority for positive or negative"
_BETWEEN = "rows whose number lies in the bounds of no label"
_GONE = "rows without an image"


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
    """Whether there is one table, with columns of images and of votes for positive and negative."""
    return _has(path, (names.path, PATHS), (names.positive, POSITIVE), (names.negative, NEGATIVE))


def has_aspects(path: Path, names: ColumnsConfig) -> bool:
    """Whether there is one table with a column of aspects and one of their values."""
    return _has(path, (names.path, PATHS), (names.aspect, ASPECT), (names.value, ANSWER))


def _has(path: Path, *wanted: tuple[str | None, tuple[str, ...]]) -> bool:
    file = table_in(path)
    if file is None or not is_table(file):
        return False
    table = Table(file, columns_of(file), ())
    try:
        return all(table.find(given, usual) is not None for given, usual in wanted)
    except DataError:
        return False


def read_labels(path: Path, names: ColumnsConfig, account: BadFiles) -> Reading:
    """Records of a table of path and label, and perhaps split. Paths are seen from the table's folder.

    Raises:
        DataError: no table, or one without these columns, or too many rows that cannot be used.
    """
    table, lookup = _opened(path)
    image_column = _needed(table, names.path, PATHS, "images", "path")
    label_at = _needed(table, names.label, LABELS, "labels", "label")

    def labelled(cells: tuple[str, ...], image: Path) -> Record:
        label = label_of(_cell(cells, label_at))
        if not label:
            raise LabelError("the label is blank", "", "Correct the table.")
        return Record(image, label)

    rows = _records(table, lookup, image_column, names, labelled, account)
    labels = tuple(sorted({record.label for _, record in rows if record.label is not None}))
    return Reading("table", labels, by_split(rows), account)


def read_values(
    path: Path, names: ColumnsConfig, thresholds: Mapping[str, tuple[float | None, float | None]], account: BadFiles
) -> Reading:
    """Records of a table of path and number, and perhaps split, with the label in whose bounds the number lies.

    Args:
        path: the table, or the folder it lies in.
        names: names of the columns.
        thresholds: label → the numbers it begins at and ends before, None where it has no end; in rising order.
        account: counts what can be used and what cannot. A number that lies in no bounds is no fault: its image is
            left out, and counted.

    Raises:
        DataError: no table, or one without these columns, or too many rows that cannot be used.
    """
    table, lookup = _opened(path)
    image_column = _needed(table, names.path, (*PATHS, *THEMES), "images", "path")
    value_at = _needed(table, names.value, VALUES, "numbers", "value")

    def labelled(cells: tuple[str, ...], image: Path) -> Record:
        value = _number(_cell(cells, value_at))
        return Record(image, _label_at(value, thresholds), extra={table.columns[value_at]: value})

    rows = _records(table, lookup, image_column, names, labelled, account)
    records = [(split, record) for split, record in rows if record.label is not None]
    skipped = {}
    if len(records) < len(rows):
        skipped[_BETWEEN] = len(rows) - len(records)
        log.info("%s: %d %s", table.file, skipped[_BETWEEN], _BETWEEN)
    return Reading("table", tuple(thresholds), by_split(records), account, skipped=skipped)


def read_aspects(path: Path, names: ColumnsConfig, account: BadFiles) -> Reading:
    """Records without labels, from a table with a row for each image and aspect: path, aspect, value, perhaps split.

    Rows about one image become one record; of several objects they make a list.

    Raises:
        DataError: no table, or one without these columns, or too many rows that cannot be used.
    """
    table, lookup = _opened(path)
    image_column = _needed(table, names.path, PATHS, "images", "path")
    aspect_at = _needed(table, names.aspect, ASPECT, "aspects", "aspect")
    value_at = _needed(table, names.value, ANSWER, "values", "value")

    def annotated(cells: tuple[str, ...], image: Path) -> Record:
        aspect = _cell(cells, aspect_at).casefold().replace(" ", "_")
        if aspect not in ASPECTS:
            raise DataError(f"the aspect is {aspect!r:.60}", f"one of {', '.join(ASPECTS)}", "Correct the table.")
        value = _cell(cells, value_at)
        answer = answer_text(aspect, _number(value) if aspect in MEASURED else value)
        if not answer:
            raise DataError(f"the value of {aspect} is blank", "an answer", "Correct the table.")
        return Record(image, annotations={aspect: answer})

    merged: dict[tuple[str, Path], dict[str, str]] = {}
    for split, record in _records(table, lookup, image_column, names, annotated, account):
        known = merged.setdefault((split, record.path), {})
        for aspect, answer in record.annotations.items():
            known[aspect] = f"{known[aspect]}, {answer}" if aspect == "object" and aspect in known else answer
    rows = [(split, Record(image, annotations=answers)) for (split, image), answers in merged.items()]
    return Reading("aspects", (), by_split(rows), account)


def _records(
    table: Table,
    lookup: ImageLookup,
    image_column: int,
    names: ColumnsConfig,
    labelled: Callable[[tuple[str, ...], Path], Record],
    account: BadFiles,
) -> list[tuple[str, Record]]:
    """(Split, record) for every row that can be used; the account knows the others."""
    split_at = table.find(names.split, SPLIT)
    result: list[tuple[str, Record]] = []
    for number, cells in enumerate(table.rows, start=1):
        try:
            split = split_of(_cell(cells, split_at)) if split_at is not None else "all"
            image = lookup.find(_cell(cells, image_column))
            record = labelled(cells, image or table.file)
        except DataError as error:
            fault = "label" if isinstance(error, LabelError) else "row"
            account.reject(table.file, f"row {number}: {error}", fault)
            continue
        if image is None:
            account.reject(table.file, f"row {number}: there is no image {_cell(cells, image_column)}", "picture")
            continue
        account.accept()
        result.append((split, record))
    account.finish()
    return result


def _label_at(value: float, thresholds: Mapping[str, tuple[float | None, float | None]]) -> str | None:
    for label, (low, high) in thresholds.items():
        if (low is None or low <= value) and (high is None or value < high):
            return label
    return None


def _number(cell: str) -> float:
    value = number_in(cell)
    if value is None:
        raise LabelError(f"the value is {cell!r:.40}", "a number such as 4.5", "Correct the table.")
    return value


def read_votes(path: Path, names: ColumnsConfig, account: BadFiles) -> Reading:
    """Records of a table of votes for positive, negative and perhaps neutral, by photo.

    The label is what most people chose; neutral and ties are left out, and so are photos that are gone, which are
    many in a release of links. The distribution has the shares of all columns of votes.

    Raises:
        DataError: no table, or one without these columns, or too many rows that cannot be used.
    """
    table, lookup = _opened(path)
    image_column = _needed(table, names.path, PATHS, "images", "path")
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
            votes = {name: _count(_cell(cells, column)) for name, column in columns.items()}
            image = lookup.find(_cell(cells, image_column))
        except DataError as error:
            account.reject(table.file, f"row {number}: {error}", "annotation")
            continue
        account.accept()
        best = [name for name, count in votes.items() if count == max(votes.values())]
        if len(best) > 1 or best == ["neutral"]:
            skipped[_UNDECIDED] += 1
        elif image is None:
            skipped[_GONE] += 1
        else:
            total = sum(votes.values())
            records.append(Record(image, best[0], distribution={name: n / total for name, n in votes.items()}))
    account.finish()
    for reason, count in skipped.items():
        log.info("%s: %d %s", table.file, count, reason)
    return Reading("votes", LABEL_SETS["flickr"], {"all": records}, account, skipped=skipped)


def _opened(path: Path) -> tuple[Table, ImageLookup]:
    file = table_in(path)
    if file is None:
        raise DataError(f"{path} does not hold one table", "one CSV, TSV or Parquet file", "Name the table itself.")
    return read_table(file), ImageLookup(file.parent)


def _needed(table: Table, given: str | None, usual: tuple[str, ...], what: str, setting: str) -> int:
    column = table.find(given, usual)
    if column is None:
        known = ", ".join(repr(name) for name in table.columns)
        todo = f"Name it with data.columns.{setting}."
        raise DataError(f"{table.file} has the columns {known:.120}", f"one of {what}, such as '{usual[0]}'", todo)
    return column


def _cell(cells: tuple[str, ...], column: int) -> str:
    if column >= len(cells):
        raise DataError(f"there are {len(cells)} cells", f"at least {column + 1}", "Correct the table.")
    if "\n" in cells[column]:
        raise DataError(f"a cell is {cells[column]!r:.60}", "one line", "Close the quotation marks.")
    return cells[column]


def _count(cell: str) -> int:
    if not cell.isdecimal():
        raise DataError(f"a count of votes is {cell!r:.40}", "a whole number", "Correct the table.")
    return int(cell[:9])
