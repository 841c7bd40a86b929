"""What a person sees in the terminal: results on stdout, everything else on stderr."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.status import Status
from rich.table import Table
from rich.text import Text

from masp.core import runtime

if TYPE_CHECKING:
    from masp.core.runtime import Bar
    from masp.evaluation.result import Calibrated, Evaluation, ProbabilisticMetrics
    from masp.model.explain import AspectReading
    from masp.predictor import Prediction

BAR = 24
"""Width in characters of a full probability bar."""

FAINT = 0.05
"""Effects below this many nats (5 %) decide nothing."""

EFFECTS = {
    "leave_one_out": "how far the label's log-probability falls without the aspect",
    "concept_bottleneck": "what the aspect's words add to the label's logit",
    "shapley": "the aspect's Shapley value: its share in the label's log-probability",
}
"""What an effect is, by the name of the attribution."""

EIGHTHS = " ▏▎▍▌▋▊▉█"


def say(line: str) -> None:
    """A line for the person at the terminal, on stderr; of several processes, one says it."""
    if not runtime.speaks():
        return
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(printable(line)))


def legend(explain: bool | str) -> str:
    """What effect and attention mean, by the attribution that is asked for."""
    from masp.model.explain import DEFAULT_ATTRIBUTION

    what = EFFECTS[DEFAULT_ATTRIBUTION if explain is True else str(explain)]
    return (
        f"effect: {what}, in nats; the largest one decided\n"
        "attention: the soft prompt's, as shares of the aspects (attention is not cause)"
    )


def printable(text: str) -> str:
    """The text without what could steer a terminal: file names and generated answers are not ours."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def counting(bar: "Bar") -> Callable[[int], None]:
    """A function that moves a bar on by the number it is given."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        bar.show(done)

    return advance


def waiting(what: str) -> Status:
    """A sign on stderr that something goes on whose length nobody knows; for use with `with`."""
    return Console(stderr=True, highlight=False).status(f"{what} …")


def results() -> Console:
    """Where results go: stdout, with colours and boxes only as far as it can show them."""
    return Console(file=sys.stdout, highlight=False)


def plain_table(*headings: str, gap: int = 2) -> Table:
    """A table without lines; a heading that begins with ">" stands over a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for heading in headings:
        side = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=side, overflow="fold")
    return table


def prediction_panel(prediction: "Prediction") -> Panel:
    """One image: its label, the probability of every label, and what each aspect contributed."""
    parts: list[RenderableType] = []
    if prediction.warning is not None:
        parts += [Text(printable(prediction.warning), style="bold yellow"), Text()]
    parts.append(probability_bars(prediction.probabilities, prediction.label))
    if prediction.aspects:
        parts += [Text(), aspect_table(prediction.aspects, _shares(prediction))]
    if prediction.answer is not None and prediction.answer != prediction.label:
        parts += [Text(), Text(f"In its own words: {printable(prediction.answer) or '(nothing)'}", style="italic")]
    sure = prediction.probabilities[prediction.label]
    trusted = "bold green" if prediction.warning is None else "yellow"
    title = Text.assemble((prediction.label, trusted), f"  {sure:.0%}  ", (printable(prediction.image), "dim"))
    return Panel(Group(*parts), title=title, title_align="left", padding=(1, 2))


def probability_bars(probabilities: Mapping[str, float], label: str) -> Table:
    """A horizontal bar for every label, the most probable one first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(min_width=BAR)
    table.add_column(justify="right")
    for name, share in sorted(probabilities.items(), key=lambda item: -item[1]):
        style = "bold green" if name == label else "none"
        table.add_row(
            Text(printable(name), style=style), Text(bar(share), style=style), Text(f"{100 * share:.1f} %", style=style)
        )
    return table


def bar(share: float, width: int = BAR) -> str:
    """A bar in eighths of a character; a full one is `width` characters long."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def aspect_table(aspects: "Mapping[str, AspectReading]", shares: Mapping[str, float]) -> Table:
    """What each aspect saw, where it looked, what it did to the label, and the soft prompt's attention to it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("aspect", "saw", "looked at", "effect", "attention"):
        table.add_column(heading, no_wrap=heading != "saw")
    strongest = max([abs(reading.effect) for reading in aspects.values()] + [FAINT])
    decisive = max(aspects, key=lambda name: aspects[name].effect)
    for name, reading in aspects.items():
        colour = "green" if reading.effect > FAINT else "red" if reading.effect < -FAINT else "none"
        length = bar(abs(reading.effect) / strongest, 8)
        table.add_row(
            Text(name.replace("_", " ")),
            Text(printable(reading.answer) or "(nothing)"),
            Text(place_in_words(reading.attention)),
            Text(f"{reading.effect:+.2f} {length}", style=colour),
            Text(f"{100 * shares[name]:.0f} %" if name in shares else ""),
            style="bold" if name == decisive and reading.effect > FAINT else "none",
        )
    return table


def place_in_words(attention: Sequence[Sequence[float]] | None) -> str:
    """Where a heatmap is highest, on a grid of three by three: "upper left", "centre", "right"."""
    if attention is None:
        return ""
    rows, columns = len(attention), len(attention[0])
    row, column = max(((r, c) for r in range(rows) for c in range(columns)), key=lambda at: attention[at[0]][at[1]])
    vertical = ("upper", "", "lower")[3 * (2 * row + 1) // (2 * rows)]
    horizontal = ("left", "", "right")[3 * (2 * column + 1) // (2 * columns)]
    return f"{vertical} {horizontal or 'middle' * bool(vertical)}".strip() or "centre"


def counts_table(labels: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Images by label and split, with their sums."""
    table = plain_table("label", *(">" + (printable(split) if split != "all" else "images") for split in counts))
    for label in labels:
        table.add_row(Text(printable(label)), *(f"{of_label.get(label, 0):,}" for of_label in counts.values()))
    table.add_row("total", *(f"{sum(of_label.values()):,}" for of_label in counts.values()), style="bold")
    return table


def evaluation_tables(found: "Evaluation") -> Group:
    """Figures of an evaluation, then those of every label."""
    figures = Table.grid(padding=(0, 2))
    rows = [
        ("accuracy", found.accuracy.percent()),
        *((("exact match", found.exact.accuracy.percent()),) if found.exact else ()),
        ("macro F1", found.macro_f1.percent()),
        ("always the most frequent label", found.majority.percent()),
        *(_chance_rows(found.chances) if found.chances else ()),
    ]
    if found.distribution is not None:
        distance = found.distribution
        rows.append(("divergence from the votes", f"KL {distance.kl.value:.3f}, JS {distance.js.value:.3f} nats"))
        rows.append(("images with votes", str(distance.images)))
    rows.append(("images", f"{found.used} used, {len(found.quarantined)} unreadable"))
    if found.unparsed > found.unanswered:
        rows.append(("answers that name no label", str(found.unparsed - found.unanswered)))
    if found.exact is not None:
        rows.append(("answers that are no label exactly", str(found.exact.unparsed)))
    if found.unanswered:
        rows.append(("images without an answer", str(found.unanswered)))
    for name, value in rows:
        figures.add_row(name, Text(value, style="bold"))
    classes = plain_table("label", ">precision", ">recall", ">F1", ">images")
    for entry in found.classes:
        ratios = (f"{100 * value:.1f} %" for value in (entry.precision, entry.recall, entry.f1))
        classes.add_row(Text(printable(entry.label)), *ratios, str(entry.support))
    title = Text(
        f"{printable(found.system)} on {printable(found.dataset)}, split {found.split}, read by {found.mode}; "
        "intervals hold 95 %",
        style="dim",
    )
    return Group(title, Text(), figures, Text(), classes)


def _chance_rows(found: "ProbabilisticMetrics") -> list[tuple[str, str]]:
    """Figures of the log-probabilities, as a person reads them."""
    rows = [] if found.top2 is None else [("true label among the first two", found.top2.percent())]
    rows.append(("expected calibration error", _beside_floor(found)))
    after = found.calibrated
    if after is not None:
        limit = ", the edge of what was searched" if after.at_limit else ""
        found_in = after.temperature_interval
        ends = "" if found_in is None else f" [{found_in.low:.2f}, {found_in.high:.2f}]"
        fitted = f"temperature {after.temperature:.2f}{ends} from {after.images:,} images of {after.split}{limit}"
        rows.append(("the same after scaling", f"{_beside_floor(after)}; {fitted}"))
    if found.calibration_floor is not None:
        floor = f"what a perfectly calibrated system with these confidences and {found.images:,} images would show"
        rows.append(("calibration floor", floor))
    rows.append(("negative log-likelihood", f"{found.negative_log_likelihood.value:.3f} nats"))
    rows.append(("Brier score", f"{found.brier.value:.3f} of 2"))
    rows.append(("mean risk over all coverages", found.risk_coverage.area.percent()))
    return rows


def _beside_floor(found: "ProbabilisticMetrics | Calibrated") -> str:
    """The calibration error, and what chance alone would show of it where that is known."""
    floor = found.calibration_floor
    return found.calibration_error.percent() + ("" if floor is None else f", floor {floor.percent()}")


def _shares(prediction: "Prediction") -> Mapping[str, float]:
    return prediction.prompt_attention.normalised if prediction.prompt_attention else {}
