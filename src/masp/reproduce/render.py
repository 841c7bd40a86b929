"""Tables as text: of accuracies, paired differences, trained numbers and attention; as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from masp.adapters import portable
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import fingerprint
from masp.evaluation import metrics
from masp.evaluation.metrics import PairedComparison, spread_of
from masp.reproduce.dag import cell_name, seeds_of, takes_part
from masp.reproduce.runner import correctness, paper_parameters
from masp.reproduce.specs import ATTENTION, FULL, PARAMETERS, PLAIN, SOFT, TABLE2, Spec, all_specs, spec_of
from masp.reproduce.tables import Results, ResultTable, TableCell, TableRow, Texts, seed_values

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
class RenderedTable:
    """A table as people read it, and the same as machines read it."""

    name: str  # of its files
    title: str  # a heading
    head: tuple[str, ...]  # of its columns
    rows: tuple[tuple[str, ...], ...]  # texts
    notes: tuple[str, ...] = ()  # what a reader has to know, one sentence or more each
    # for machines, one for each number: column → value; all with the same columns
    lines: tuple[Mapping[str, Any], ...] = field(default=())


def render_table(table: ResultTable) -> RenderedTable:
    """A table of accuracies: with a column for each figure where there is one data set, else one for each data set."""
    head, rows = _narrow(table) if len(table.datasets) == 1 else _wide(table)
    lines = [_line(table, row, dataset) for row in table.rows for dataset in table.datasets]
    return RenderedTable(table.name, table.title, head, rows, (*table.notes, *_reasons(table)), tuple(lines))


def markdown(rendered: RenderedTable) -> str:
    """The table as Markdown: heading, table, notes."""
    lines = [rendered.head, tuple("---" for _ in rendered.head), *rendered.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in rendered.notes)
    return f"## {rendered.title}\n\n{body}\n" + (f"\n{notes}\n" if notes else "")


def comma_separated(rendered: RenderedTable) -> str:
    """The numbers of the table as CSV, one on a line; nothing is rounded."""
    buffer = io.StringIO()
    columns = list(rendered.lines[0]) if rendered.lines else list(rendered.head)
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    rows = rendered.lines or [dict(zip(rendered.head, row, strict=True)) for row in rendered.rows]
    writer.writerows(rows)
    return buffer.getvalue()


def latex(rendered: RenderedTable) -> str:
    """The table as LaTeX that needs no package."""
    columns = "l" + "r" * (len(rendered.head) - 1)
    rows = "\n".join("  " + " & ".join(map(escaped, row)) + r" \\" for row in rendered.rows)
    head = " & ".join(map(escaped, rendered.head)) + r" \\"
    return (
        "\\begin{table}\n  \\centering\n"
        f"  \\caption{{{escaped(rendered.title)}}}\n  \\label{{tab:{rendered.name}}}\n"
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
    stats = entry.over_seeds
    if stats is None:
        return f"–; {paper}" if paper else "–"
    text = f"{stats.text()} {_bracket(entry)}"
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
    interval = entry.interval
    return "" if interval is None else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


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


_BASES = (PLAIN, *(base for base in all_specs() if base != spec_of("concepts")))
PAIRS: Mapping[str, tuple[tuple[Spec, Spec], ...]] = {
    "table1": (
        *((base, SOFT) for base in _BASES),
        *((base, FULL) for base in (*_BASES, SOFT)),
        *((base, spec_of("concepts")) for base in (SOFT, FULL)),
    ),
    "table2": tuple((base, spec) for base in (PLAIN, SOFT) for spec in TABLE2[TABLE2.index(base) + 1 :]),
}
"""Experiment → rows that are compared: V+S and MASP with the backbone alone, the other systems and each other, and what
the bottleneck adds to both; what every part of MASP adds to V and to V+S."""

COMPARED = {"table1": "the soft prompt and MASP beside other systems", "table2": "rows of Table 2"}


@dataclass(frozen=True)
class DifferenceRow:
    """How much more of the same images one system gets right than another."""

    seeds: tuple[int, ...]  # of training
    each: tuple[PairedComparison, ...]  # the difference with each of them
    whole: PairedComparison  # that of the means over the seeds


def differences_of(experiment: str) -> str:
    """The name of the table with the paired differences of an experiment."""
    return f"{experiment}-differences"


def differences(
    results: Results, experiment: str, before: Mapping[str, Any] | None = None
) -> tuple[RenderedTable | None, list[str]]:
    """Paired differences between rows, on the same images with the same seed.

    Args:
        results: the cells.
        experiment: "table1" or "table2"; others have none.
        before: the table that an earlier call left, as `reproduce.json` holds it. A row whose answers are gone is taken
            from it, if it was made of the same cells.

    Returns:
        The table, None where no two rows are there; and the systems whose answers it lacks.
    """
    rows, lines, gone = list[tuple[str, ...]](), list[Mapping[str, Any]](), set[str]()
    for dataset, base, spec in _pairs(results, experiment):
        names = [name for _, both in _cells(results, dataset, base, spec) for name in both]
        row = paired(results, dataset, base, spec)
        if row is not None:
            rows.append(_difference_row(dataset, base, spec, row))
            seeds = [("all", row.whole), *zip(row.seeds, row.each, strict=True)]
            lines += [_difference_line(dataset, base, spec, seed, one) for seed, one in seeds]
            continue
        kept, known = _row_before(results, dataset, base, spec, names, before)
        rows, lines = rows + kept, lines + known
        if not kept:
            gone |= {name.split("/")[1] for name in names if not _correctness(results, name)[0]}
    if not rows:
        return None, sorted(gone)
    head = ("data set", "difference", "points", "± sd", "each seed", "95 % interval over images, all seeds", "p")
    note = (
        "Points of accuracy on the same images; an image counts with the share of the seeds that got it right. "
        "Interval: bootstrap over images; p: exact sign-flip test over images, with one seed McNemar's. Neither says "
        "anything about seeds that were not trained."
    )
    title = f"Paired differences: {COMPARED[experiment]}"
    return RenderedTable(differences_of(experiment), title, head, tuple(rows), (note,), tuple(lines)), sorted(gone)


def paired(results: Results, dataset: str, base: Spec, spec: Spec) -> DifferenceRow | None:
    """How much more of the same images `spec` gets right than `base`; None where answers of a seed are not there."""
    seeds, correct, hashes = list[int](), list[tuple[str, str]](), set[str]()
    for seed, names in _cells(results, dataset, base, spec):
        (first, first_hash), (second, second_hash) = (_correctness(results, name) for name in names)
        seeds.append(seed)
        correct.append((first, second))
        hashes |= {first_hash, second_hash}
    if len(hashes) != 1 or "" in hashes:
        return None
    targets = "1" * len(correct[0][0])
    each = tuple(metrics.compare(targets, *both, seed) for seed, both in zip(seeds, correct, strict=True))
    whole = metrics.compare_seeds(targets, [one for one, _ in correct], [one for _, one in correct])
    return DifferenceRow(tuple(seeds), each, whole)


def _row_before(
    results: Results, dataset: str, base: Spec, spec: Spec, names: Sequence[str], before: Mapping[str, Any] | None
) -> tuple[list[tuple[str, ...]], list[Mapping[str, Any]]]:
    """The row of an earlier table with its lines, if its cells and the seeds of the table are as they were."""
    if not names or before is None or before["seeds"] != list(results.config.seeds):
        return [], []
    cells = before.get("cells", {})
    if any(cells.get(name) != _cell_hash(results, name) for name in names):
        return [], []
    rows = [tuple(one) for one in before["rows"] if one[:2] == [dataset, _difference_name(base, spec)]]
    key = {"dataset": dataset, "system": spec.name, "minus": base.name}
    return rows, [one for one in before["lines"] if key.items() <= one.items()]


def _correctness(results: Results, name: str) -> tuple[str, str]:
    """As `correctness`; where a cell of an older version does not say it, from the work folder."""
    outcome = results.outcomes[name]
    return (outcome.correct, outcome.targets_hash) if outcome.correct else correctness(results.config, name)


def compared(results: Results, experiment: str) -> dict[str, str]:
    """The cells that paired differences are made of: name → hash of what decided the figures, and of these."""
    names = {name for pair in _pairs(results, experiment) for _, both in _cells(results, *pair) for name in both}
    return {name: _cell_hash(results, name) for name in sorted(names)}


def _cell_hash(results: Results, name: str) -> str:
    return fingerprint([results.outcomes[name].identity, results.outcomes[name].figures])


def _pairs(results: Results, experiment: str) -> list[tuple[str, Spec, Spec]]:
    """Data set, and two rows that are compared."""
    pairs = PAIRS.get(experiment, ())
    sources = [one.name for one in results.config.sources if pairs and takes_part(experiment, one.name, results.paper)]
    return [(name, *pair) for name in sources for pair in pairs]


def _cells(results: Results, dataset: str, base: Spec, spec: Spec) -> list[tuple[int, tuple[str, str]]]:
    """Each seed with which both rows are done, and their cells; what is run once stands beside every seed."""
    config, both = results.config, (base, spec)
    once = all(len(seeds_of(config, one)) == 1 for one in both)
    result = []
    for seed in config.seeds[:1] if once else config.seeds:
        seeds = (seed if seed in seeds_of(config, one) else seeds_of(config, one)[0] for one in both)
        first, second = (cell_name(dataset, one, own) for one, own in zip(both, seeds, strict=True))
        outcomes = [results.outcomes.get(name) for name in (first, second)]
        if all(outcome is not None and outcome.state == "done" for outcome in outcomes):
            result.append((seed, (first, second)))
    return result


def parameters(results: Results) -> RenderedTable:
    """Table 4: what is trained, on the paper's backbone by arithmetic and on this one."""
    ours, _ = seed_values(results, PARAMETERS, results.config.sources[0].name)
    here = ours[0].figures if ours else {}
    printed, rows, lines = results.paper.parameters, [], []
    counted = paper_parameters()
    known: Sequence[tuple[str, str, str]] = (
        ("QLoRA, rank 8 on query and value projections", "lora", "Instruction tuning"),
        ("soft prompt (stage 2)", "prompt", "Soft prompt tuning"),
        ("aspect modules (stage 1), paper", "aspects paper", ""),
        ("aspect modules (stage 1), released", "aspects released", ""),
        ("aspect modules (stage 1), as set for this run", "aspects", ""),
    )
    for name, key, row in known:
        there, this, paper = counted.get(key), here.get(key), printed.get(row)
        rows.append((name, *(_count(number) for number in (there, paper, this))))
        columns = {"qwen2_vl_7b": there, "paper": paper, "this_backbone": this}
        lines.append({"what": name} | {key: "" if value is None else value for key, value in columns.items()})
    head = (
        "trained",
        "Qwen2-VL-7B, counted",
        "Qwen2-VL-7B, printed in the paper",
        portable(results.config.settings.backbone.id),
    )
    notes = (
        "The paper prints no number for stage 1, which is trained once for each backbone, not for each task.",
        "Soft prompt: number of vectors times the width of the language model.",
    )
    return RenderedTable("table4", "Table 4: trainable parameters", head, tuple(rows), notes, tuple(lines))


def attention(results: Results) -> RenderedTable | None:
    """Figure 4 as numbers: mean over the test images and the seeds; None where nothing was measured."""
    rows, lines, notes = [], [], []
    for source in results.config.sources:
        if not takes_part("figure4", source.name, results.paper):
            continue
        outcomes, reason = seed_values(results, ATTENTION, source.name)
        if reason:
            notes.append(f"{source.name}: {len(outcomes)} seeds only ({reason}).")
        for aspect in ASPECTS if outcomes else ():
            raw = [outcome.figures["raw"][aspect] for outcome in outcomes]
            shares = [outcome.figures["normalised"][aspect] for outcome in outcomes]
            spread = [outcome.figures["spread"][aspect] for outcome in outcomes]
            seeds = spread_of(shares)
            sd = "" if seeds.deviation is None else percent(seeds.deviation)
            each = " · ".join(percent(share) for share in shares)
            rows.append((source.name, aspect, f"{mean(raw):.4f}", percent(seeds.mean), sd, each, percent(mean(spread))))
            lines.append(
                {
                    "dataset": source.name,
                    "aspect": aspect,
                    "raw": mean(raw),
                    "share": seeds.mean,
                    "images_sd": mean(spread),
                }
            )
    if not rows and not notes:
        return None
    head = ("data set", "aspect", "raw weight", "share, %", "± sd of seeds", "each seed", "sd over images")
    notes += [
        "Final layer, mean over heads and prompt tokens, summed over an aspect's tokens; share: of all aspects.",
        "Attention shows what was read, not what decided.",
    ]
    return RenderedTable(
        "figure4",
        "Figure 4: attention from the soft prompt to each aspect",
        head,
        tuple(rows),
        tuple(notes),
        tuple(lines),
    )


def _difference_row(dataset: str, base: Spec, spec: Spec, row: DifferenceRow) -> tuple[str, ...]:
    points, whole = spread_of([100 * one.difference for one in row.each]), row.whole
    spread = "" if points.deviation is None else f"{points.deviation:.1f}"
    each = " · ".join(f"{value:+.1f}" for value in points.values)
    interval = f"[{100 * whole.low:+.1f}, {100 * whole.high:+.1f}]"
    name = _difference_name(base, spec)
    return (dataset, name, f"{100 * whole.difference:+.1f}", spread, each, interval, f"{whole.p_value:.2g}")


def _difference_name(base: Spec, spec: Spec) -> str:
    return f"{spec.name} − {base.name}"


def _difference_line(dataset: str, base: Spec, spec: Spec, seed: int | str, one: PairedComparison) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "system": spec.name,
        "minus": base.name,
        "seed": seed,
        "difference": one.difference,
        "low": one.low,
        "high": one.high,
        "p": one.p_value,
    }


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
