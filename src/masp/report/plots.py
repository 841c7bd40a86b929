"""Images of numbers, as PNG, PDF or SVG bytes.

Only this module and the figures of `masp reproduce` import matplotlib. Figures are objects of their own (no pyplot, no
global state). An SVG carries the variables of the page instead of colours, so that one drawing fits light and dark.
"""

import io
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from masp.evaluation.metrics import Interval
from masp.report.load_results import CurvePlot, PooledBin
from masp.report.schema import Ablation, AspectScore, Curve, words

Kind = Literal["svg", "png", "pdf"]
INK, MUTED, RULE, ACCENT, MID, SOFT, PAPER = "#1d2026", "#5a606b", "#d9d5cc", "#0b6e69", "#74b4ad", "#cbdcd8", "#fdfcfa"
"""The light palette. Each tone also names the page's variable that replaces it in an SVG."""
NAMES = ("--ink", "--muted", "--rule", "--accent", "--mid", "--soft", "--paper")
LINES = (ACCENT, "#a8431f", "#2f5fb3", "#7a4fa3", "#756500", MUTED)
"""Tones of several lines in one plot, told apart by their dashes too."""
VARIABLES = {
    **dict(zip((INK, MUTED, RULE, ACCENT, MID, SOFT, PAPER), NAMES, strict=True)),
    **dict(zip(LINES[1:5], ("--against", "--blue", "--violet", "--olive"), strict=True)),
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "masp",
    "pdf.fonttype": 42,
    "font.size": 9.5,
    "axes.unicode_minus": True,
}
"""What matplotlib must know while it draws; the salt makes the same figure the same bytes, 42 is TrueType."""
DARK_VEIL, LIGHT_VEIL = (24, 20, 48), (214, 210, 204)
"""RGB of the veils that cover what an aspect did not look at, over ordinary and over dark images."""


@dataclass(frozen=True)
class Panel:
    """A figure of this size in inches whose single axes `draw` fills."""

    size: tuple[float, float]
    draw: Callable[[Axes], None]

    def render(self, kind: Kind) -> bytes:
        """The figure as bytes; the same figure gives the same bytes."""
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
            figure = Figure(figsize=self.size, layout="constrained")
            axes = figure.add_subplot()
            _quiet(axes)
            self.draw(axes)
            for text in figure.findobj(Text):
                text.set_parse_math(False)
            return _saved(figure, kind)


def ablation_bars(ablation: Ablation, kind: Kind = "svg") -> bytes:
    """Accuracy of each row with its 95 % interval, beside the ceiling and the majority class (Table 2)."""

    def draw(axes: Axes) -> None:
        positions = range(len(ablation.rows))
        values = [100 * row.accuracy.value for row in ablation.rows]
        tones = [SOFT] * (len(values) - 1) + [MID]
        axes.barh(positions, values, height=0.56, color=tones)
        for row_position, row in zip(positions, ablation.rows, strict=True):
            low, high = 100 * row.accuracy.low, 100 * row.accuracy.high
            axes.plot([low, high], [row_position, row_position], color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.plot([low, high], [row_position, row_position], color=INK, linewidth=0, marker="|", markersize=6)
        axes.set_yticks(positions, [row.name for row in ablation.rows])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        near = (ablation.ceiling or 1) - (ablation.majority or 0) < 0.34
        _reference(axes, ablation.majority, "majority", "right" if near else "center")
        _reference(axes, ablation.ceiling, "ceiling", "left" if near else "center")
        axes.set_xlabel("accuracy, %, with 95 % intervals")

    return Panel((4.9, 0.95 + 0.36 * len(ablation.rows)), draw).render(kind)


def aspect_bars(scores: Sequence[AspectScore], kind: Kind = "svg") -> bytes:
    """Per aspect: named from its aspect tokens (filled) against the frozen backbone's own answer (hollow)."""

    def draw(axes: Axes) -> None:
        for index, score in enumerate(scores):
            own = 100 * score.aspect_tokens
            if score.backbone is not None:
                base = 100 * score.backbone
                axes.plot([base, own], [index, index], color=SOFT, linewidth=3, solid_capstyle="butt", zorder=1)
                hollow = {"markerfacecolor": PAPER, "markeredgecolor": MUTED, "clip_on": False}
                axes.plot([base], [index], "o", markersize=7, zorder=3, **hollow)
            axes.plot([own], [index], "o", markersize=7, color=ACCENT, zorder=4, clip_on=False)
        axes.set_yticks(range(len(scores)), [score.aspect.replace("_", " ") for score in scores])
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("named correctly, %")

    return Panel((4.9, 0.75 + 0.32 * len(scores)), draw).render(kind)


def loss_curve(curve: Curve, kind: Kind = "svg") -> bytes:
    """The loss over the steps: every value faintly, and its running mean."""

    def draw(axes: Axes) -> None:
        losses, steps = np.asarray(curve.losses, dtype=float), np.asarray(curve.steps)
        window = max(1, len(losses) // 40)
        axes.plot(steps, losses, color=MID, linewidth=0.6, marker="." if len(losses) < 3 else "")
        if window > 1:
            axes.plot(steps[window - 1 :], np.convolve(losses, np.full(window, 1 / window), "valid"), color=ACCENT)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
        axes.grid(axis="x", visible=False)
        axes.grid(axis="y", color=RULE, linewidth=0.7)

    return Panel((3.7, 1.9), draw).render(kind)


def attention_veil(attention: Sequence[Sequence[float]], dark: bool = False, long_side: int = 168) -> bytes:
    """A transparent PNG to lay over an image: clear where an aspect looked, veiled where it did not.

    The weights are relative to the largest one, or to three times an even spread where the largest is less than that,
    so that an attention that looks everywhere does not appear to look somewhere. Between cell centres they are
    interpolated; draw the cells (`cell_lines`) over it to show how coarse they really are.

    Args:
        attention: weights over the image's cells, rows from the top; at least one cell.
        dark: whether the image is dark, so that its veil must be light.
        long_side: of the PNG, in pixels.

    Returns:
        PNG bytes, RGBA.
    """
    cells = np.asarray(attention, dtype=np.float32)
    even = cells.sum() / cells.size
    shown = cells / max(float(cells.max()), 3 * float(even), 1e-12)
    scale = long_side / max(cells.shape)
    width, height = (max(1, round(n * scale)) for n in cells.shape[::-1])
    smooth = np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    pixels = np.empty((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = LIGHT_VEIL if dark else DARK_VEIL
    pixels[..., 3] = np.round(255 * 0.86 * (1 - smooth) ** 1.25)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def cell_lines(rows: int, columns: int, width: int, height: int) -> str:
    """The inner borders of an image's cells as the `d` of an SVG path, in the units of `width` and `height`."""
    down = (f"M{width * i / columns:.2f} 0V{height}" for i in range(1, columns))
    across = (f"M0 {height * i / rows:.2f}H{width}" for i in range(1, rows))
    return "".join([*down, *across])


def _quiet(axes: Axes) -> None:
    """Takes away every line that carries no information."""
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, colors=MUTED, labelcolor=INK)
    axes.xaxis.label.set_color(MUTED)
    axes.grid(axis="x", color=RULE, linewidth=0.7)


def _reference(axes: Axes, share: float | None, name: str, side: Literal["left", "center", "right"]) -> None:
    """A dashed vertical line at a share in [0, 1], named above the axes."""
    if share is None:
        return
    axes.axvline(100 * share, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    position = (100 * share, 1.02)
    text = f"{name} {100 * share:.1f}"
    axes.text(*position, text, transform=axes.get_xaxis_transform(), color=MUTED, ha=side, va="bottom", fontsize=8.5)


def _saved(figure: Figure, kind: Kind) -> bytes:
    """The figure's bytes: PNG on paper, PDF on none, or an SVG without dates, addresses or colours of its own."""
    buffer = io.BytesIO()
    if kind != "svg":
        page, left_out = {"png": (PAPER, "Software"), "pdf": ("none", "CreationDate")}[kind]
        figure.savefig(buffer, format=kind, dpi=200, facecolor=page, metadata={left_out: None})
        return buffer.getvalue()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue().decode()).encode()


def _inline(svg: str) -> str:
    """An SVG document as an element for an HTML page: no prolog, metadata, fonts, or ids that no one refers to."""
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg).replace('xlink:href="', 'href="')
    used, own = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)), f"p{zlib.crc32(svg.encode()):x}"
    svg = re.sub(r' id="([^"]*)"', lambda result: result[0] if result[1] in used else "", svg)
    for name in used:
        svg = svg.replace(f'id="{name}"', f'id="{own}{name}"').replace(f"#{name}", f"#{own}{name}")
    for colour, variable in VARIABLES.items():
        svg = re.sub(f"(fill|stroke): {colour}", rf"\1: var({variable})", svg)
    return svg


DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 1.6), (1.2, 1.4), (6.0, 1.5, 1.2, 1.5), (3.0, 3.0))
"""Patterns of lines, so that they can be told apart without colour."""
FEW = 10
"""A bin of fewer images than this is drawn without its interval, which would fill the plot."""
LONGEST = 24
"""Letters of a system's name in a plot."""


def line_style(index: int) -> tuple[str, tuple[float, ...]]:
    """Tone and dash pattern of a line, by its place among the lines."""
    return LINES[index % len(LINES)], DASHES[index % len(DASHES)]


def line_key(index: int) -> tuple[str, str]:
    """The same for the key under a plot: the page's variable, and the dashes in units of the key."""
    tone, dashes = line_style(index)
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
        for index, curve in curves:
            tone, dashes = line_style(index)
            coverage, wrong = [100 * c for c in curve.coverage], [100 * r for r in curve.risk]
            axes.plot(coverage, wrong, color=tone, linewidth=1.8, linestyle=(0, dashes))
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("answered, % of the images (the surest first)")
        axes.set_ylabel("wrong among them, %", color=MUTED)
        axes.grid(axis="y", color=RULE, linewidth=0.7)

    return Panel((4.4, 3.0), draw).render("svg").decode()


def accuracy_dots(systems: Sequence[tuple[str, Interval]], majority: float | None = None) -> str:
    """Accuracy of every system with its 95 % interval, beside always answering the most frequent label."""

    def draw(axes: Axes) -> None:
        for index, (_, interval) in enumerate(systems):
            axes.plot([100 * interval.low, 100 * interval.high], [index, index], color=MID, linewidth=2.4)
            axes.plot([100 * interval.value], [index], "o", markersize=7, color=ACCENT, zorder=3, clip_on=False)
        if majority is not None:
            axes.axvline(100 * majority, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_yticks(range(len(systems)), [_shortened(name) for name, _ in systems])
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")

    return Panel((4.2, 0.75 + 0.34 * len(systems)), draw).render("svg").decode()


def gain_bars(gains: Sequence[tuple[str, Interval]]) -> str:
    """Gain of each aspect in points with its 95 % interval; left of the line it hurts."""

    def draw(axes: Axes) -> None:
        positions = range(len(gains))
        axes.barh(positions, [100 * gain.value for _, gain in gains], height=0.5, color=MID)
        for position, (_, gain) in zip(positions, gains, strict=True):
            ends = [100 * gain.low, 100 * gain.high]
            axes.plot(ends, [position, position], color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.plot(ends, [position, position], color=INK, linewidth=0, marker="|", markersize=6)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(positions, [words(aspect) for aspect, _ in gains])
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


def _shortened(name: str) -> str:
    """A name that leaves room for the plot; the table has it whole."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
