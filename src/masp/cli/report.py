"""`masp report`: one page about the results of evaluations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.options import Accept, BackboneOfAdapter, DeviceIfAny, Dtype, DtypeIfAny, Task, accepted, refuse

if TYPE_CHECKING:
    from masp.predictor import Masp

EXAMPLES = """
Examples:

`masp report figures/zero-shot figures/mine --data photos --out page.html`

`masp report ours=runs/seed0 ours=runs/seed1 ours=runs/seed2 probe=runs/probe --data photos --adapter runs/first`
"""


def report(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT",
            help="What `masp evaluate --out` wrote: its folder or a file in it. NAME=RESULT names the system.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("report.html"),
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set, for the images of the worst mistakes.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID", help="Runs on the images of the worst mistakes, and says what each aspect saw in them."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Head of the page. Default: made from the data sets.")] = None,
    against: Annotated[
        str, typer.Option(metavar="NAME", help="What the others are compared with: *first*, *best* or a system.")
    ] = "first",
    mistakes_of: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose mistakes are shown. Default: the adapter's system, or the best."),
    ] = None,
    mistakes: Annotated[
        int, typer.Option(min=0, max=60, help="How many mistakes are shown, those the system was surest of first.")
    ] = 12,
    task: Task = None,
    backbone: BackboneOfAdapter = None,
    dtype: DtypeIfAny = None,
    device: DeviceIfAny = None,
    accept: Accept = None,
) -> None:
    """Write one page about one or many systems: figures, calibration, confusion, worst mistakes.

    The page works from the disk and loads nothing. Systems on one split of one data set stand side by side; seeds of
    one system become a mean with its standard deviation. What a result does not hold, the page says.
    """
    from masp.cli.console import say
    from masp.report.comparison import comparison
    from masp.report.error_analysis import ErrorPageOptions
    from masp.report.html import write_page
    from masp.report.load_results import read_sources

    if adapter is None:
        of_adapter = {"--task": task, "--backbone": backbone, "--dtype": dtype, "--device": device}
        of_adapter |= {"--accept": accept}
        refuse(of_adapter, "without --adapter", "options of a model only where one runs")
    sources, tables = read_sources(results)
    if data is not None and not data.exists():
        raise _missing(data)
    if adapter is not None and data is None:
        raise _no_pictures(adapter)
    format, names = dtype or Dtype.auto, accepted(accept)
    masp = None if adapter is None else _loaded(adapter, backbone, task, format, device or "auto", names)
    asked = ErrorPageOptions(against, mistakes, data, masp, mistakes_of)
    write_page(out, comparison(sources, tables, asked, title))
    say(f"report: {out}")


def _loaded(
    adapter: str, backbone: str | None, task: str | None, dtype: Dtype, device: str, accept: tuple[str, ...]
) -> "Masp":
    from masp.predictor import Masp

    return Masp.from_pretrained(adapter, backbone, task=task, dtype=dtype.value, device=device, accept=accept)


def _missing(data: Path) -> Exception:
    from masp.core.errors import DataError

    return DataError(f"--data {data} is not there", "the data set's folder", "Correct the path, or leave it out.")


def _no_pictures(adapter: str) -> Exception:
    from masp.core.errors import UsageError

    return UsageError(f"--adapter {adapter} without --data", "the images that it shall explain", "Name both.")
