"""Drawings for a comparison of systems: reliability, risk against coverage, and the gain of each aspect.

Like all drawings of the page they are SVG elements whose colours are the page's own.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from masp.plots import ACCENT, INK, LINES, MID, MUTED, PAPER, SOFT, Panel
from masp.report.figures import Coverage, Gain, Reliability
from masp.report.words import words

DASHES = ((0, ()), (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 3)))
"""Patterns of lines, so that nobody has to tell them apart by colour."""
FEW = 10
"""A bin of fewer images than this is drawn without its interval, which would fill the plot."""


def line_style(place: int) -> tuple[str, tuple[float, ...]]:
    """Tone and dash pattern of a line, by its place among the lines."""
    return LINES[place % len(LINES)], DASHES[place % len(DASHES)][1]


def reliability_diagram(found: Reliability) -> bytes:
    """Accuracy over confidence: filled as measured, hollow after temperature scaling; columns hold the images."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        wide = 100 / found.bins
        total = max(sum(one.images for one in found.measured), 1)
        for one in found.measured:
            axes.bar(one.place * wide, 100 * one.images / total, width=wide, align="edge", color=SOFT, zorder=0)
            if one.images >= FEW:
                ends = [100 * one.accuracy.low, 100 * one.accuracy.high]
                axes.plot(2 * [100 * one.confidence], ends, color=MID, linewidth=1.4, zorder=2)
        for part, face, edge in ((found.scaled, PAPER, INK), (found.measured, ACCENT, ACCENT)):
            sure = [100 * one.confidence for one in part]
            right = [100 * one.accuracy.value for one in part]
            axes.plot(
                sure, right, "o-", markersize=5, linewidth=0.9, color=edge, markerfacecolor=face, zorder=3, clip_on=False
            )
        _square(axes)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("right, %", color=MUTED)

    return Panel((3.3, 3.1), draw).render("svg")


def coverage_curves(curves: Sequence[Coverage]) -> bytes:
    """Share of wrong answers among those kept, when a system may decline the images it is least sure of."""

    def draw(axes: Axes) -> None:
        for curve in curves:
            tone, dashes = line_style(curve.place)
            kept, wrong = [100 * c for c in curve.coverage], [100 * r for r in curve.risk]
            axes.plot(kept, wrong, color=tone, linewidth=1.8, linestyle=(0, dashes))
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("answered, % of the images (the surest first)")
        axes.set_ylabel("wrong among them, %", color=MUTED)
        axes.grid(axis="y", color=SOFT, linewidth=0.7)

    return Panel((4.9, 3.1), draw).render("svg")


def gain_bars(gains: Sequence[Gain]) -> bytes:
    """Gain of each aspect in points with its 95 % interval; left of the line it hurts."""

    def draw(axes: Axes) -> None:
        places = range(len(gains))
        axes.barh(places, [100 * gain.points.difference for gain in gains], height=0.5, color=MID)
        for place, gain in zip(places, gains, strict=True):
            ends = [100 * gain.points.low, 100 * gain.points.high]
            axes.plot(ends, [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.plot(ends, [place, place], color=INK, linewidth=0, marker="|", markersize=6)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(places, [words(gain.aspect) for gain in gains])
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.set_xlabel("gain in accuracy, points, with 95 % intervals")

    return Panel((4.9, 0.85 + 0.34 * len(gains)), draw).render("svg")


def _square(axes: Axes) -> None:
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_yticks([0, 25, 50, 75, 100])
