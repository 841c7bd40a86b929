"""`masp reproduce`: the tables and figures of the paper."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from masp.cli.options import Reading

EXAMPLES = """
Examples:

`masp reproduce all --out results --jobs 2`

`masp reproduce table2 --data DATA --backbone Qwen/Qwen2-VL-7B-Instruct --datasets FI,Emotion6 --out runs/table2`

DATA holds one folder for each data set: EmoSet, FI, Emotion6, Flickr, Instagram, Abstract, ArtPhoto. The same command
goes on with what was interrupted; what is there already is not run again.
"""


class What(StrEnum):
    """Tables and figures of the paper."""

    table1 = "table1"
    table2 = "table2"
    table3 = "table3"
    table4 = "table4"
    figure3 = "figure3"
    figure4 = "figure4"
    all = "all"


def reproduce(
    what: Annotated[What, typer.Argument(help="Which table or figure of the paper, or *all*.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings, such as `prompt.learning_rate=0.01` or `qlora.max_steps=100`."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where tables, figures and the result of every run go.")
    ] = Path("reproduced"),
    data: Annotated[
        Path | None,
        typer.Option(metavar="ROOT", help="Folder with one folder for each data set. Default: emoji scenes are drawn."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`.")] = None,
    datasets: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these; also folders of your own. Default: the paper's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Training seeds: 0, 1, 2 …")] = 3,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs side by side; the cores are shared among them.")] = 1,
    aspects: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Aspects trained before. Default: stage 1 is run here.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML.")] = None,
    reading: Annotated[
        Reading,
        typer.Option(
            help="How answers are read. *score*: the most probable label; *generate*: the greedy text, which must be "
            "a label exactly (the paper's measure), counted beside the texts that name one."
        ),
    ] = Reading.score,
    quick: Annotated[
        bool, typer.Option("--quick", help="Some minutes on drawn pictures; its figures mean nothing.")
    ] = False,
) -> None:
    """Run what a table or figure of the paper needs, and write it with the paper's numbers beside it.

    Without --data and --backbone everything runs on the embedded backbone and drawn pictures.
    """
    from masp.cli.console import say
    from masp.core.errors import MaspError
    from masp.reproduce.request import Request, job_of
    from masp.reproduce.run import reproduce as run

    names = None if datasets is None else tuple(name.strip() for name in datasets.split(",") if name.strip())
    asked = (data, backbone, names, seeds, aspects, config, quick, tuple(changes or ()), reading.value)
    request = Request(what.value, out, *asked)
    found = run(job_of(request), jobs, request.command(jobs))
    for outcome in found.failed:
        say(f"not there: {outcome.cell} ({outcome.error})")
    typer.echo(str(found.written[0]))
    if found.failed:
        raise MaspError(
            f"{len(found.failed)} of {found.cells} cells are not there; the tables hold the others",
            "",
            "Give the same command again: it runs only what is missing.",
        )
