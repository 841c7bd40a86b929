"""Sheets: tables as text, ready to be written as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from masp.reproduce.tables import ResultTable, TableCell, TableRow, Texts

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "≤": r"$\le$",
    "→": r"$\to$",
    "…": r"\dots{}",
    "‑": "-",
}


@dataclass(frozen=True)
class Sheet:
    """A table as people read it, and the same as machines read it.

    Attributes:
        name: of its files.
        title: a heading.
        head: of its columns.
        rows: texts.
        notes: what a reader has to know, one sentence or more each.
        lines: for machines, one for each number: column → value; all with the same columns.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    lines: tuple[Mapping[str, Any], ...] = field(default=())


def sheet_of(table: ResultTable) -> Sheet:
    """A table of accuracies: with a column for each figure where there is one data set, else one for each data set."""
    head, rows = _narrow(table) if len(table.datasets) == 1 else _wide(table)
    lines = [_line(table, row, dataset) for row in table.rows for dataset in table.datasets]
    return Sheet(table.name, table.title, head, rows, (*table.notes, *_reasons(table)), tuple(lines))


def markdown(sheet: Sheet) -> str:
    """The sheet as Markdown: heading, table, notes."""
    lines = [sheet.head, tuple("---" for _ in sheet.head), *sheet.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in sheet.notes)
    return f"## {sheet.title}\n\n{body}\n" + (f"\n{notes}\n" if notes else "")


def comma_separated(sheet: Sheet) -> str:
    """The numbers of the sheet as CSV, one on a line; nothing is rounded."""
    buffer = io.StringIO()
    columns = list(sheet.lines[0]) if sheet.lines else list(sheet.head)
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    rows = sheet.lines or [dict(zip(sheet.head, row, strict=True)) for row in sheet.rows]
    writer.writerows(rows)
    return buffer.getvalue()


def latex(sheet: Sheet) -> str:
    """The sheet as a LaTeX table that needs no package."""
    columns = "l" + "r" * (len(sheet.head) - 1)
    rows = "\n".join("  " + " & ".join(map(escaped, row)) + r" \\" for row in sheet.rows)
    head = " & ".join(map(escaped, sheet.head)) + r" \\"
    return (
        "\\begin{table}\n  \\centering\n"
        f"  \\caption{{{escaped(sheet.title)}}}\n  \\label{{tab:{sheet.name}}}\n"
        f"  \\begin{{tabular}}{{{columns}}}\n  \\hline\n  {head}\n  \\hline\n{rows}\n  \\hline\n"
        "  \\end{tabular}\n\\end{table}\n"
    )


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_TEX.get(sign, sign) for sign in text)


def percent(share: float | None) -> str:
    """A share in per cent with one decimal; a dash for none."""
    return "–" if share is None else f"{100 * share:.1f}"


def _narrow(table: ResultTable) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    (dataset,) = table.datasets
    beside = tuple(table.beside)
    head = ("system", "what takes part", "accuracy, %", "± sd", "each seed", "95 % interval", "ECE, scaled")
    texts = any(row.entries[dataset].read for row in table.rows)
    head += ("lenient, %", "unparsed, %") if texts else ()
    head += tuple(f"paper, {name}" for name in beside) if beside else ("paper", "difference")
    return head, tuple(_long_row(table, row, row.entries[dataset], beside, texts) for row in table.rows)


def _long_row(
    table: ResultTable, row: TableRow, entry: TableCell, beside: Sequence[str], texts: bool
) -> tuple[str, ...]:
    seeds = " · ".join(percent(value) for value in entry.values) if len(entry.values) > 1 else ""
    spread = "" if entry.spread is None else percent(entry.spread)
    error = "" if entry.calibration is None else f"{entry.calibration:.3f}"
    own = (row.name, row.meaning, percent(entry.mean), spread, seeds, _bracket(entry), error)
    own += _read(entry.read) if texts else ()
    if beside:
        return own + tuple(_number(table.beside[name].get(row.printed)) for name in beside)
    return (*own, _number(entry.paper), _signed(entry.difference))


def _read(texts: Texts | None) -> tuple[str, str]:
    """The lenient accuracy, and how many texts were no label."""
    if texts is None:
        return "", ""
    return percent(texts.lenient), f"{percent(texts.unparsed)} ({percent(texts.inexact)})"


def _wide(table: ResultTable) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    rows = [(row.name, *(_short(row.entries[name]) for name in table.datasets)) for row in table.rows]
    return ("system", *table.datasets), tuple(rows)


def _short(entry: TableCell) -> str:
    """All that one cell of a wide table says: "80.1 ± 0.4 [78.0, 82.1]; paper 80.06 (+0.0)"."""
    paper = "" if entry.paper is None else f"paper {entry.paper:.2f}"
    found = entry.over_seeds
    if found is None:
        return f"–; {paper}" if paper else "–"
    text = f"{found.text()} {_bracket(entry)}"
    if entry.read is not None:
        lenient, unparsed = _read(entry.read)
        text += f"; lenient {lenient}, unparsed {unparsed} %"
    return text if entry.difference is None else f"{text}; {paper} ({_signed(entry.difference)})"


def _line(table: ResultTable, row: TableRow, dataset: str) -> dict[str, Any]:
    entry = row.entries[dataset]
    interval = entry.interval
    return {
        "table": table.name,
        "dataset": dataset,
        "system": row.name,
        "seeds": len(entry.values),
        "images": entry.images,
        "accuracy": _plain(entry.mean),
        "sd": _plain(entry.spread),
        "low": _plain(interval and interval.low),
        "high": _plain(interval and interval.high),
        "calibration_error_scaled": "" if entry.calibration is None else round(entry.calibration, 6),
        "lenient": _plain(entry.read and entry.read.lenient),
        "unparsed": _plain(entry.read and entry.read.unparsed),
        "inexact": _plain(entry.read and entry.read.inexact),
        "paper": "" if entry.paper is None else entry.paper,
        "difference": "" if entry.difference is None else round(entry.difference, 4),
        "reason": entry.reason,
    }


def _plain(share: float | None) -> float | str:
    """A share in per cent, to four decimals; nothing where there is none."""
    return "" if share is None else round(100 * share, 4)


def _bracket(entry: TableCell) -> str:
    found = entry.interval
    return "" if found is None else f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _signed(points: float | None) -> str:
    return "–" if points is None else f"{points:+.1f}".replace("-", "−")


def _reasons(table: ResultTable) -> list[str]:
    """What was not run, or not with every seed, and why; rows that share a reason share a sentence."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        for dataset, entry in row.entries.items():
            if entry.reason:
                what = f"with {len(entry.values)} seeds only" if entry.values else "not run"
                name = row.name if len(table.datasets) == 1 else f"{row.name} on {dataset}"
                rows.setdefault((what, entry.reason), []).append(name)
    return [f"{what[0].upper()}{what[1:]}: {', '.join(names)} ({why})." for (what, why), names in rows.items()]
