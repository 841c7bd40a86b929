"""`masp train`: stage 1, stage 2, or both."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from masp.config import RunConfig
    from masp.training.runs import TrainResult

NONE = "none"


class What(StrEnum):
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
        What, typer.Argument(help="Stage 1 (*aspects*), stage 2 (*prompt*), or *all*: one after the other.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set, or of one folder per label.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run: adapter, checkpoints, metrics.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, such as `prompt.learning_rate=0.01`."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML.")] = None,
    backbone: Annotated[str | None, typer.Option(metavar="ID", help="Hub id, folder, or `embedded`.")] = None,
    aspects: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|none", help="For *prompt*: the aspects to put before the image; `none` trains without."
        ),
    ] = None,
) -> None:
    """Train adapters on a frozen backbone: the aspect modules, then the soft prompt."""
    from masp.errors import UsageError

    settings = _settings(config, changes or [], data, backbone)
    if out is None:
        raise UsageError("--out is missing", "a folder for the run", "Add --out DIR.")
    if what is What.prompt and aspects is None:
        todo = "Add --aspects DIR with a trained stage 1, or --aspects none to train a prompt without aspects."
        raise UsageError("--aspects is missing", "an aspects adapter, or none", todo)
    if what is not What.prompt and aspects is not None:
        raise UsageError(f"--aspects was given to train {what}", "it only with: masp train prompt", "Leave it out.")
    if what is not What.prompt:
        folder = out / "aspects" if what is What.all else out
        _report("aspects", _train_aspects(settings, folder))
        aspects = str(folder)
    if what is not What.aspects:
        _report("prompt", _train_prompt(settings, aspects or NONE, out / "prompt" if what is What.all else out))


def _settings(config: Path | None, changes: list[str], data: Path | None, backbone: str | None) -> "RunConfig":
    """The settings of the file, changed by KEY=VALUE, then by --data and --backbone.

    Raises:
        UsageError: No data, or no backbone.
        ConfigError: The file or a change is wrong.
    """
    from masp.config import load_config
    from masp.errors import UsageError

    settings = load_config(config, changes)
    if backbone is not None:
        settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"id": backbone})})
    elif "id" not in settings.backbone.model_fields_set:
        todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, or embedded."
        raise UsageError("no backbone is named", "the frozen model to train on", todo)
    if data is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": data})})
    elif settings.data.path is None:
        raise UsageError("--data is missing", "the folder of a data set", "Add --data DIR.")
    return settings


def _train_aspects(settings: "RunConfig", out: Path) -> "TrainResult":
    from masp.backbones.loading import load_backbone
    from masp.data.readers import open_dataset
    from masp.training.stage1_aspects import train_aspects

    settings = settings.ready_for("aspects")
    dataset = open_dataset(settings.data)
    return train_aspects(settings, dataset, load_backbone(settings.backbone), out)


def _train_prompt(settings: "RunConfig", aspects: str, out: Path) -> "TrainResult":
    from masp.backbones.loading import load_backbone
    from masp.cli.show import say
    from masp.data.readers import open_dataset
    from masp.training.stage2_prompt import train_prompt

    settings = settings.ready_for("prompt")
    dataset = open_dataset(settings.data)
    if aspects == NONE:
        say("training without aspects (V+S): predictions will come without reasons")
    folder = None if aspects == NONE else Path(aspects)
    return train_prompt(settings, dataset, load_backbone(settings.backbone), folder, out)


def _report(stage: str, result: "TrainResult") -> None:
    """The adapter's folder on stdout, and how it went on stderr."""
    from masp.cli.show import say

    figures = "".join(f", {name} {value:.4g}" for name, value in result.metrics.items())
    pace = f"{result.steps} steps in {result.seconds:.0f} s, {result.examples_per_second:.0f} examples/s"
    say(f"{stage}: {pace}{figures}")
    typer.echo(str(result.adapter))
