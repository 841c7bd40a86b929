"""`masp evaluate`: figures on a labelled split."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

`masp evaluate --adapter runs/first --data photos`

`masp evaluate --adapter runs/first --data photos --split val --mode generate --out figures`
"""


class Mode(StrEnum):
    """How the answer is read."""

    score = "score"
    generate = "generate"


def evaluate(
    adapter: Annotated[Path, typer.Option(metavar="DIR", help="The trained adapter, or the folder of its run.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder or table of the data set.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the data, such as `data.splits.kind=paper-like`."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "test",
    mode: Annotated[
        Mode, typer.Option(help="*score*: the most probable label; *generate*: the text must name a label exactly.")
    ] = Mode.score,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write predictions.jsonl and summary.json here.")
    ] = None,
    aspects: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For a prompt that only names its aspects: where they are.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="ID", help="Default: the one the adapter was trained on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
) -> None:
    """Measure an adapter on a labelled split: accuracy with its 95 % interval, every label, calibration.

    A data set without published splits is divided as the adapter's run divided it, where it was trained on it.
    """
    from masp.cli.show import counting, evaluation_tables, results, say
    from masp.config import load_config
    from masp.data.readers import open_dataset
    from masp.errors import UsageError, did_you_mean
    from masp.evaluation.batches import Batching
    from masp.evaluation.division import as_trained
    from masp.evaluation.runner import evaluate as measure
    from masp.predictor import Masp
    from masp.training.progress import Bar

    strange = next((change for change in changes or [] if not change.startswith("data.")), None)
    if strange is not None:
        raise UsageError(
            f"the setting {strange} has no meaning here", "settings that begin with data.", "Leave it out."
        )
    settings = load_config(None, changes or []).data.model_copy(update={"path": data})
    dataset = as_trained(open_dataset(settings), adapter)
    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {data} has no such split", "", did_you_mean(split, dataset.splits))
    records = dataset.split(split)
    masp = Masp.from_pretrained(adapter, backbone=backbone, aspects=aspects)
    with Bar("images", len(records)) as bar:
        batching = Batching(batch_size, longest_side=masp.task.longest_side, progress=counting(bar))
        found = measure(masp, dataset, split, mode.value, batching, out)
    results().print(evaluation_tables(found))
    for bad in found.quarantined:
        say(f"left out {bad.path}: {bad.reason}")
    if out is not None:
        say(f"predictions.jsonl and summary.json are in {out}")
