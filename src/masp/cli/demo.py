"""`masp demo`: the whole method on the embedded default, with one command."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where data, adapters and the report go.")] = Path(
        "masp-demo"
    ),
) -> None:
    """Make data, train both stages, measure, predict, write a report: some minutes, no GPU, weights or internet."""
    from masp.demo import run_demo

    run_demo(out)
