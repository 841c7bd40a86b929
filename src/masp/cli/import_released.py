"""`masp import-released`: checkpoints of the authors' code in, an adapter out."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Example:

`masp import-released --aspects aspect.pth --soft-prompt soft_prompt_emotion6.pt --questions prompts.json
--backbone Qwen/Qwen2-VL-7B-Instruct --out emotion6`
"""


def import_released(
    backbone: Annotated[str, typer.Option(metavar="ID", help="The backbone they were trained on: hub id or folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the adapter; new or empty.")],
    aspects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Aspect modules (`aspect.pth`). Without: a prompt alone (V+S).")
    ] = None,
    soft_prompt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A soft prompt (`soft_prompt_….pt`). Without: aspects alone.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="Labels of the soft prompt: a data set's name, or a list with commas. Default: `emotion6`.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The questions it was trained with, as JSON. Default: the package's own."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch of the backbone on a hub.")
    ] = None,
) -> None:
    """Convert checkpoints of the authors' released code to an adapter of the variant `released`.

    Nothing in the files is run: they are refused if they hold anything but the expected tensors.
    """
    from masp.adapters.import_released import import_released as convert
    from masp.adapters.import_released import labels_of
    from masp.cli.console import say
    from masp.core.errors import UsageError

    if soft_prompt is None:
        if labels is not None:
            raise UsageError("--labels was given without a soft prompt", "it only with --soft-prompt", "Leave it out.")
        info = convert(out, backbone, aspects, None, questions=questions, revision=revision)
    else:
        info = convert(out, backbone, aspects, soft_prompt, labels_of(labels, soft_prompt), questions, revision)
        say(f"labels: {', '.join(info.labels)}" + ("" if labels else " (Emotion6; name others with --labels)"))
        if questions is None:
            say("questions: the package's own, not those it was trained with; name a file with --questions")
    holds = [f"{len(info.aspects)} aspects with {info.method.queries} queries each"] * bool(info.aspects)
    holds += [f"a soft prompt of {info.prompt_length} vectors"] * bool(info.prompt_length)
    say(f"imported {' and '.join(holds)} for {info.backbone.name} (width {info.backbone.dim})")
    typer.echo(str(out))
