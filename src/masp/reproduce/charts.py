"""Images of the tables and figures, drawn with the tools and the palette of `masp.report.plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from masp.core.aspects import ASPECTS
from masp.report.plots import ACCENT, INK, MID, MUTED, RULE, SOFT, Panel
from masp.reproduce.tables import ResultTable, TableRow

TALL = 0.36  # inches of a bar
THUMB = 168  # pixels of an example image


def bars(table: ResultTable, dataset: str, references: Mapping[str, float], paper: bool) -> Panel:
    """Accuracy of every row on one data set with its 95 % interval and, as a hollow mark, the paper's number."""
    rows = [row for row in table.rows if row.entries[dataset].values]

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            _bar(axes, place, row, dataset, paper)
        axes.set_yticks(range(len(rows)), [row.name.replace("_", " ") for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        for name, share in references.items():
            axes.axvline(100 * share, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            place = (100 * share, 1.02)
            text = f"{name} {100 * share:.1f}"
            axes.text(*place, text, transform=axes.get_xaxis_transform(), color=MUTED, ha="center", fontsize=8)
        axes.set_xlabel("accuracy, %; lines: 95 % intervals; dots: seeds")
        axes.set_title(dataset, fontsize=9.5, color=MUTED, pad=18)

    return Panel((6.2, 1.2 + TALL * max(1, len(rows))), draw)


def _bar(axes: Axes, place: int, row: TableRow, dataset: str, paper: bool) -> None:
    entry = row.entries[dataset]
    found = entry.interval
    assert found is not None
    axes.barh(
        [place],
        [100 * found.value],
        height=0.56,
        color=MID if "+S" in row.name or row.name.startswith("MASP") else SOFT,
    )
    axes.plot([100 * found.low, 100 * found.high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
    if len(entry.values) > 1:
        points = [100 * value for value in entry.values]
        axes.plot(points, [place] * len(points), "o", markersize=3, color=ACCENT, zorder=4)
    if paper and entry.paper is not None:
        axes.plot([entry.paper], [place], "D", markersize=6, markerfacecolor="none", markeredgecolor=INK, zorder=5)


def lengths(table: ResultTable, dataset: str) -> Panel:
    """Accuracy over the length of the soft prompt (Table 3), with the paper's numbers where it has some."""
    rows = [row for row in table.rows if row.entries[dataset].values]

    def draw(axes: Axes) -> None:
        sizes = [int(row.name) for row in rows]
        middle = [100 * (row.entries[dataset].mean or 0.0) for row in rows]
        axes.plot(sizes, middle, color=ACCENT, marker="o", markersize=5)
        for size, row in zip(sizes, rows, strict=True):
            found = row.entries[dataset].interval
            assert found is not None
            axes.plot([size, size], [100 * found.low, 100 * found.high], color=INK, linewidth=1.2)
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


def attention(
    dataset: str, shares: Mapping[str, Sequence[float]], examples: Sequence[tuple[Path, str, Mapping[str, float]]]
) -> Panel:
    """Figure 4: share of each aspect in the prompt's attention, over the test split and for example images.

    Args:
        dataset: its name.
        shares: aspect → its mean share with each seed.
        examples: image, a caption, and the shares for it.
    """
    columns = [(f"{dataset}, mean", {name: sum(shares[name]) / len(shares[name]) for name in ASPECTS})]
    columns += [(caption, found) for _, caption, found in examples]

    def draw(axes: Axes) -> None:
        for column, (_, found) in enumerate(columns):
            values = np.array([found[name] for name in ASPECTS])
            left = 1.25 * column
            axes.barh(range(len(ASPECTS)), values / max(values.max(), 1e-9), left=left, height=0.6, color=MID)
            for place, value in enumerate(values):
                axes.text(left + 0.02, place, f"{100 * value:.1f}", va="center", fontsize=8, color=INK)
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
