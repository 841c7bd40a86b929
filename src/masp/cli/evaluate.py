"""`masp evaluate`: figures on a labelled split."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from masp import launch
from masp.cli.options import BatchSize, Device, Dtype, DtypeOption, Revision

if TYPE_CHECKING:
    from masp.config import DataConfig
    from masp.data.records import Dataset
    from masp.evaluation.result import Evaluation

EXAMPLES = """
Examples:

`masp evaluate --adapter runs/first --data photos`

`masp evaluate --adapter runs/first --data photos --mode generate --out figures --against runs/other-figures`

`masp evaluate --predictions theirs.jsonl --data photos`
"""


class Mode(StrEnum):
    """How the answer is read."""

    score = "score"
    generate = "generate"


AdapterOption = Annotated[
    str | None,
    typer.Option(metavar="DIR|ID", help="The trained adapter, the folder of its run, or its id on a hub."),
]
Predictions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Instead of an adapter: what any system said, a JSON object per image."),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Images that --predictions does not name count as wrong.")
]
Against = Annotated[
    Path | None, typer.Option(metavar="RESULT", help="Another --out: which is better on the same images?")
]
Calibrate = Annotated[
    bool, typer.Option(help="Fit a temperature on the split val, and say what calibration is worth after it.")
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write predictions.jsonl and summary.json here; go on if interrupted."),
]


def evaluate(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder or table of the data set.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the data, such as `data.splits.kind=paper-like`."),
    ] = None,
    adapter: AdapterOption = None,
    predictions: Predictions = None,
    allow_missing: AllowMissing = False,
    against: Against = None,
    calibrate: Calibrate = True,
    split: Annotated[str, typer.Option(help="Which split of the data set.")] = "test",
    mode: Annotated[
        Mode, typer.Option(help="*score*: the most probable label; *generate*: the text must name a label exactly.")
    ] = Mode.score,
    out: Out = None,
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
    batch_size: BatchSize = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the accuracy into the adapter's description and model card.")
    ] = False,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Measure an adapter, or what another system said, on a labelled split: accuracy, every label, calibration.

    Intervals hold 95 %. A data set that the adapter was trained on is divided as its run divided it.
    """
    from masp.errors import UsageError

    settings = _settings(changes or [], data)
    other = _result(against)
    if predictions is not None:
        strange = {"--adapter": adapter, "--record": record, "--backbone": backbone, "--task": task}
        wrong = next((option for option, value in strange.items() if value), None)
        if wrong is not None:
            raise UsageError(f"--predictions and {wrong}", "one of them", "Predictions are measured as they are.")
        found = _outside(predictions, settings, split, allow_missing, calibrate, out)
    elif adapter is None:
        raise UsageError("nothing to measure is named", "--adapter DIR, or --predictions FILE", "Name one.")
    else:
        choice = Choice(adapter, adapter_revision, aspects, task, backbone, revision, dtype.value, device)
        found = _measured(choice, settings, split, mode, batch_size, calibrate, out, record)
    _tell(found, out, other)


@dataclass(frozen=True)
class Choice:
    """Which model is measured: the options of the same names."""

    adapter: str
    adapter_revision: str | None
    aspects: str | None
    task: str | None
    backbone: str | None
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"]
    device: str


def _measured(
    choice: Choice,
    settings: "DataConfig",
    split: str,
    mode: Mode,
    batch_size: int | None,
    calibrate: bool,
    out: Path | None,
    record: bool,
) -> "Evaluation":
    """An adapter on a split."""
    from masp.adapters import find_adapter
    from masp.backbones.loading import choose_device
    from masp.cli.show import counting
    from masp.errors import UsageError
    from masp.evaluation.batches import Batching, usual_size
    from masp.evaluation.runner import CALIBRATION
    from masp.evaluation.runner import evaluate as measure
    from masp.predictor import Masp
    from masp.training.processes import launched
    from masp.training.progress import Bar

    processes = launched(choose_device(choice.device))
    with processes.guarded():
        home = find_adapter(choice.adapter, choice.adapter_revision)
        if record and not Path(choice.adapter).exists():
            raise UsageError(
                f"--record with {choice.adapter}, which is on a hub", "an adapter here", "Record, then push it."
            )
        dataset = _divided(settings, split, home, choice.task)
        masp = Masp.from_pretrained(
            choice.adapter,
            choice.backbone,
            aspects=choice.aspects,
            task=choice.task,
            revision=choice.adapter_revision,
            backbone_revision=choice.revision,
            dtype=choice.dtype,
            device=choice.device,
        )
        more = calibrate and mode is Mode.score and split != CALIBRATION
        images = len(dataset.split(split)) + (len(dataset.splits.get(CALIBRATION, ())) if more else 0)
        with Bar("images", images) as bar:
            size = batch_size or usual_size(masp.backbone.dim)
            batching = Batching(size, longest_side=masp.task.longest_side, progress=counting(bar))
            found = measure(masp, dataset, split, mode.value, batching, out, more)
        if record:
            processes.first(lambda: _record(found, home, choice.task))
        return found


def _outside(
    predictions: Path, settings: "DataConfig", split: str, allow_missing: bool, calibrate: bool, out: Path | None
) -> "Evaluation":
    """What another system said, on a split; nothing of a model is loaded."""
    from masp.data.readers import open_dataset
    from masp.evaluation.outside import evaluate_predictions

    mine = out if launch.speaks() else None  # of several processes one writes
    dataset = _with_split(open_dataset(settings), settings, split)
    return evaluate_predictions(predictions, dataset, split, allow_missing=allow_missing, calibrate=calibrate, out=mine)


def _result(place: Path | None) -> "Evaluation | None":
    """The other result, read before anything is measured, so that a wrong name costs nothing."""
    from masp.evaluation.result import read_result

    return None if place is None else read_result(place)


def _divided(settings: "DataConfig", split: str, home: Path, task: str | None) -> "Dataset":
    """The data set, divided as the run in `home` divided it.

    Raises:
        UsageError: It has no such split.
    """
    from masp.data.readers import open_dataset
    from masp.evaluation.division import as_trained

    return _with_split(as_trained(open_dataset(settings), home, task), settings, split)


def _with_split(dataset: "Dataset", settings: "DataConfig", split: str) -> "Dataset":
    """The data set, once it is certain that it has the split.

    Raises:
        UsageError: It has not.
    """
    from masp.errors import UsageError, did_you_mean

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


def _tell(found: "Evaluation", out: Path | None, other: "Evaluation | None") -> None:
    """The figures on stdout, and what else there is to know on stderr."""
    from masp.cli.show import evaluation_tables, results, say

    results().print(evaluation_tables(found))
    for bad in found.quarantined:
        say(f"left out {bad.image}: {bad.reason}")
    if out is not None:
        say(f"predictions.jsonl and summary.json are in {out}")
    if other is not None:
        from masp.cli.compare import differences
        from masp.evaluation.comparison import compare_results

        results().print(differences([(other.system, found.system, compare_results(other, found))]))


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
