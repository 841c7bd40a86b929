"""`masp combine`: several soft prompts in one adapter."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Example: `masp combine --out both emoset=runs/a emotion6=runs/b`, then
`masp predict photo.jpg --adapter both --task emotion6`
"""


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]ADAPTER...",
            help="Adapters of one backbone and the same aspects. Default name: that of the data set.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write: a new or empty folder, or an adapter to replace.")
    ],
) -> None:
    """Put several soft prompts over the same aspects into one adapter, each a task with a name of its own."""
    from masp.adapters import combine as put_together
    from masp.cli.console import say

    info = put_together(out, adapters)
    say(f"{len(info.tasks)} tasks: {', '.join(info.tasks)}")
    typer.echo(str(out))
