"""`masp train`: stage 1, stage 2, or both."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.console import say
from masp.core.errors import UsageError

if TYPE_CHECKING:
    from masp.core.config import RunConfig
    from masp.training import TrainResult

NONE = "none"


class StageChoice(StrEnum):
    """What to train."""

    aspects = "aspects"
    prompt = "prompt"
    all = "all"


EXAMPLES = """
Examples:

`masp train all --data photos --backbone Qwen/Qwen2-VL-7B-Instruct --out runs/first`

`masp train prompt --data my_folder --backbone embedded --aspects none --out runs/plain prompt.epochs=5`

The same command goes on with a run that was interrupted.
"""


def train(
    what: Annotated[
        StageChoice, typer.Argument(help="Stage 1 (*aspects*), stage 2 (*prompt*), or *all*: one after the other.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder or table of the data set. Needed, unless the settings name it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run: adapter, checkpoints, metrics. Needed.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, such as `prompt.learning_rate=0.01`."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as YAML; KEY=VALUE wins over them.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`. Needed, unless the settings name it."),
    ] = None,
    aspects: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID|none",
            help="For *prompt*: the adapter with the aspects to put before the image. Default: `none`.",
        ),
    ] = None,
) -> None:
    """Train adapters on a frozen backbone: the aspect modules, then the soft prompt."""
    from masp.adapters import find_adapter

    settings = _settings(config, changes or [], data, backbone)
    if out is None:
        raise UsageError("--out is missing", "a folder for the run", "Add --out DIR.")
    if what is not StageChoice.prompt and aspects is not None:
        raise UsageError(f"--aspects was given to train {what}", "it only with: masp train prompt", "Leave it out.")
    if what is StageChoice.aspects:
        _train(settings.ready_for("aspects"), out, None, None)
    elif what is StageChoice.prompt:
        adapter = None if aspects in (None, NONE) else find_adapter(aspects)
        _train(settings.ready_for("prompt"), None, out, adapter)
    else:
        both = settings.ready_for("aspects").ready_for("prompt")
        _train(both, out / "aspects", out / "prompt", out / "aspects")


def _settings(config: Path | None, changes: list[str], data: Path | None, backbone: str | None) -> "RunConfig":
    """The settings of the file, changed by KEY=VALUE, then by --data and --backbone.

    Raises:
        UsageError: No data, or no backbone.
        ConfigError: The file or a change is wrong.
    """
    from masp.core.config import load_config

    settings = load_config(config, changes)
    if backbone is not None:
        settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"id": backbone})})
    elif "id" not in settings.backbone.model_fields_set:
        todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, embedded, or photo."
        raise UsageError("no backbone is named", "the frozen model to train on", todo)
    if data is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": data})})
    elif settings.data.path is None:
        raise UsageError("--data is missing", "the folder of a data set", "Add --data DIR.")
    return settings


def _train(settings: "RunConfig", first: Path | None, second: Path | None, aspects: Path | None) -> None:
    """Stage 1 into the folder `first`, stage 2 with these aspects into `second`; None leaves a stage out."""
    from masp.backbones.loading import choose_placement, load_backbone
    from masp.data.readers.open_dataset import open_dataset
    from masp.training import train_aspects, train_prompt
    from masp.training.distributed import launched

    placement = choose_placement(settings.backbone.dtype, settings.backbone.device)
    with launched(placement.device).guarded():
        if second is not None and aspects is None:
            say("training without aspects (V+S): predictions will come without reasons; --aspects DIR trains with them")
        dataset = open_dataset(settings.data)
        loaded = load_backbone(settings.backbone)
        if first is not None:
            _report("aspects", train_aspects(settings, dataset, loaded, first))
        if second is not None:
            _report("prompt", train_prompt(settings, dataset, loaded, aspects, second))


def _report(stage: str, trained: "TrainResult") -> None:
    """The adapter's folder on stdout, and how it went on stderr."""
    figures = "".join(f", {name} {value:.4g}" for name, value in trained.metrics.items())
    pace = f"{trained.steps} steps in {trained.seconds:.0f} s, {trained.examples_per_second:.0f} examples/s"
    say(f"{stage}: {pace}{figures}")
    typer.echo(str(trained.adapter))
