"""Drawings for a comparison of systems: reliability, risk against coverage, and the gain of each aspect.

Like all drawings of the page they are SVG elements whose colours are the page's own.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from masp.evaluation.metrics import Interval
from masp.report.figures import CurvePlot, PooledBin
from masp.report.formatting import words
from masp.report.plots import ACCENT, INK, LINES, MID, MUTED, PAPER, RULE, SOFT, VARIABLES, Panel

DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 1.6), (1.2, 1.4), (6.0, 1.5, 1.2, 1.5), (3.0, 3.0))
"""Patterns of lines, so that nobody has to tell them apart by colour."""
FEW = 10
"""A bin of fewer images than this is drawn without its interval, which would fill the plot."""
LONGEST = 24
"""Letters of a system's name in a plot."""


def line_style(place: int) -> tuple[str, tuple[float, ...]]:
    """Tone and dash pattern of a line, by its place among the lines."""
    return LINES[place % len(LINES)], DASHES[place % len(DASHES)]


def line_key(place: int) -> tuple[str, str]:
    """The same for the key under a plot: the page's variable, and the dashes in units of the key."""
    tone, dashes = line_style(place)
    return VARIABLES[tone], " ".join(f"{2.4 * length:.1f}" for length in dashes) or "none"


def reliability_diagram(measured: Sequence[PooledBin], scaled: Sequence[PooledBin] = ()) -> str:
    """Accuracy over confidence: filled as measured, hollow after temperature scaling; columns hold the images."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        total = max(sum(one.images for one in measured), 1)
        for one in measured:
            left, wide = 100 * one.low, 100 * (one.high - one.low)
            axes.bar(left, 100 * one.images / total, width=0.94 * wide, align="edge", color=SOFT, zorder=0)
            if one.images >= FEW:
                ends = [100 * one.accuracy.low, 100 * one.accuracy.high]
                axes.plot(2 * [100 * one.confidence], ends, color=MID, linewidth=1.4, zorder=2)
        _line(axes, scaled, PAPER, INK)
        _line(axes, measured, ACCENT, ACCENT)
        _square(axes)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("right, %", color=MUTED)

    return Panel((3.3, 3.1), draw).render("svg").decode()


def coverage_curves(curves: Sequence[tuple[int, CurvePlot]]) -> str:
    """Share of wrong answers among those given, for each system (its place, which chooses the line, and its curve)."""

    def draw(axes: Axes) -> None:
        for place, curve in curves:
            tone, dashes = line_style(place)
            kept, wrong = [100 * c for c in curve.coverage], [100 * r for r in curve.risk]
            axes.plot(kept, wrong, color=tone, linewidth=1.8, linestyle=(0, dashes))
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("answered, % of the images (the surest first)")
        axes.set_ylabel("wrong among them, %", color=MUTED)
        axes.grid(axis="y", color=RULE, linewidth=0.7)

    return Panel((4.4, 3.0), draw).render("svg").decode()


def accuracy_dots(systems: Sequence[tuple[str, Interval]], majority: float | None = None) -> str:
    """Accuracy of every system with its 95 % interval, beside always answering the most frequent label."""

    def draw(axes: Axes) -> None:
        for place, (_, found) in enumerate(systems):
            axes.plot([100 * found.low, 100 * found.high], [place, place], color=MID, linewidth=2.4)
            axes.plot([100 * found.value], [place], "o", markersize=7, color=ACCENT, zorder=3, clip_on=False)
        if majority is not None:
            axes.axvline(100 * majority, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_yticks(range(len(systems)), [_short(name) for name, _ in systems])
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")

    return Panel((4.2, 0.75 + 0.34 * len(systems)), draw).render("svg").decode()


def gain_bars(gains: Sequence[tuple[str, Interval]]) -> str:
    """Gain of each aspect in points with its 95 % interval; left of the line it hurts."""

    def draw(axes: Axes) -> None:
        places = range(len(gains))
        axes.barh(places, [100 * found.value for _, found in gains], height=0.5, color=MID)
        for place, (_, found) in zip(places, gains, strict=True):
            ends = [100 * found.low, 100 * found.high]
            axes.plot(ends, [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.plot(ends, [place, place], color=INK, linewidth=0, marker="|", markersize=6)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(places, [words(aspect) for aspect, _ in gains])
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.set_xlabel("gain in accuracy, points")

    return Panel((4.2, 0.85 + 0.34 * len(gains)), draw).render("svg").decode()


def _line(axes: Axes, bins: Sequence[PooledBin], face: str, edge: str) -> None:
    """The bins as dots on a line; those with few images as small dots beside it."""
    for few in (True, False):
        part = [one for one in bins if (one.images < FEW) == few]
        sure, right = [100 * one.confidence for one in part], [100 * one.accuracy.value for one in part]
        look = (
            {"markersize": 2.2, "linewidth": 0, "color": MUTED, "zorder": 2}
            if few
            else {
                "markersize": 5,
                "linewidth": 0.9,
                "color": edge,
                "markerfacecolor": face,
                "zorder": 3,
            }
        )
        axes.plot(sure, right, "o-", clip_on=False, **look)


def _square(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.grid(axis="y", color=RULE, linewidth=0.7)


def _short(name: str) -> str:
    """A name that leaves room for the plot; the table has it whole."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
