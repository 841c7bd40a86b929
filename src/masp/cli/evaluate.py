"""`masp evaluate`: figures on a labelled split."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.options import Device, Dtype, DtypeOption, Revision

if TYPE_CHECKING:
    from masp.config import DataConfig
    from masp.data.records import Dataset
    from masp.evaluation.runner import Evaluation

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
    adapter: Annotated[
        str, typer.Option(metavar="DIR|ID", help="The trained adapter, the folder of its run, or its id on a hub.")
    ],
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
    adapter_revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch of an adapter on a hub.")
    ] = None,
    aspects: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="For a prompt that only names its aspects: where they are.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="For an adapter with several tasks: which.")] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="ID", help="Default: the one the adapter was trained on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    record: Annotated[
        bool, typer.Option("--record", help="Write the accuracy into the adapter's description and model card.")
    ] = False,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Measure an adapter on a labelled split: accuracy with its 95 % interval, every label, calibration.

    A data set without published splits is divided as the adapter's run divided it, where it was trained on it.
    """
    from masp.adapters import find_adapter
    from masp.cli.show import counting
    from masp.errors import UsageError
    from masp.backbones.loading import choose_device
    from masp.evaluation.batches import Batching
    from masp.evaluation.runner import evaluate as measure
    from masp.predictor import Masp
    from masp.training.processes import launched
    from masp.training.progress import Bar

    processes = launched(choose_device(device))
    with processes.guarded():
        home = find_adapter(adapter, adapter_revision)
        if record and not Path(adapter).exists():
            raise UsageError(f"--record with {adapter}, which is on a hub", "an adapter here", "Record, then push it.")
        dataset = _divided(_settings(changes or [], data), split, home, task)
        loading = {"backbone_revision": revision, "dtype": dtype.value, "device": device}
        masp = Masp.from_pretrained(adapter, backbone, aspects=aspects, task=task, revision=adapter_revision, **loading)
        with Bar("images", len(dataset.split(split))) as bar:
            batching = Batching(batch_size, longest_side=masp.task.longest_side, progress=counting(bar))
            found = measure(masp, dataset, split, mode.value, batching, out)
        _tell(found, out)
        if record:
            processes.first(lambda: _record(found, home, task))


def _divided(settings: "DataConfig", split: str, home: Path, task: str | None) -> "Dataset":
    """The data set, divided as the run in `home` divided it.

    Raises:
        UsageError: It has no such split.
    """
    from masp.data.readers import open_dataset
    from masp.errors import UsageError, did_you_mean
    from masp.evaluation.division import as_trained

    dataset = as_trained(open_dataset(settings), home, task)
    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {settings.path} has no such split", "", did_you_mean(split, dataset.splits))
    return dataset


def _record(found: "Evaluation", home: Path, task: str | None) -> None:
    """The accuracy into the adapter's description and card."""
    from masp.adapters import record_result
    from masp.cli.show import say
    from masp.evaluation.runner import result_of

    record_result(home, result_of(found), task)
    say(f"recorded in {home}")


def _tell(found: "Evaluation", out: Path | None) -> None:
    """The figures on stdout, and what else there is to know on stderr."""
    from masp.cli.show import evaluation_tables, results, say

    results().print(evaluation_tables(found))
    for bad in found.quarantined:
        say(f"left out {bad.path}: {bad.reason}")
    if out is not None:
        say(f"predictions.jsonl and summary.json are in {out}")


def _settings(changes: list[str], data: Path) -> "DataConfig":
    """The settings of the data with what the command line changes.

    Raises:
        UsageError: A setting of something else.
        ConfigError: A change is wrong.
    """
    from masp.config import load_config
    from masp.errors import UsageError

    strange = next((change for change in changes if not change.startswith("data.")), None)
    if strange is not None:
        raise UsageError(
            f"the setting {strange} has no meaning here", "settings that begin with data.", "Leave it out."
        )
    return load_config(None, changes).data.model_copy(update={"path": data})
