"""The demo's result for the terminal."""

import io
import sys
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from masp.demo.measure import DemoMeasurements
from masp.demo.report_builder import BEST, commands
from masp.report.schema import ReportData, Sample, decided, decisive, duration, share, verdict, words

BAR = 26
"""Width in characters of 100 %."""
WIDE = 112
"""Columns from which on there is room for what a row means."""


def show(console: Console, measured: DemoMeasurements, data: ReportData, report: Path, seconds: float) -> None:
    """Prints what was found, what was seen, and where to go on."""
    pictures = len(measured.table.truth)
    _part(
        console, "What each part adds", f"accuracy on {pictures:,} scenes, 95 % intervals", _ablation(console, measured)
    )
    _part(console, "What the aspects read", "the frozen backbone by itself: ┊", _aspects(data))
    _part(console, "Are the reasons true?", "known, because the world is made", _reasons(data))
    _part(console, "Six scenes that came with the package", "", _pictures(data.samples))
    console.print()
    console.print(Text.assemble("Everything, with heatmaps: ", (str(report), "bold green")), soft_wrap=True)
    console.print(Text(f"It took {duration(seconds)}. Next, for example:", style="dim"))
    for command in commands(report.parent)[1:]:
        console.print(Text(f"  {command}", style="dim"), soft_wrap=True)


def show_photographs(console: Console, data: ReportData, page: Path) -> None:
    """Prints what was predicted of the shipped photographs."""
    table = _columns("<", "<", ">", "~")
    for sample in data.samples:
        first, share = decisive(sample), _percent(sample.probabilities[sample.label])
        reason = decided(first) if first else verdict(sample).partition(" (")[0].rstrip(".")
        what = sample.name.partition(" (")[0]
        table.add_row(what, Text(sample.label, style="bold"), share, Text(reason, style="dim"))
    _part(console, "Photographs", data.summary, table)
    console.print(Text.assemble("  with heatmaps: ", (str(page), "green")), soft_wrap=True)


def standard_output() -> Console:
    """Where the summary goes; signs that a terminal cannot write become question marks instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(file=sys.stdout, highlight=False)


def bar(value: float, mark: float | None = None, width: int = BAR) -> Text:
    """A bar for a share in [0, 1]; `mark` is another share, shown as a line where the bar does not cover it."""
    full = round(value * width)
    at = None if mark is None else min(round(mark * width), width - 1)
    line = Text("━" * full + "·" * (width - full))
    line.stylize("cyan", 0, full)
    line.stylize("dim", full)
    if at is not None:
        line = Text.assemble(line[:at], ("┊", "bold"), line[at + 1 :])
    return line


def _part(console: Console, title: str, note: str, content: RenderableType) -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), (f"  {note}", "dim")))
    console.print(Padding(content, (0, 0, 0, 2)))


def _columns(*sides: str) -> Table:
    """A table without lines; "<" and ">" are columns that never wrap, "~" is one that does."""
    table = Table.grid(padding=(0, 2))
    for side in sides:
        table.add_column(justify="right" if side == ">" else "left", no_wrap=side != "~")
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{share(value)} %"


def _ablation(console: Console, measured: DemoMeasurements) -> Table:
    """Five rows, and the two lines to read them against."""
    table, top = _columns("<", "<", ">", "<", "~"), measured.ceiling.expected
    room = console.width >= WIDE
    for row in measured.table.rows:
        interval = Text(f"{share(row.accuracy.low)} – {share(row.accuracy.high)}", style="dim")
        name, value = Text(row.name), Text(_percent(row.accuracy.value))
        if row.name == BEST:
            name.stylize("bold green")
            value.stylize("bold green")
        table.add_row(
            name, bar(row.accuracy.value, top), value, interval, Text(row.meaning if room else "", style="dim")
        )
    for name, value, meaning in (
        ("majority", measured.table.majority.value, "always the most frequent label"),
        ("ceiling ┊", top, "the best anyone could reach: labels are drawn by chance"),
    ):
        table.add_row(
            Text(name, style="dim"),
            "",
            Text(_percent(value), style="dim"),
            "",
            Text(meaning if room else "", style="dim"),
        )
    return table


def _aspects(data: ReportData) -> Table:
    table = _columns("<", "<", ">", ">")
    for score in data.aspect_scores:
        base = Text(_percent(score.backbone), style="dim")
        table.add_row(
            words(score.aspect), bar(score.aspect_tokens, score.backbone), _percent(score.aspect_tokens), base
        )
    return table


def _reasons(data: ReportData) -> Table:
    table = _columns("<", "<", ">", ">")
    truth = data.explanations
    if truth is None:
        return table
    checks = truth.causes()
    checks += [
        (f"{words(aspect)} heatmap peaks on it", value, truth.pointing_by_guess.get(aspect))
        for aspect, value in truth.pointing.items()
    ]
    for name, value, guess in checks:
        chance = "" if guess is None else f"by guessing {_percent(guess)}"
        table.add_row(name, _percent(value.value), Text(chance, style="dim"))
    return table


def _pictures(samples: tuple[Sample, ...]) -> Table:
    table = _columns("<", "<", ">", "~")
    for sample in samples:
        right = sample.label == sample.truth
        mark = Text("✓ " if right else f"✗ drawn as {sample.truth}. ", style="green" if right else "red")
        first = decisive(sample)
        reason = Text.assemble(mark, (decided(first) if first else verdict(sample).rstrip("."), "dim"))
        label = Text(sample.label, style="bold")
        table.add_row(
            Path(sample.name).stem.replace("_", " "), label, _percent(sample.probabilities[sample.label]), reason
        )
    return table
