"""`masp evaluate`, `masp compare` and `masp report`: figures on a labelled split, beside each other, and on a page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from masp.cli.console import evaluation_tables, plain_table, printable, results, say
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
    NoConcepts,
    Raw,
    ReadingMode,
    Revision,
    Task,
    accepted,
    refuse,
)
from masp.core import runtime
from masp.core.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from masp.baselines.base import System
    from masp.core.config import DataConfig
    from masp.data.records import Dataset
    from masp.evaluation.metrics import PairedComparison
    from masp.evaluation.predict_split import Batching
    from masp.evaluation.result import Evaluation, Mode
    from masp.predictor import Masp


def data_settings(changes: Sequence[str], data: Path) -> "DataConfig":
    """The settings of the data with what the command line changes.

    Raises:
        ConfigError: A change is wrong.
    """
    from masp.core.config import load_config

    return load_config(None, changes).data.model_copy(update={"path": data})


def with_split(dataset: "Dataset", settings: "DataConfig", split: str) -> "Dataset":
    """The data set, once it is certain that it has the split.

    Raises:
        UsageError: It has not.
    """
    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {settings.path} has no such split", "", did_you_mean(split, dataset.splits))
    return dataset


def measured(
    system: "System | Masp",
    dataset: "Dataset",
    split: str,
    mode: "Mode",
    batching: "Batching",
    calibrate: bool,
    out: Path | None,
) -> "Evaluation":
    """Every image of the split, and of the one that a temperature is fitted on, under one bar."""
    from masp.core.runtime import Bar
    from masp.evaluation.runner import CALIBRATION, evaluate

    more = calibrate and split != CALIBRATION
    images = len(dataset.split(split)) + (len(dataset.splits.get(CALIBRATION, ())) if more else 0)
    with Bar("images", images) as bar:
        return evaluate(system, dataset, split, mode, replace(batching, progress=bar.advance), out, more)


def tell(evaluation: "Evaluation", out: Path | None) -> None:
    """The figures on stdout, and what else there is to know on stderr."""
    results().print(evaluation_tables(evaluation))
    for bad in evaluation.quarantined:
        say(f"left out {bad.image}: {bad.reason}")
    if out is not None:
        say(f"predictions.jsonl and summary.json are in {out}")


COMPARE_EXAMPLES = """
Examples:

`masp compare figures/zero-shot figures/masp`

`masp compare --seeds figures/seed0 figures/seed1 figures/seed2`
"""


def compare(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT...", help="Folders that `masp evaluate --out` or `masp baseline` wrote."),
    ],
    seeds: Annotated[
        bool, typer.Option("--seeds", help="They are one system with several seeds: give mean and standard deviation.")
    ] = False,
) -> None:
    """Compare results on the same images: each with the first one, image by image (McNemar's test).

    Nothing is computed again, and no model is loaded.
    """
    from masp.evaluation.compute_metrics import compare_results
    from masp.evaluation.result import read_result

    evaluations = [read_result(place) for place in places]
    if seeds:
        results().print(_spreads(evaluations))
        return
    if len(evaluations) < 2:
        raise UsageError("one result", "two or more to compare", "Name another one.")
    pairs = [(evaluations[0].system, other.system, compare_results(evaluations[0], other)) for other in evaluations[1:]]
    results().print(_leaderboard_table(evaluations))
    results().print(differences(pairs))


def differences(pairs: "Sequence[tuple[str, str, PairedComparison]]") -> Table:
    """How much more the second system of each pair gets right than the first."""
    table = plain_table(
        "difference in accuracy", ">points", ">only the second is right", ">only the first", ">McNemar's p"
    )
    for first, second, paired in pairs:
        counts = (str(paired.only_second), str(paired.only_first))
        table.add_row(Text(printable(f"{second} - {first}")), paired.points(), *counts, f"{paired.p_value:.3g}")
    return table


def _leaderboard_table(evaluations: "Sequence[Evaluation]") -> Table:
    table = plain_table("system", ">accuracy", ">macro F1", ">images")
    for one in evaluations:
        table.add_row(Text(printable(one.system)), one.accuracy.percent(), one.macro_f1.percent(), str(one.used))
    return table


def _spreads(evaluations: "Sequence[Evaluation]") -> Table:
    from masp.evaluation.compute_metrics import over_seeds

    table = plain_table(f"over {len(evaluations)} results", ">mean", ">standard deviation", ">each")
    for name, spread in over_seeds(evaluations).items():
        deviation = "" if spread.deviation is None else f"{spread.deviation:.4f}"
        each = ", ".join(f"{value:.4f}" for value in spread.values)
        table.add_row(name.replace("_", " "), f"{spread.mean:.4f}", deviation, each)
    return table


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
    ReadingMode | None,
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
    no_concepts: NoConcepts = False,
) -> None:
    """Measure an adapter, or what another system said, on a labelled split: accuracy, every label, calibration.

    Intervals hold 95 %. A data set that the adapter was trained on is divided as its run divided it.
    """
    model = (adapter, adapter_revision, aspects, task, backbone, revision, dtype, device)
    choice = Choice(*model, batch_size, mode, record, accept, raw, no_concepts)
    if predictions is not None:
        refuse(choice.options(), "with --predictions", "options of a model only where one runs, and here none does")
    else:
        refuse({"--allow-missing": allow_missing}, "without --predictions", "it only with --predictions FILE")
    settings = _settings(changes or [], data)
    other = _result(against)
    if predictions is not None:
        evaluation = _external(predictions, settings, split, allow_missing, calibrate, out)
    elif adapter is None:
        raise UsageError("nothing to measure is named", "--adapter DIR, or --predictions FILE", "Name one.")
    else:
        evaluation = _adapter_measured(adapter, choice, settings, split, calibrate, out)
    tell(evaluation, out)
    if other is not None:
        _compare_with(other, evaluation)


@dataclass(frozen=True)
class Choice:
    """Which model is measured, and how: the options of the same names, None where they were not given."""

    adapter: str | None
    adapter_revision: str | None
    aspects: str | None
    task: str | None
    backbone: str | None
    revision: str | None
    dtype: Dtype | None
    device: str | None
    batch_size: int | None
    mode: ReadingMode | None
    record: bool
    accept: str | None
    raw: bool
    no_concepts: bool

    def options(self) -> dict[str, object]:
        """The values by the names of the options."""
        return {f"--{name.replace('_', '-')}": value for name, value in vars(self).items()}


def _adapter_measured(
    adapter: str, choice: Choice, settings: "DataConfig", split: str, calibrate: bool, out: Path | None
) -> "Evaluation":
    """An adapter on a split."""
    from masp.adapters import find_adapter
    from masp.backbones.loading import choose_placement
    from masp.evaluation.predict_split import Batching
    from masp.predictor import Masp
    from masp.training.distributed import launched

    dtype, device, mode = (choice.dtype or Dtype.auto).value, choice.device or "auto", choice.mode or ReadingMode.score
    processes = launched(choose_placement(dtype, device).device)
    with processes.guarded():
        home = find_adapter(adapter, choice.adapter_revision)
        if choice.record and not Path(adapter).exists():
            raise UsageError(f"--record with {adapter}, which is on a hub", "an adapter here", "Record, then push it.")
        if choice.record and choice.no_concepts:
            todo = "Record without it, or an adapter of the soft prompt alone."
            raise UsageError("--record with --no-concepts, which is another system", "one of them", todo)
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
            concepts=not choice.no_concepts,
        )
        task = masp.task
        batching = Batching(choice.batch_size, settings.workers, task.longest_side, task.rounding)
        result = measured(masp, dataset, split, mode.value, batching, calibrate and mode is ReadingMode.score, out)
        if choice.record:
            processes.on_main(lambda: _record(result, home, choice.task, fitted=task.temperature == 1))
        return result


def _check_size(settings: "DataConfig", home: Path, task: str | None) -> None:
    """Images are as large as the adapter was trained with, whatever the settings say.

    Raises:
        UsageError: They say something else.
    """
    from masp.adapters import read_info

    trained = read_info(home).for_task(task).longest_side
    if "longest_side" in settings.model_fields_set and settings.longest_side != trained:
        got = f"data.longest_side={settings.longest_side or 'null'}"
        expected = f"{trained or 'null'}, the size that the adapter was trained with and is measured with"
        raise UsageError(got, expected, "Leave it out, or train with another size.")


def _external(
    predictions: Path, settings: "DataConfig", split: str, allow_missing: bool, calibrate: bool, out: Path | None
) -> "Evaluation":
    """What another system said, on a split; nothing of a model is loaded."""
    from masp.data.readers.open_dataset import open_dataset
    from masp.evaluation.external_predictions import evaluate_predictions

    mine = out if runtime.is_main_process() else None  # of several processes one writes
    dataset = with_split(open_dataset(settings), settings, split)
    return evaluate_predictions(predictions, dataset, split, allow_missing=allow_missing, calibrate=calibrate, out=mine)


def _result(path: Path | None) -> "Evaluation | None":
    """The other result, read before anything is measured, so that a wrong name costs nothing."""
    from masp.evaluation.result import read_result

    return None if path is None else read_result(path)


def _divided(settings: "DataConfig", split: str, home: Path, task: str | None) -> "Dataset":
    """The data set, divided as the run in `home` divided it.

    Raises:
        UsageError: It has no such split.
    """
    from masp.data.readers.open_dataset import open_dataset
    from masp.evaluation.runner import as_trained

    return with_split(as_trained(open_dataset(settings), home, task), settings, split)


def _record(evaluation: "Evaluation", home: Path, task: str | None, fitted: bool) -> None:
    """The accuracy into the adapter's description and card, and the temperature, if it was `fitted` to raw scores."""
    from masp.adapters import record_result
    from masp.evaluation.metrics import CALIBRATION_IMAGES
    from masp.evaluation.runner import result_of

    scaled = None if evaluation.chances is None else evaluation.chances.calibrated
    usable = scaled is not None and fitted and scaled.images >= CALIBRATION_IMAGES
    temperature = scaled.temperature if scaled is not None and usable else None
    record_result(home, result_of(evaluation), task, temperature)
    addition = "" if temperature is None else f", with the temperature {temperature:.3f}"
    say(f"recorded in {home}{addition}")


def _compare_with(other: "Evaluation", evaluation: "Evaluation") -> None:
    """How much more, or less, than the other result was right on the same images."""
    from masp.evaluation.compute_metrics import compare_results

    results().print(differences([(other.system, evaluation.system, compare_results(other, evaluation))]))


def _settings(changes: list[str], data: Path) -> "DataConfig":
    """The settings of the data with what the command line changes.

    Raises:
        UsageError: A setting of something else.
        ConfigError: A change is wrong.
    """
    strange = next((change for change in changes if not change.startswith("data.")), None)
    if strange is not None:
        raise UsageError(
            f"the setting {strange} has no meaning here", "settings that begin with data.", "Leave it out."
        )
    return data_settings(changes, data)


REPORT_EXAMPLES = """
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
        raise DataError(f"--data {data} is not there", "the data set's folder", "Correct the path, or leave it out.")
    if adapter is not None and data is None:
        raise UsageError(f"--adapter {adapter} without --data", "the images that it shall explain", "Name both.")
    format, names = dtype or Dtype.auto, accepted(accept)
    masp = None if adapter is None else _adapter_loaded(adapter, backbone, task, format, device or "auto", names)
    asked = ErrorPageOptions(against, mistakes, data, masp, mistakes_of)
    write_page(out, comparison(sources, tables, asked, title))
    say(f"report: {out}")


def _adapter_loaded(
    adapter: str, backbone: str | None, task: str | None, dtype: Dtype, device: str, accept: tuple[str, ...]
) -> "Masp":
    from masp.predictor import Masp

    return Masp.from_pretrained(adapter, backbone, task=task, dtype=dtype.value, device=device, accept=accept)
