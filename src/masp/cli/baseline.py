"""`masp baseline`: another system, trained and measured on the same data by the same rules."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.options import BatchSize, Device, Dtype, DtypeOption, Revision

if TYPE_CHECKING:
    from rich.table import Table

    from masp.config import DataConfig
    from masp.data.records import Dataset
    from masp.evaluation.batches import Batching
    from masp.systems.base import System

EXAMPLES = """
Examples:

`masp baseline --list`

`masp baseline zero-shot --data photos --backbone Qwen/Qwen2-VL-7B-Instruct --out runs/zero-shot`

`masp baseline distilled --data photos --out runs/distilled over=probe head_epochs=10`

The same command goes on with a run that was interrupted.
"""

TRAINING = "training"
"""In --out: what the system learned."""


def baseline(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which system; `--list` shows them.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the system, or of the data: `data.splits.kind=content`."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder or table of the data set.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for predictions.jsonl, summary.json and what the system learns."),
    ] = None,
    backbone: Annotated[str, typer.Option(metavar="ID", help="Hub id, folder, or `embedded`.")] = "embedded",
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="What is chosen from, in this order. Default: the data set's.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the data set is measured.")] = "test",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    batch_size: BatchSize = None,
    calibrate: Annotated[
        bool, typer.Option(help="Fit a temperature on the split val, and say what calibration is worth after it.")
    ] = True,
    everything: Annotated[bool, typer.Option("--list", help="Show every system with its settings, and leave.")] = False,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Train and measure a system that MASP is compared with: same images, same splits, same figures, same files."""
    from masp.backbones.loading import load_backbone
    from masp.cli.show import results
    from masp.errors import UsageError
    from masp.evaluation.batches import Batching
    from masp.systems.catalogue import entry_of, make_system

    if everything:
        results().print(_table())
        return
    missing = [option for option, given in (("NAME", name), ("--data", data), ("--out", out)) if given is None]
    if missing or name is None or data is None or out is None:
        raise UsageError(f"{missing[0]} is missing", "", "See masp baseline --help, and --list for the names.")
    entry_of(name)  # a wrong name costs no loading
    of_data = [change for change in changes or [] if change.startswith("data.")]
    own = [change for change in changes or [] if change not in of_data]
    settings = _settings(of_data, data)
    dataset = _opened(settings, split)
    chosen = dataset.labels if labels is None else tuple(label.strip() for label in labels.split(","))
    loaded = load_backbone(backbone, revision, dtype.value, device)
    system = make_system(name, loaded, chosen, own, seed)
    if entry_of(name).learns:
        _learn(system, dataset, settings, out / TRAINING, seed)
    batching = Batching(batch_size, settings.workers, settings.longest_side)
    _measure(system, dataset, split, batching, calibrate, out)


def _settings(changes: list[str], data: Path) -> "DataConfig":
    """The settings of the data with what the command line changes.

    Raises:
        ConfigError: A change is wrong.
    """
    from masp.config import load_config

    return load_config(None, changes).data.model_copy(update={"path": data})


def _opened(settings: "DataConfig", split: str) -> "Dataset":
    """The data set, once it is certain that it has the split.

    Raises:
        UsageError: It has not.
    """
    from masp.data.readers import open_dataset
    from masp.errors import UsageError, did_you_mean

    dataset = open_dataset(settings)
    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {settings.path} has no such split", "", did_you_mean(split, dataset.splits))
    return dataset


def _learn(system: "System", dataset: "Dataset", settings: "DataConfig", out: Path, seed: int) -> None:
    """Let a system learn from train and val, in a folder of its own."""
    from masp.evaluation.lessons import make_lessons
    from masp.training.features import Reading

    reading = Reading(settings.longest_side, settings.workers)
    system.learn(make_lessons(system.backbone, dataset, system.labels, out, seed, reading))


def _measure(
    system: "System", dataset: "Dataset", split: str, batching: "Batching", calibrate: bool, out: Path
) -> None:
    """Figures on stdout, files in `out`, as `masp evaluate` writes them."""
    from masp.cli.show import counting, evaluation_tables, results, say
    from masp.evaluation.runner import CALIBRATION, evaluate
    from masp.training.progress import Bar

    more = calibrate and split != CALIBRATION
    images = len(dataset.split(split)) + (len(dataset.splits.get(CALIBRATION, ())) if more else 0)
    with Bar("images", images) as bar:
        watched = replace(batching, progress=counting(bar))
        found = evaluate(system, dataset, split, batching=watched, out=out, calibrate=more)
    results().print(evaluation_tables(found))
    for bad in found.quarantined:
        say(f"left out {bad.image}: {bad.reason}")
    say(f"predictions.jsonl and summary.json are in {out}")


def _table() -> "Table":
    """Every system: its name, what it is, and its settings with their defaults."""
    from rich.table import Table
    from rich.text import Text

    from masp.systems.catalogue import CATALOGUE, settings_of

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("system", "what it is", "settings"):
        table.add_column(heading, overflow="fold")
    for name, entry in CATALOGUE.items():
        known = {key: value for key, value in settings_of(name).items() if key not in entry.fixed}
        shown = "\n".join(f"{key}={_plain(value)}" for key, value in known.items())
        table.add_row(Text(name, style="bold"), entry.meaning, Text(shown, style="dim"))
    return table


def _plain(value: object) -> str:
    """A default as it would be written on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)
