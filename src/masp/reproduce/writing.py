"""The files of a run: every sheet as Markdown, CSV and LaTeX, pictures, one JSON of everything, and a page about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masp.adapters import library_versions, portable
from masp.plots import Kind, Panel
from masp.reproduce import charts, more_sheets
from masp.reproduce.job import Job
from masp.reproduce.recipes import ATTENTION
from masp.reproduce.sheets import Sheet, comma_separated, latex, markdown, sheet_of
from masp.reproduce.tables import Results, Table, accuracy_table, facts_of, seed_values
from masp.storage import write_file

TITLES: Mapping[str, str] = {
    "table1": "Table 1: systems and data sets",
    "table2": "Table 2: what aspects and soft prompt add",
    "table3": "Table 3: length of the soft prompt",
    "figure3": "Figure 3: one aspect alone",
}
KINDS: tuple[Kind, ...] = ("png", "pdf")
SUMMARY = "reproduce.json"
PAGE = "README.md"


def write_all(results: Results, command: str) -> list[Path]:
    """Writes what belongs to the experiments of a run; the files, in order.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out, written, sheets = results.job.out, list[Path](), list[Sheet]()
    out.mkdir(parents=True, exist_ok=True)
    for experiment in results.job.experiments:
        found = _sheets(results, experiment)
        for sheet in found:
            written += _write_sheet(out, sheet)
        sheets += found
        for name, picture in _pictures(results, experiment).items():
            written += _write_picture(out, name, picture)
    known = _before(out / SUMMARY, results.job)
    content = _summary(results, command, sheets, known)
    write_file(out / SUMMARY, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_file(out / PAGE, _page(content).encode())
    return [out / PAGE, *written, out / SUMMARY]


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
    pairs = more_sheets.differences(results) if experiment == "table2" else None
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


def _picture(results: Results, table: Table, dataset: str) -> Panel:
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


def _before(file: Path, job: Job) -> list[dict[str, Any]]:
    """The tables that an earlier call wrote for other experiments into the same folder."""
    try:
        tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
        return [table for table in tables if table["name"].split("-")[0] not in job.experiments]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _summary(results: Results, command: str, sheets: Sequence[Sheet], before: list[dict[str, Any]]) -> dict[str, Any]:
    job = results.job
    tables = [*before, *(asdict(sheet) for sheet in sheets)]
    outcomes = results.outcomes.values()
    machines = {json.dumps(outcome.about["machine"], sort_keys=True) for outcome in outcomes if outcome.about}
    return {
        "command": command,
        "backbone": portable(job.config.backbone.id),
        "seeds": list(job.seeds),
        "datasets": {source.name: facts_of(results, source.name) for source in job.sources},
        "tables": sorted(tables, key=lambda table: (table["name"].startswith("figure"), table["name"])),
        "not_run": [asdict(skipped) for skipped in results.skipped],
        "failed": {outcome.cell: outcome.error for outcome in outcomes if outcome.state != "done"},
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "cells": {outcome.cell: outcome.seconds for outcome in outcomes if outcome.state == "done"},
        "settings": _settings(job),
        "machines": [json.loads(machine) for machine in sorted(machines)],
        "versions": library_versions(),
    }


def _read(table: Mapping[str, Any]) -> Sheet:
    """A sheet out of the summary, for a page; what is for machines stays there."""
    rows = tuple(tuple(row) for row in table["rows"])
    return Sheet(table["name"], table["title"], tuple(table["head"]), rows, tuple(table["notes"]))


def _settings(job: Job) -> dict[str, Any]:
    """The settings of the method and both stages; no place on this machine."""
    content = job.config.model_dump(mode="json")
    for stage in ("aspects", "prompt"):
        del content[stage]["store_dir"]
    return {name: content[name] for name in ("method", "aspects", "prompt")}


def _page(content: Mapping[str, Any]) -> str:
    """All tables on one page."""
    sheets = [_read(table) for table in content["tables"]]
    failed = [f"- {cell}: {error}" for cell, error in content["failed"].items()]
    parts = [
        "# The tables and figures of the paper, measured with masp",
        f"Written by `{content['command']}`. Each table is also there as `.csv` and `.tex`; `{SUMMARY}` holds all of "
        "it with what it depended on, `cells/` the result of every single run.",
        *(markdown(sheet) for sheet in sheets),
        *(["## Failed\n\n" + "\n".join(failed)] if failed else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
