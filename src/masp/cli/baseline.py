"""`masp baseline`: another system, trained and measured on the same data by the same rules."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.measuring import measured, tell, with_split
from masp.cli.options import BatchSize, Calibrate, Device, Dtype, DtypeOption, MaxPixels, MinPixels, Revision

if TYPE_CHECKING:
    from rich.table import Table

    from masp.baselines.base import System
    from masp.core.config import DataConfig, RunConfig
    from masp.data.records import Dataset

EXAMPLES = """
Examples:

`masp baseline --list`

`masp baseline zero-shot --data photos --backbone Qwen/Qwen2-VL-7B-Instruct --out runs/zero-shot`

`masp baseline distilled --data photos --out runs/distilled over=probe head_epochs=10`

The same command goes on with a run that was interrupted.
"""

TRAINING = "training"
"""In --out: what the system learned."""

OF_RUN = ("data.", "questions=")
"""How the settings begin that are none of the system's own."""


def baseline(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which system; `--list` shows all.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the system, of the data (`data.splits.kind=content`), or `questions=FILE`.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder or table of the data set.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for predictions.jsonl, summary.json and what the system learns."),
    ] = None,
    backbone: Annotated[str, typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`.")] = "embedded",
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Labels to choose from, in this order. Default: the data set's.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the data set is measured.")] = "test",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = 0,
    batch_size: BatchSize = None,
    calibrate: Calibrate = True,
    everything: Annotated[bool, typer.Option("--list", help="Show every system with its settings, and end.")] = False,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
) -> None:
    """Train and measure a system that MASP is compared with: same images, same splits, same figures, same files."""
    from masp.backbones.loading import load_backbone
    from masp.baselines.registry import entry_of, make_system
    from masp.cli.console import results
    from masp.core.errors import UsageError
    from masp.core.prompts import load_questions
    from masp.data.readers.open_dataset import open_dataset
    from masp.evaluation.batches import Batching

    if everything:
        results().print(_table())
        return
    missing = [option for option, given in (("NAME", name), ("--data", data), ("--out", out)) if given is None]
    if missing or name is None or data is None or out is None:
        raise UsageError(f"{missing[0]} is missing", "", "See masp baseline --help, and --list for the names.")
    entry_of(name)  # a wrong name costs no loading
    of_run = [change for change in changes or [] if change.startswith(OF_RUN)]
    own = [change for change in changes or [] if change not in of_run]
    config = _config(of_run, data)
    settings, questions = config.data, None if config.questions is None else load_questions(config.questions)
    dataset = with_split(open_dataset(settings), settings, split)
    chosen = dataset.labels if labels is None else tuple(label.strip() for label in labels.split(","))
    loaded = load_backbone(backbone, revision, dtype.value, device, min_pixels, max_pixels)
    system = make_system(name, loaded, chosen, own, seed, questions)
    if entry_of(name).learns:
        _learn(system, dataset, settings, out / TRAINING, seed)
    batching = Batching(batch_size, settings.workers, settings.side_of(entry_of(name).alone))
    tell(measured(system, dataset, split, "score", batching, calibrate, out), out)


def _config(changes: list[str], data: Path) -> "RunConfig":
    """The settings of the data, and which questions are asked, with what the command line changes.

    Raises:
        ConfigError: A change is wrong.
    """
    from masp.core.config import load_config

    config = load_config(None, changes)
    return config.model_copy(update={"data": config.data.model_copy(update={"path": data})})


def _learn(system: "System", dataset: "Dataset", settings: "DataConfig", out: Path, seed: int) -> None:
    """Let a system learn from train and val, in a folder of its own."""
    from masp.evaluation.training_data import make_lessons
    from masp.training.feature_cache import Reading

    reading = Reading(settings.longest_side, settings.workers)
    system.learn(make_lessons(system.backbone, dataset, system.labels, out, seed, reading))


def _table() -> "Table":
    """Every system: its name, what it is, and its settings with their defaults."""
    from rich.table import Table
    from rich.text import Text

    from masp.baselines.registry import CATALOGUE, settings_of

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
