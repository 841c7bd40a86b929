"""Tables of text: CSV and TSV as spreadsheets, scripts and old computers write them, and Parquet."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.core.errors import DataError, UsageError, did_you_mean

SUFFIXES = (".csv", ".tsv", ".parquet")
_DELIMITERS = "\t,;"


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        file: where it was read.
        columns: names of the columns, stripped; "" where one has none.
        rows: cells of every row, stripped; a row may be shorter or longer than the header.
    """

    file: Path
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def find(self, given: str | None, usual: Sequence[str]) -> int | None:
        """The place of a column: the one the user names, else the first of the usual names that occurs.

        Raises:
            DataError: the table has no column of the given name.
        """
        names = [_folded(name) for name in self.columns]
        if given is not None:
            if _folded(given) in names:
                return names.index(_folded(given))
            raise DataError(f"{self.file} has no column '{given}'", "", did_you_mean(given, filter(None, self.columns)))
        return next((names.index(name) for name in map(_folded, usual) if name in names), None)


def _folded(name: str) -> str:
    return name.casefold().replace(" ", "").replace("_", "").replace("-", "")


def is_table(path: Path) -> bool:
    """Whether a file is named like a table that can be read."""
    return path.suffix.lower() in SUFFIXES


def read_table(file: Path, header: bool = True) -> Table:
    """The cells of a CSV, TSV or Parquet file.

    Commas, tabs and semicolons part cells; cells may stand in double or, where the file begins with one, in single
    quotation marks; lines may end in any way.

    Args:
        file: the table.
        header: whether the first row names the columns; without it they have no names.

    Raises:
        DataError: it cannot be read, is empty, or is not a table.
        UsageError: it is Parquet, and pyarrow is not installed.
    """
    rows = _parquet_rows(file) if file.suffix.lower() == ".parquet" else _text_rows(file)
    if not rows:
        raise DataError(f"{file} is empty", "a table with a row of names", "Copy it again from its source.")
    columns = rows[0] if header else ("",) * len(rows[0])
    return Table(file, columns, rows[1:] if header else rows)


def columns_of(file: Path) -> tuple[str, ...]:
    """Names of the columns of a table, or nothing where it cannot be read; reads as little as it can."""
    try:
        if file.suffix.lower() == ".parquet":
            return tuple(name.strip() for name in _parquet(file).schema_arrow.names)
        with file.open("rb") as opened:
            rows = _parsed(opened.read(65_536).decode("utf-8-sig", errors="replace"))
    except (DataError, UsageError, OSError, csv.Error):
        return ()
    return rows[0] if rows else ()


def _text_rows(file: Path) -> list[tuple[str, ...]]:
    try:
        return _parsed(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "", "Check the path and the rights.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text in UTF-8", "a table", "Save it as UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"{file} is not a table ({error})", "", "Check its quotation marks.") from None


def _parsed(text: str) -> list[tuple[str, ...]]:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = text.lstrip("\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    quote = "'" if first.lstrip().startswith("'") else '"'
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, quotechar=quote, skipinitialspace=delimiter != "\t")
    return [tuple(cell.strip() for cell in row) for row in reader if any(map(str.strip, row))]


def _parquet_rows(file: Path) -> list[tuple[str, ...]]:
    opened = _parquet(file)
    names = tuple(name.strip() for name in opened.schema_arrow.names)
    rows = [names]
    for batch in opened.iter_batches():
        columns = [column.to_pylist() for column in batch.columns]
        rows += [tuple("" if cell is None else str(cell).strip() for cell in row) for row in zip(*columns, strict=True)]
    return rows


def _parquet(file: Path):  # noqa: ANN202  (pyarrow is not there for every reader of this file)
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(f"{file} is Parquet", "pyarrow", "Install it with: pip install 'masp[parquet]'.") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "", "Check the path and the rights.") from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not Parquet ({error})", "", "Copy it again from its source.") from None
