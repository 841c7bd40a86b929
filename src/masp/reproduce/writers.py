"""The files of a run: every table as Markdown, CSV and LaTeX, charts, one JSON of everything, and a page about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from masp.adapters import library_versions, portable, read_info
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import fingerprint, write_file
from masp.core.prompts import load_questions
from masp.report.plots import ACCENT, INK, MID, MUTED, RULE, SOFT, Kind, Panel
from masp.reproduce import render
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import cell_name
from masp.reproduce.render import RenderedTable, comma_separated, latex, markdown, render_table
from masp.reproduce.specs import ATTENTION, DATA
from masp.reproduce.tables import (
    Results,
    ResultTable,
    TableRow,
    accuracy_table,
    budgets,
    facts_of,
    seed_values,
)

Entry = Mapping[str, Any]
"""A table as `reproduce.json` holds it: rendered, and what it was made with."""

MADE_WITH = {
    "backbone": "another backbone",
    "seeds": "other seeds",
    "settings": "other settings",
    "data": "other data",
    "reading": "other questions or image sizes",
    "aspects": "other aspects",
    "answers": "another reading of the answers",
}
"""What tables of several calls have to agree in to stand beside each other → how a difference is said."""

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
    "Paired differences leave out {systems}: which images they got right was in `scratch`, which is gone. Remove "
    "their files from `cells` and give the command again."
)


@dataclass(frozen=True)
class Before:
    """What an earlier call left in the folder: its tables, each with what it was made with, and its data sets."""

    tables: tuple[Entry, ...] = ()
    datasets: Mapping[str, Any] | None = None


def write_all(results: Results, command: str) -> list[Path]:
    """Writes what belongs to the experiments of a run; the files, in order.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out, written, rendered_tables = results.config.out, list[Path](), list[RenderedTable]()
    out.mkdir(parents=True, exist_ok=True)
    before, now = read_before(out / SUMMARY), made_with(results, command)
    kept, left_out = _divided(before.tables, results.config, now)
    for experiment in results.config.experiments:
        result = _rendered_tables(results, experiment, before.tables)
        for rendered in result:
            written += _write_table(out, rendered)
        rendered_tables += result
        for name, image in _charts(results, experiment).items():
            written += _write_chart(out, name, image)
    tables = [*kept, *(_entry(results, rendered, now) for rendered in rendered_tables)]
    content = _summary(results, now, tables, before) | {"left_out": left_out}
    write_file(out / SUMMARY, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    write_file(out / PAGE, _page(content).encode())
    return [out / PAGE, *written, out / SUMMARY]


def _entry(results: Results, rendered: RenderedTable, now: Mapping[str, Any]) -> dict[str, Any]:
    """A table for the summary, with what it was made with."""
    experiment = rendered.name.removesuffix("-differences")
    cells = {} if rendered.name == experiment else {"cells": render.compared(results, experiment)}
    return {**asdict(rendered), **now, **cells}


def _rendered_tables(results: Results, experiment: str, before: Sequence[Entry]) -> list[RenderedTable]:
    if experiment == "table4":
        return [render.parameters(results)]
    if experiment == "figure4":
        rendered = render.attention(results)
        return [] if rendered is None else [rendered]
    table = accuracy_table(results, experiment)
    if not table.datasets:
        rows = tuple((skipped.dataset, skipped.reason) for skipped in results.skipped if not skipped.system)
        return [RenderedTable(table.name, f"{TITLES[experiment]}: not run", ("data set", "why not"), rows)]
    earlier = next((one for one in before if one["name"] == render.differences_of(experiment)), None)
    pairs, gone = render.differences(results, experiment, earlier)
    rendered = replace(render_table(table), title=TITLES[experiment])
    if gone:
        rendered = replace(rendered, notes=(*rendered.notes, GONE.format(systems=", ".join(gone))))
    return [rendered] if pairs is None else [rendered, pairs]


def _write_table(out: Path, rendered: RenderedTable) -> list[Path]:
    files = {".md": markdown(rendered), ".csv": comma_separated(rendered), ".tex": latex(rendered)}
    for suffix, text in files.items():
        write_file(out / f"{rendered.name}{suffix}", text.encode())
    return [out / f"{rendered.name}{suffix}" for suffix in files]


def _write_chart(out: Path, name: str, image: Panel) -> list[Path]:
    for kind in KINDS:
        write_file(out / f"{name}.{kind}", image.render(kind))
    return [out / f"{name}.{kind}" for kind in KINDS]


def _charts(results: Results, experiment: str) -> dict[str, Panel]:
    if experiment == "table4":
        return {}
    if experiment == "figure4":
        return _attention(results)
    table = accuracy_table(results, experiment)
    result: dict[str, Panel] = {}
    for dataset in table.datasets:
        if not any(row.entries[dataset].values for row in table.rows):
            continue
        name = experiment if len(table.datasets) == 1 else f"{experiment}-{dataset}"
        result[name] = _chart(results, table, dataset)
    return result


def _chart(results: Results, table: ResultTable, dataset: str) -> Panel:
    if table.name == "table3":
        return length_chart(table, dataset)
    facts: Mapping[str, Any] = facts_of(results, dataset)
    references = {"majority": facts["majority"]["value"]} if facts else {}
    if facts and "ceiling" in facts:
        references["ceiling"] = facts["ceiling"]["expected"]
    return bar_chart(table, dataset, references, dataset in results.paper.datasets)


def _attention(results: Results) -> dict[str, Panel]:
    result: dict[str, Panel] = {}
    sources = results.config.sources
    for source in sources:
        outcomes, _ = seed_values(results, ATTENTION, source.name)
        if not outcomes:
            continue
        names = outcomes[0].figures["normalised"]
        shares = {name: [outcome.figures["normalised"][name] for outcome in outcomes] for name in names}
        root = source.data.path
        images = [
            (root / one["image"], f"{one['truth']} → {one['predicted']}", one["normalised"])
            for one in outcomes[0].figures["examples"]
            if root is not None and (root / one["image"]).is_file()
        ]
        name = "figure4" if len(sources) == 1 else f"figure4-{source.name}"
        result[name] = attention_chart(source.name, shares, images)
    return result


def _summary(results: Results, now: Mapping[str, Any], tables: Sequence[Entry], before: Before) -> dict[str, Any]:
    config, outcomes = results.config, results.outcomes.values()
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
        "settings": _settings(config),
        "budgets": {name: asdict(one) for name, one in budgets(results, [one.name for one in config.sources]).items()},
        "machines": [json.loads(machine) for machine in sorted(machines)],
        "versions": library_versions(),
    }


def _datasets(results: Results, tables: Sequence[Entry], before: Before) -> dict[str, Any]:
    """What is known about each data set; what this call did not look at (Table 4 needs no data) is that of before."""
    stays = any(table["name"] in {one["name"] for one in before.tables} for table in tables)
    known = before.datasets if stays and before.datasets is not None else {}
    return {
        source.name: facts_of(results, source.name) or known.get(source.name, {}) for source in results.config.sources
    }


def _read(table: Mapping[str, Any]) -> RenderedTable:
    """A table out of the summary, for a page; what is for machines stays there."""
    rows = tuple(tuple(row) for row in table["rows"])
    return RenderedTable(table["name"], table["title"], tuple(table["head"]), rows, tuple(table["notes"]))


def _page(content: Mapping[str, Any]) -> str:
    """All tables on one page, each with the command that wrote it."""
    texts = [f"{markdown(_read(table)).strip()}\n\nWritten by `{table['command']}`." for table in content["tables"]]
    failed = [f"- {cell}: {error}" for cell, error in content["failed"].items()]
    left_out = [
        f"- {one['name']}, written by `{one['command']}`: {one['why']}. Its files are still there."
        for one in content["left_out"]
    ]
    parts = [
        "# The tables and figures of the paper, measured with masp",
        f"Each table is also there as `.csv` and `.tex`; `{SUMMARY}` holds all of it with what it depended on, "
        "`cells/` the result of every single run.",
        *texts,
        *(["## Left out\n\n" + "\n".join(left_out)] if left_out else []),
        *(["## Failed\n\n" + "\n".join(failed)] if failed else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


# --- tables of earlier calls in the same folder ----------------------------------------------------------------------


def made_with(results: Results, command: str) -> dict[str, Any]:
    """What the tables of this call are made with. Settings of other systems are in the command only."""
    config, data = results.config, dict[str, str]()
    for source in config.sources:
        outcome = results.outcomes.get(cell_name(source.name, DATA, config.seeds[0]))
        data[source.name] = "" if outcome is None else outcome.identity.get("data", "")
    return {
        "command": command,
        "backbone": portable(config.settings.backbone.id),
        "seeds": list(config.seeds),
        "settings": fingerprint(_settings(config)),
        "data": data,
        "reading": fingerprint(
            [load_questions(config.settings.questions).fingerprint(), config.settings.data.longest_side]
        ),
        "answers": config.reading,
        "aspects": "" if config.adapter is None else fingerprint(dict(read_info(config.adapter).aspects_sha256 or {})),
    }


def read_before(file: Path) -> Before:
    """The tables in `reproduce.json`; where they do not say what they were made with, the file says it for all."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        common = {key: content[key] for key in ("command", "backbone", "seeds")}
        common |= {"settings": fingerprint(content["settings"]), "data": dict.fromkeys(content["datasets"], "")}
        common |= {"answers": "score"}  # the only reading there was
        return Before(tuple({**common, **table} for table in content["tables"]), content["datasets"])
    except (OSError, ValueError, KeyError, TypeError):
        return Before()


def _divided(tables: Sequence[Entry], config: ReproduceConfig, now: Entry) -> tuple[list[Entry], list[dict[str, str]]]:
    """The earlier tables of other experiments that are kept, and those that are left out, each with the reason."""
    kept, left_out = list[Entry](), list[dict[str, str]]()
    for table in tables:
        if table["name"].split("-")[0] in config.experiments:
            continue
        why = " and ".join(words for key, words in MADE_WITH.items() if not _agree(key, table, now))
        if why:
            left_out.append({"name": table["name"], "command": table["command"], "why": f"it was made with {why}"})
        else:
            kept.append(table)
    return kept, left_out


def _agree(key: str, table: Entry, now: Entry) -> bool:
    """Whether both were made with the same; a data set that one of them did not look at is taken by its name."""
    if key not in table or key != "data":
        return key not in table or bool(table[key] == now[key])
    before, here = table[key], now[key]
    return before.keys() == here.keys() and all(
        "" in (before[one], here[one]) or before[one] == here[one] for one in here
    )


def _settings(config: ReproduceConfig) -> dict[str, Any]:
    """The settings of the method and both stages; no place on this machine."""
    content = config.settings.model_dump(mode="json")
    for stage in ("aspects", "prompt"):
        for name in ("store_dir", *getattr(config.settings, stage).added_at_default()):
            del content[stage][name]
    return {name: content[name] for name in ("method", "aspects", "prompt")}


# --- charts ------------------------------------------------------------------------------------------------------

TALL = 0.36  # inches of a bar
THUMB = 168  # pixels of an example image


def bar_chart(table: ResultTable, dataset: str, references: Mapping[str, float], paper: bool) -> Panel:
    """Accuracy of every row on one data set with its 95 % interval and, as a hollow mark, the paper's number."""
    rows = [row for row in table.rows if row.entries[dataset].values]

    def draw(axes: Axes) -> None:
        for position, row in enumerate(rows):
            _bar(axes, position, row, dataset, paper)
        axes.set_yticks(range(len(rows)), [row.name.replace("_", " ") for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        for name, share in references.items():
            axes.axvline(100 * share, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            position = (100 * share, 1.02)
            text = f"{name} {100 * share:.1f}"
            axes.text(*position, text, transform=axes.get_xaxis_transform(), color=MUTED, ha="center", fontsize=8)
        entries = [row.entries[dataset] for row in rows]
        marks = ["accuracy, %", "lines: 95 % intervals"]
        marks += ["dots: seeds"] if any(len(entry.values) > 1 for entry in entries) else []
        marks += ["diamonds: the paper"] if paper and any(entry.paper is not None for entry in entries) else []
        axes.set_xlabel("; ".join(marks))
        axes.set_title(dataset, fontsize=9.5, color=MUTED, pad=18)

    return Panel((6.2, 1.2 + TALL * max(1, len(rows))), draw)


def _bar(axes: Axes, position: int, row: TableRow, dataset: str, paper: bool) -> None:
    entry = row.entries[dataset]
    interval = entry.interval
    assert interval is not None
    axes.barh(
        [position],
        [100 * interval.value],
        height=0.56,
        color=MID if "+S" in row.name or row.name.startswith("MASP") else SOFT,
    )
    axes.plot(
        [100 * interval.low, 100 * interval.high], [position, position], color=INK, linewidth=1.2, solid_capstyle="butt"
    )
    if len(entry.values) > 1:
        points = [100 * value for value in entry.values]
        axes.plot(points, [position] * len(points), "o", markersize=3, color=ACCENT, zorder=4)
    if paper and entry.paper is not None:
        axes.plot([entry.paper], [position], "D", markersize=6, markerfacecolor="none", markeredgecolor=INK, zorder=5)


def length_chart(table: ResultTable, dataset: str) -> Panel:
    """Accuracy over the length of the soft prompt (Table 3), with the paper's numbers where it has some."""
    rows = [row for row in table.rows if row.entries[dataset].values]

    def draw(axes: Axes) -> None:
        sizes = [int(row.name) for row in rows]
        middle = [100 * (row.entries[dataset].mean or 0.0) for row in rows]
        axes.plot(sizes, middle, color=ACCENT, marker="o", markersize=5)
        for size, row in zip(sizes, rows, strict=True):
            interval = row.entries[dataset].interval
            assert interval is not None
            axes.plot([size, size], [100 * interval.low, 100 * interval.high], color=INK, linewidth=1.2)
        printed = [(int(row.name), row.entries[dataset].paper) for row in rows]
        known = [(size, number) for size, number in printed if number is not None]
        if known:
            axes.plot(*zip(*known, strict=True), "D--", color=MUTED, markerfacecolor="none", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("vectors in the soft prompt")
        axes.set_ylabel(f"accuracy on {dataset}, %", color=MUTED)
        axes.grid(axis="y", color=RULE, linewidth=0.7)

    return Panel((4.6, 2.9), draw)


def attention_chart(
    dataset: str, shares: Mapping[str, Sequence[float]], examples: Sequence[tuple[Path, str, Mapping[str, float]]]
) -> Panel:
    """Figure 4: share of each aspect in the prompt's attention, over the test split and for example images.

    Args:
        dataset: its name.
        shares: aspect → its mean share with each seed.
        examples: image, a caption, and the shares for it.
    """
    columns = [(f"{dataset}, mean", {name: sum(shares[name]) / len(shares[name]) for name in ASPECTS})]
    columns += [(caption, shares_here) for _, caption, shares_here in examples]

    def draw(axes: Axes) -> None:
        for column, (_, shares_here) in enumerate(columns):
            values = np.array([shares_here[name] for name in ASPECTS])
            left = 1.25 * column
            axes.barh(range(len(ASPECTS)), values / max(values.max(), 1e-9), left=left, height=0.6, color=MID)
            for index, value in enumerate(values):
                axes.text(left + 0.02, index, f"{100 * value:.1f}", va="center", fontsize=8, color=INK)
        for column, (path, _, _) in enumerate(examples, start=1):
            inset = axes.inset_axes((1.25 * column, -0.9 - 2.2, 1.0, 2.2), transform=axes.transData)
            inset.imshow(_thumbnail(path))
            inset.axis("off")
        axes.set_yticks(range(len(ASPECTS)), [name.replace("_", " ") for name in ASPECTS])
        axes.set_xticks([1.25 * column + 0.5 for column in range(len(columns))], [name for name, _ in columns])
        axes.set_ylim(len(ASPECTS) - 0.5, -3.3 if examples else -0.6)
        axes.set_xlim(0, 1.25 * len(columns) - 0.25)
        axes.grid(visible=False)

    return Panel((1.4 + 1.7 * len(columns), 3.6 if examples else 2.6), draw)


def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMB, THUMB))
        return small
