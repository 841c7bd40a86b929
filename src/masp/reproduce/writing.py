"""The files of a run: every sheet as Markdown, CSV and LaTeX, images, one JSON of everything, and a page about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from masp.adapters import library_versions
from masp.core.atomic_io import write_file
from masp.report.plots import Kind, Panel
from masp.reproduce import carried, charts, more_sheets
from masp.reproduce.carried import Before
from masp.reproduce.render import Sheet, comma_separated, latex, markdown, sheet_of
from masp.reproduce.specs import ATTENTION
from masp.reproduce.tables import Results, ResultTable, accuracy_table, budgets, facts_of, seed_values

TITLES: Mapping[str, str] = {
    "table1": "Table 1: systems and data sets",
    "table2": "Table 2: what aspects and soft prompt add",
    "table3": "Table 3: length of the soft prompt",
    "figure3": "Figure 3: one aspect alone",
}
KINDS: tuple[Kind, ...] = ("png", "pdf")
SUMMARY = "reproduce.json"
PAGE = "README.md"
GONE = (
    "Paired differences need the answers of every cell, which lay in `scratch` and are gone. They are there again once "
    "the cells of this table are removed from `cells` and run again."
)


def write_all(results: Results, command: str) -> list[Path]:
    """Writes what belongs to the experiments of a run; the files, in order.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out, written, sheets = results.job.out, list[Path](), list[Sheet]()
    out.mkdir(parents=True, exist_ok=True)
    before, now = carried.read_before(out / SUMMARY), carried.made_with(results, command)
    kept, left_out = carried.divided(before.tables, results.job, now)
    for experiment in results.job.experiments:
        found = _sheets(results, experiment)
        if more_sheets.unanswered(results, experiment):
            found, old = _with_old_differences(results, experiment, found, before)
            kept += old
        for sheet in found:
            written += _write_sheet(out, sheet)
        sheets += found
        for name, picture in _pictures(results, experiment).items():
            written += _write_picture(out, name, picture)
    tables = [*kept, *(_entry(results, sheet, now) for sheet in sheets)]
    content = _summary(results, now, tables, before) | {"left_out": left_out}
    write_file(out / SUMMARY, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_file(out / PAGE, _page(content).encode())
    return [out / PAGE, *written, out / SUMMARY]


def _entry(results: Results, sheet: Sheet, now: Mapping[str, Any]) -> dict[str, Any]:
    """A sheet for the summary, with what it was made with."""
    experiment = sheet.name.removesuffix("-differences")
    cells = {} if sheet.name == experiment else {"cells": more_sheets.compared(results, experiment)}
    return {**asdict(sheet), **now, **cells}


def _with_old_differences(
    results: Results, experiment: str, sheets: Sequence[Sheet], before: Before
) -> tuple[list[Sheet], list[carried.Entry]]:
    """Sheets of an experiment whose answers are gone: with the paired differences of before if the cells are the same.

    Returns:
        The sheets to write, and the earlier one if it stays as it is.
    """
    name, cells = more_sheets.differences_of(experiment), more_sheets.compared(results, experiment)
    old = [one for one in before.tables if one["name"] == name and one.get("cells") == cells]
    if old:
        return [sheet for sheet in sheets if sheet.name != name], old
    first, *rest = sheets
    return [replace(first, notes=(*first.notes, GONE)), *rest], []


def _sheets(results: Results, experiment: str) -> list[Sheet]:
    if experiment == "table4":
        return [more_sheets.parameters(results)]
    if experiment == "figure4":
        found = more_sheets.attention(results)
        return [] if found is None else [found]
    table = accuracy_table(results, experiment)
    if not table.datasets:
        rows = tuple((skipped.dataset, skipped.reason) for skipped in results.skipped if not skipped.system)
        return [Sheet(table.name, f"{TITLES[experiment]}: not run", ("data set", "why not"), rows)]
    sheets = [_titled(sheet_of(table), TITLES[experiment])]
    pairs = more_sheets.differences(results, experiment)
    return sheets if pairs is None else [*sheets, pairs]


def _titled(sheet: Sheet, title: str) -> Sheet:
    return Sheet(sheet.name, title, sheet.head, sheet.rows, sheet.notes, sheet.lines)


def _write_sheet(out: Path, sheet: Sheet) -> list[Path]:
    files = {".md": markdown(sheet), ".csv": comma_separated(sheet), ".tex": latex(sheet)}
    for suffix, text in files.items():
        write_file(out / f"{sheet.name}{suffix}", text.encode())
    return [out / f"{sheet.name}{suffix}" for suffix in files]


def _write_picture(out: Path, name: str, picture: Panel) -> list[Path]:
    for kind in KINDS:
        write_file(out / f"{name}.{kind}", picture.render(kind))
    return [out / f"{name}.{kind}" for kind in KINDS]


def _pictures(results: Results, experiment: str) -> dict[str, Panel]:
    if experiment == "table4":
        return {}
    if experiment == "figure4":
        return _attention(results)
    table = accuracy_table(results, experiment)
    found: dict[str, Panel] = {}
    for dataset in table.datasets:
        if not any(row.entries[dataset].values for row in table.rows):
            continue
        name = experiment if len(table.datasets) == 1 else f"{experiment}-{dataset}"
        found[name] = _picture(results, table, dataset)
    return found


def _picture(results: Results, table: ResultTable, dataset: str) -> Panel:
    if table.name == "table3":
        return charts.lengths(table, dataset)
    facts: Mapping[str, Any] = facts_of(results, dataset)
    references = {"majority": facts["majority"]["value"]} if facts else {}
    if facts and "ceiling" in facts:
        references["ceiling"] = facts["ceiling"]["expected"]
    return charts.bars(table, dataset, references, dataset in results.paper.datasets)


def _attention(results: Results) -> dict[str, Panel]:
    found: dict[str, Panel] = {}
    sources = results.job.sources
    for source in sources:
        outcomes, _ = seed_values(results, ATTENTION, source.name)
        if not outcomes:
            continue
        names = outcomes[0].figures["normalised"]
        shares = {name: [outcome.figures["normalised"][name] for outcome in outcomes] for name in names}
        root = source.data.path
        pictures = [
            (root / one["image"], f"{one['truth']} → {one['predicted']}", one["normalised"])
            for one in outcomes[0].figures["examples"]
            if root is not None and (root / one["image"]).is_file()
        ]
        name = "figure4" if len(sources) == 1 else f"figure4-{source.name}"
        found[name] = charts.attention(source.name, shares, pictures)
    return found


def _summary(
    results: Results, now: Mapping[str, Any], tables: Sequence[carried.Entry], before: Before
) -> dict[str, Any]:
    job, outcomes = results.job, results.outcomes.values()
    machines = {json.dumps(outcome.about["machine"], sort_keys=True) for outcome in outcomes if outcome.about}
    return {
        "command": now["command"],
        "backbone": now["backbone"],
        "seeds": now["seeds"],
        "reading": now["answers"],
        "datasets": _datasets(results, tables, before),
        "tables": sorted(tables, key=lambda table: (table["name"].startswith("figure"), table["name"])),
        "not_run": [asdict(skipped) for skipped in results.skipped],
        "failed": {outcome.cell: outcome.error for outcome in outcomes if outcome.state != "done"},
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "cells": {outcome.cell: outcome.seconds for outcome in outcomes if outcome.state == "done"},
        "settings": carried.settings_of(job),
        "budgets": {name: asdict(one) for name, one in budgets(results, [one.name for one in job.sources]).items()},
        "machines": [json.loads(machine) for machine in sorted(machines)],
        "versions": library_versions(),
    }


def _datasets(results: Results, tables: Sequence[carried.Entry], before: Before) -> dict[str, Any]:
    """What is known about each data set; what this call did not look at (Table 4 needs no data) is that of before."""
    stays = any(table["name"] in {one["name"] for one in before.tables} for table in tables)
    known = before.datasets if stays and before.datasets is not None else {}
    return {source.name: facts_of(results, source.name) or known.get(source.name, {}) for source in results.job.sources}


def _read(table: Mapping[str, Any]) -> Sheet:
    """A sheet out of the summary, for a page; what is for machines stays there."""
    rows = tuple(tuple(row) for row in table["rows"])
    return Sheet(table["name"], table["title"], tuple(table["head"]), rows, tuple(table["notes"]))


def _page(content: Mapping[str, Any]) -> str:
    """All tables on one page, each with the command that wrote it."""
    sheets = [f"{markdown(_read(table)).strip()}\n\nWritten by `{table['command']}`." for table in content["tables"]]
    failed = [f"- {cell}: {error}" for cell, error in content["failed"].items()]
    left_out = [
        f"- {one['name']}, written by `{one['command']}`: {one['why']}. Its files are still there."
        for one in content["left_out"]
    ]
    parts = [
        "# The tables and figures of the paper, measured with masp",
        f"Each table is also there as `.csv` and `.tex`; `{SUMMARY}` holds all of it with what it depended on, "
        "`cells/` the result of every single run.",
        *sheets,
        *(["## Left out\n\n" + "\n".join(left_out)] if left_out else []),
        *(["## Failed\n\n" + "\n".join(failed)] if failed else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
