"""`masp reproduce`: the tables and figures of the paper."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from masp.config import RunConfig
    from masp.reproduce.job import Job

EXAMPLES = """
Examples:

`masp reproduce all --out results --jobs 2`

`masp reproduce table2 --data DATA --backbone Qwen/Qwen2-VL-7B-Instruct --datasets FI,Emotion6 --out runs/table2`

DATA holds one folder for each data set: EmoSet, FI, Emotion6, Flickr, Instagram, Abstract, ArtPhoto. The same command goes
on with what was interrupted; what is there already is not run again.
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
        typer.Argument(metavar="KEY=VALUE", help="Settings, such as `prompt.learning_rate=0.01`."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where tables, figures and the result of every run go.")
    ] = Path("reproduced"),
    data: Annotated[
        Path | None,
        typer.Option(metavar="ROOT", help="Folder with one folder for each data set. Default: emoji scenes are drawn."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(metavar="ID", help="Hub id, folder, or `embedded`.")] = None,
    datasets: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these; also folders of your own. Default: the paper's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Training seeds: 0, 1, 2 …")] = 3,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs side by side; the cores are shared among them.")] = 1,
    aspects: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Aspects trained before. Default: stage 1 is run here.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute on drawn pictures; its figures mean nothing.")
    ] = False,
) -> None:
    """Run what a table or figure of the paper needs, and write it with the paper's numbers beside it.

    Without --data and --backbone everything runs on the embedded backbone and drawn pictures.
    """
    from masp.cli.show import say
    from masp.errors import MaspError
    from masp.reproduce.run import reproduce as run

    names = None if datasets is None else [name.strip() for name in datasets.split(",") if name.strip()]
    job = _job(
        what.value,
        out,
        data,
        backbone,
        names,
        (seeds, quick),
        aspects,
        _settings(config, changes or [], quick, data, backbone),
    )
    found = run(job, jobs, _command(what.value, datasets, backbone, seeds, jobs, quick, changes or []))
    for outcome in found.failed:
        say(f"not there: {outcome.cell} ({outcome.error})")
    typer.echo(str(found.written[0]))
    if found.failed:
        raise MaspError(
            f"{len(found.failed)} of {found.cells} cells are not there; the tables hold the others",
            "",
            "Give the same command again: it runs only what is missing.",
        )


def _settings(
    config: Path | None, changes: list[str], quick: bool, data: Path | None, backbone: str | None
) -> "RunConfig":
    """The settings of the file, or of the embedded default, changed by KEY=VALUE and by --backbone.

    Raises:
        UsageError: Data without a backbone, or a quick run of something else than the embedded default.
        ConfigError: The file or a change is wrong.
    """
    from masp.config import load_config
    from masp.errors import UsageError
    from masp.reproduce.job import embedded_config

    if data is not None and backbone is None:
        todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, or embedded."
        raise UsageError("--data was given without --backbone", "both, or neither", todo)
    if quick and (data is not None or config is not None):
        raise UsageError("--quick was given with data or settings", "it only on drawn pictures", "Leave one out.")
    settings = embedded_config(changes, quick) if data is None and config is None else load_config(config, changes)
    if backbone is None:
        return settings
    return settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"id": backbone})})


def _job(
    what: str,
    out: Path,
    data: Path | None,
    backbone: str | None,
    datasets: list[str] | None,
    size: tuple[int, bool],
    aspects: str | None,
    settings: "RunConfig",
) -> "Job":
    """What is asked, once it is certain that there is something to run.

    Raises:
        UsageError: No data set is there, or names of data sets without data.
        AdapterError: No aspects there.
    """
    from masp.adapters import find_adapter
    from masp.errors import UsageError
    from masp.reproduce import job

    seeds, quick = size
    adapter = None if aspects is None else find_adapter(aspects)
    common = {"experiments": job.experiments_of(what), "config": settings, "seeds": tuple(range(seeds)), "out": out}
    if data is None:
        if datasets is not None:
            raise UsageError("--datasets was given without --data", "the folder they are in", "Add --data ROOT.")
        plan = job.QUICK if quick else job.SCENES
        return job.Job(**common, sources=(job.drawn_source(out / "work"),), missing=(), adapter=adapter, drawn=plan)
    paper = job.load_paper()
    sources, missing = job.find_sources(data, datasets, settings.data, paper)
    teacher = job.find_teacher(data, settings.data, sources, paper)
    return job.Job(**common, sources=sources, missing=missing, teacher=teacher, adapter=adapter)


def _command(
    what: str, datasets: str | None, backbone: str | None, seeds: int, jobs: int, quick: bool, changes: list[str]
) -> str:
    """How it was asked, without places on this machine."""
    words = ["masp reproduce", what]
    words += ["--data ROOT"] if backbone is not None else []
    words += [f"--backbone {backbone}"] if backbone is not None and not Path(backbone).exists() else []
    words += [f"--datasets {datasets}"] if datasets is not None else []
    words += [f"--seeds {seeds}", f"--jobs {jobs}"] + (["--quick"] if quick else [])
    return " ".join([*words, *changes])
