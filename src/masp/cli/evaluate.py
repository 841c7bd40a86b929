"""`masp evaluate`: figures on a labelled split."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.measuring import data_settings, measured, tell, with_split
from masp.cli.options import (
    Accept,
    AdapterRevision,
    AspectsOfPrompt,
    BackboneOfAdapter,
    BatchSize,
    Calibrate,
    DeviceIfAny,
    Dtype,
    DtypeIfAny,
    Raw,
    Reading,
    Revision,
    Task,
    accepted,
    refuse,
)
from masp.core import launch

if TYPE_CHECKING:
    from masp.core.config import DataConfig
    from masp.data.records import Dataset
    from masp.evaluation.result import Evaluation

EXAMPLES = """
Examples:

`masp evaluate --adapter runs/first --data photos`

`masp evaluate --adapter runs/first --data photos --mode generate --out figures --against runs/other-figures`

`masp evaluate --predictions theirs.jsonl --data photos`
"""


AdapterOption = Annotated[
    str | None,
    typer.Option(metavar="DIR|ID", help="The trained adapter, the folder of its run, or its id on a hub."),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Instead of an adapter: what any system said, a JSON object per image. No model runs, so that options of "
        "a model are refused.",
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="With --predictions: images that FILE does not name count as wrong.")
]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="RESULT", help="What another `masp evaluate --out` wrote: which of the two is better, image by image?"
    ),
]
AnswerMode = Annotated[
    Reading | None,
    typer.Option(
        "--mode",
        "--reading",
        help="How an answer is read. *score*: the most probable label; *generate*: the label that the greedy text "
        "names, and beside it the exact matches (the paper's measure). Default: *score*.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Write predictions.jsonl and summary.json here; the same command goes on if interrupted."
    ),
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
    split: Annotated[str, typer.Option(help="Which split of the data set is measured.")] = "test",
    mode: AnswerMode = None,
    out: Out = None,
    adapter_revision: AdapterRevision = None,
    aspects: AspectsOfPrompt = None,
    task: Task = None,
    backbone: BackboneOfAdapter = None,
    batch_size: BatchSize = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the accuracy into the adapter's description and model card.")
    ] = False,
    revision: Revision = None,
    dtype: DtypeIfAny = None,
    device: DeviceIfAny = None,
    accept: Accept = None,
    raw: Raw = False,
) -> None:
    """Measure an adapter, or what another system said, on a labelled split: accuracy, every label, calibration.

    Intervals hold 95 %. A data set that the adapter was trained on is divided as its run divided it.
    """
    from masp.core.errors import UsageError

    model = (adapter, adapter_revision, aspects, task, backbone, revision, dtype, device)
    choice = Choice(*model, batch_size, mode, record, accept, raw)
    if predictions is not None:
        refuse(choice.options(), "with --predictions", "options of a model only where one runs, and here none does")
    else:
        refuse({"--allow-missing": allow_missing}, "without --predictions", "it only with --predictions FILE")
    settings = _settings(changes or [], data)
    other = _result(against)
    if predictions is not None:
        found = _outside(predictions, settings, split, allow_missing, calibrate, out)
    elif adapter is None:
        raise UsageError("nothing to measure is named", "--adapter DIR, or --predictions FILE", "Name one.")
    else:
        found = _measured(adapter, choice, settings, split, calibrate, out)
    tell(found, out)
    if other is not None:
        _compare(other, found)


@dataclass(frozen=True)
class Choice:
    """Which model is measured, and how: the options of the same names, None where nobody gave them."""

    adapter: str | None
    adapter_revision: str | None
    aspects: str | None
    task: str | None
    backbone: str | None
    revision: str | None
    dtype: Dtype | None
    device: str | None
    batch_size: int | None
    mode: Reading | None
    record: bool
    accept: str | None
    raw: bool

    def options(self) -> dict[str, object]:
        """The values by the names of the options."""
        return {f"--{name.replace('_', '-')}": value for name, value in vars(self).items()}


def _measured(
    adapter: str, choice: Choice, settings: "DataConfig", split: str, calibrate: bool, out: Path | None
) -> "Evaluation":
    """An adapter on a split."""
    from masp.adapters import find_adapter
    from masp.backbones.loading import choose_placement
    from masp.core.errors import UsageError
    from masp.evaluation.batches import Batching
    from masp.predictor import Masp
    from masp.training.distributed import launched

    dtype, device, mode = (choice.dtype or Dtype.auto).value, choice.device or "auto", choice.mode or Reading.score
    processes = launched(choose_placement(dtype, device).device)
    with processes.guarded():
        home = find_adapter(adapter, choice.adapter_revision)
        if choice.record and not Path(adapter).exists():
            raise UsageError(f"--record with {adapter}, which is on a hub", "an adapter here", "Record, then push it.")
        _check_size(settings, home, choice.task)
        dataset = _divided(settings, split, home, choice.task)
        masp = Masp.from_pretrained(
            adapter,
            choice.backbone,
            aspects=choice.aspects,
            task=choice.task,
            revision=choice.adapter_revision,
            backbone_revision=choice.revision,
            dtype=dtype,
            device=device,
            accept=accepted(choice.accept),
            raw=choice.raw,
        )
        task = masp.task
        batching = Batching(choice.batch_size, settings.workers, task.longest_side, task.rounding)
        found = measured(masp, dataset, split, mode.value, batching, calibrate and mode is Reading.score, out)
        if choice.record:
            processes.first(lambda: _record(found, home, choice.task, fitted=task.temperature == 1))
        return found


def _check_size(settings: "DataConfig", home: Path, task: str | None) -> None:
    """Images are as large as the adapter was trained with, whatever the settings say.

    Raises:
        UsageError: They say something else.
    """
    from masp.adapters import read_info
    from masp.core.errors import UsageError

    trained = read_info(home).for_task(task).longest_side
    if "longest_side" in settings.model_fields_set and settings.longest_side != trained:
        got = f"data.longest_side={settings.longest_side or 'null'}"
        expected = f"{trained or 'null'}, the size that the adapter was trained with and is measured with"
        raise UsageError(got, expected, "Leave it out, or train with another size.")


def _outside(
    predictions: Path, settings: "DataConfig", split: str, allow_missing: bool, calibrate: bool, out: Path | None
) -> "Evaluation":
    """What another system said, on a split; nothing of a model is loaded."""
    from masp.data.readers.open_dataset import open_dataset
    from masp.evaluation.external_predictions import evaluate_predictions

    mine = out if launch.speaks() else None  # of several processes one writes
    dataset = with_split(open_dataset(settings), settings, split)
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
    from masp.data.readers.open_dataset import open_dataset
    from masp.evaluation.division import as_trained

    return with_split(as_trained(open_dataset(settings), home, task), settings, split)


def _record(found: "Evaluation", home: Path, task: str | None, fitted: bool) -> None:
    """The accuracy into the adapter's description and card, and the temperature, if it was `fitted` to raw scores."""
    from masp.adapters import record_result
    from masp.cli.console import say
    from masp.evaluation.metrics import CALIBRATION_IMAGES
    from masp.evaluation.runner import result_of

    scaled = None if found.chances is None else found.chances.calibrated
    usable = scaled is not None and fitted and scaled.images >= CALIBRATION_IMAGES
    temperature = scaled.temperature if scaled is not None and usable else None
    record_result(home, result_of(found), task, temperature)
    told = "" if temperature is None else f", with the temperature {temperature:.3f}"
    say(f"recorded in {home}{told}")


def _compare(other: "Evaluation", found: "Evaluation") -> None:
    """How much more, or less, than the other result was right on the same images."""
    from masp.cli.compare import differences
    from masp.cli.console import results
    from masp.evaluation.comparison import compare_results

    results().print(differences([(other.system, found.system, compare_results(other, found))]))


def _settings(changes: list[str], data: Path) -> "DataConfig":
    """The settings of the data with what the command line changes.

    Raises:
        UsageError: A setting of something else.
        ConfigError: A change is wrong.
    """
    from masp.core.errors import UsageError

    strange = next((change for change in changes if not change.startswith("data.")), None)
    if strange is not None:
        raise UsageError(
            f"the setting {strange} has no meaning here", "settings that begin with data.", "Leave it out."
        )
    return data_settings(changes, data)
