"""`masp data check`: what is wrong with data sets, before anything is trained on them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.error_handling import FAILED

if TYPE_CHECKING:
    from rich.console import RenderableType

    from masp.core.config import DataConfig
    from masp.data.validation.check import DatasetCheck, Report
    from masp.data.validation.issues import Issue

EXAMPLES = """
Examples:

`masp data check photos`

`masp data check EmoSet-118K FI data.splits.kind=auto --out check.json`

`masp data check photos data.layout=table --labels calm,stormy --no-images`

`masp data check photos 'data.label_pattern=(?P<label>[a-z]+)\\d+'`
"""

SHOWN = 3
"""Cases of a finding that are printed; the JSON file has more."""


def check_data(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR… [KEY=VALUE…]",
            help="Folders or tables; two or more are compared with each other. Settings such as `data.layout=votes`.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "--json", metavar="FILE", help="Also write all findings, as JSON.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="SET", help="Labels that may occur: a known set, such as *emoset*, or `a,b,c`."),
    ] = None,
    images: Annotated[
        bool, typer.Option(help="Open every image; without it only lists and annotations are read.")
    ] = True,
    near: Annotated[
        int,
        typer.Option(
            min=-1,
            max=10,
            help="Bits of 64 in which the perceptual hashes of near-duplicates may differ; -1: do not look for them. "
            "Needs the images, and the extra *near*.",
        ),
    ] = 4,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Threads that read images.")] = 2,
) -> None:
    """Check data sets: layout, labels, damaged files, copies, near-duplicates, and images in both train and test.

    A data set without published splits is checked undivided, unless a setting says how training divides it:
    `data.splits.kind=auto` is what it does by itself. Nothing is changed. Ends with 1 where there are errors, with 0
    where there are only warnings.
    """
    from masp.cli.console import counting, say, waiting
    from masp.core.progress import Bar
    from masp.data.validation.check import Depth, check
    from masp.data.validation.near_duplicates import hasher
    from masp.data.validation.open_datasets import open_together
    from masp.data.validation.report import write_report

    settings = settings_of(data)
    for one in settings:
        refuse_inside(out, one)
    likeness = hasher() if images and near >= 0 else None
    depth = Depth(images, likeness, max(near, 0), workers, _label_set(labels))
    with waiting("reading lists and annotations"):
        opened = open_together(settings)
    with Bar("images", sum(len(one.records) for one in opened) if images else 0) as bar:
        report = check(opened, depth, counting(bar))
    _show(report)
    if images and near >= 0 and likeness is None:
        say("near-duplicates were not looked for: install ImageHash with pip install 'masp[near]'")
    if out is not None:
        write_report(report, out)
        say(f"all of it is in {out}")
    if report.errors:
        raise typer.Exit(FAILED)


def _show(report: "Report") -> None:
    """The report on stdout; sentences break where the window ends, tables do not."""
    from rich.text import Text

    from masp.cli.console import results

    console = results()
    for part in _told(report):
        console.print(part, soft_wrap=isinstance(part, Text))


def settings_of(data: Sequence[str]) -> "list[DataConfig]":
    """The settings of every data set that is named; words like `data.layout=fi` count for all of them.

    Raises:
        UsageError: a setting of something else, or no data set.
    """
    from masp.core.config import load_config
    from masp.core.errors import UsageError

    changes = [word for word in data if "=" in word and not Path(word).exists()]
    strange = next((word for word in changes if not word.startswith("data.")), None)
    if strange is not None:
        raise UsageError(f"{strange} is neither a path nor a setting of the data", "data.KEY=VALUE", "Correct it.")
    settings = load_config(None, changes).data
    paths = [Path(word) for word in data if word not in changes]
    if not paths:
        raise UsageError("no data set is named", "a folder or a table", "Name at least one.")
    return [settings.model_copy(update={"path": path}) for path in paths]


def refuse_inside(out: Path | None, settings: "DataConfig") -> None:
    """Make sure that nothing is written into a data set.

    Raises:
        UsageError: the output would lie inside the data set's folder.
    """
    from masp.core.errors import UsageError

    root = settings.path
    if out is None or root is None or not root.exists():  # a wrong path is told by whoever opens it
        return
    folder = root if root.is_dir() else root.parent
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{out} lies inside the data set {folder}", "a place outside it", "Choose another --out.")


def _label_set(given: str | None) -> tuple[str, ...] | None:
    from masp.core.errors import UsageError, did_you_mean
    from masp.core.label_mapping import TAXONOMIES
    from masp.core.labels import LABEL_SETS, validate_labels

    if given is None:
        return None
    if "," in given:
        return validate_labels(word.strip() for word in given.split(","))
    known = {**LABEL_SETS, **TAXONOMIES}
    if given not in known:
        wanted = "the name of a set, or labels with commas"
        raise UsageError(f"--labels {given} is no known set", wanted, did_you_mean(given, known))
    return known[given]


def _told(report: "Report") -> "Iterator[RenderableType]":
    from rich.text import Text

    from masp.cli.console import printable
    from masp.core.errors import counted

    for checked in report.data_sets:
        yield from _data_set(checked)
    for pair in report.between:
        yield Text(printable(f"{pair.first} and {pair.second}"), style="bold")
        yield _findings(pair.findings) if pair.findings else Text("share no image", style="green")
        yield Text()
    style = "bold red" if report.errors else "bold yellow" if report.warnings else "bold green"
    yield Text(f"{counted(report.errors, 'error')}, {counted(report.warnings, 'warning')}", style=style)


def _data_set(checked: "DatasetCheck") -> "Iterator[RenderableType]":
    from rich.text import Text

    from masp.cli.console import counts_table, printable
    from masp.core.errors import counted

    title = Text(printable(str(checked.path)), style="bold")
    divided = f", divided: {checked.split_by}" if checked.split_by not in (None, "published") else ""
    title.append(f"  layout {checked.layout or 'unknown'}, {counted(checked.images, 'image')}{divided}", style="dim")
    yield title
    if checked.counts:
        yield counts_table(checked.labels, checked.counts)
    facts = [f"{aspect.replace('_', ' ')} {count:,}" for aspect, count in checked.aspects.items()]
    if facts:
        yield Text(f"annotated: {', '.join(facts)}", style="dim")
    if checked.formats:
        yield Text(f"formats: {', '.join(f'{kind} {n:,}' for kind, n in checked.formats.items())}", style="dim")
    for reason, count in checked.skipped.items():
        yield Text(printable(f"passed over: {count:,} {reason}"), style="dim")
    yield _findings(checked.findings) if checked.findings else Text("nothing to complain about", style="green")
    yield Text()


def _findings(findings: "Sequence[Issue]") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    from masp.cli.console import printable
    from masp.data.validation.issues import KINDS

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        style = "red" if one.severity == "error" else "yellow"
        table.add_row(Text(one.severity, style=style), f"{one.count:,}", Text(KINDS[one.kind].says, style=style))
        for case in one.cases[:SHOWN]:
            table.add_row("", "", Text(printable(case.says), style="dim"))
        if one.count > SHOWN:
            table.add_row("", "", Text(f"… and {one.count - SHOWN:,} more", style="dim"))
    return table
