"""`masp compare`: results of `masp evaluate` beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from masp.evaluation.metrics import PairedComparison
    from masp.evaluation.result import Evaluation

EXAMPLES = """
Examples:

`masp compare figures/zero-shot figures/masp`

`masp compare --seeds figures/seed0 figures/seed1 figures/seed2`
"""


def compare(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT...", help="Folders that `masp evaluate --out` or `masp baseline` wrote."),
    ],
    seeds: Annotated[
        bool, typer.Option("--seeds", help="They are one system with several seeds: give mean and standard deviation.")
    ] = False,
) -> None:
    """Compare results on the same images: each with the first one, image by image (McNemar's test).

    Nothing is computed again, and no model is loaded.
    """
    from masp.cli.console import results
    from masp.core.errors import UsageError
    from masp.evaluation.compute_metrics import compare_results
    from masp.evaluation.result import read_result

    found = [read_result(place) for place in places]
    if seeds:
        results().print(_spreads(found))
        return
    if len(found) < 2:
        raise UsageError("one result", "two or more to compare", "Name another one.")
    pairs = [(found[0].system, other.system, compare_results(found[0], other)) for other in found[1:]]
    results().print(_standings(found))
    results().print(differences(pairs))


def differences(pairs: "Sequence[tuple[str, str, PairedComparison]]") -> Table:
    """How much more the second system of each pair gets right than the first."""
    table = _table("difference in accuracy", "points", "only the second is right", "only the first", "McNemar's p")
    for first, second, paired in pairs:
        counts = (str(paired.only_second), str(paired.only_first))
        table.add_row(_name(f"{second} - {first}"), paired.points(), *counts, f"{paired.p_value:.3g}")
    return table


def _standings(found: "Sequence[Evaluation]") -> Table:
    table = _table("system", "accuracy", "macro F1", "images")
    for one in found:
        table.add_row(_name(one.system), one.accuracy.percent(), one.macro_f1.percent(), str(one.used))
    return table


def _spreads(found: "Sequence[Evaluation]") -> Table:
    from masp.evaluation.compute_metrics import over_seeds

    table = _table(f"over {len(found)} results", "mean", "standard deviation", "each")
    for name, spread in over_seeds(found).items():
        deviation = "" if spread.deviation is None else f"{spread.deviation:.4f}"
        each = ", ".join(f"{value:.4f}" for value in spread.values)
        table.add_row(name.replace("_", " "), f"{spread.mean:.4f}", deviation, each)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _name(text: str) -> Text:
    from masp.cli.console import printable

    return Text(printable(text))
