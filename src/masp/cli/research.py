"""`masp baseline`, `reproduce`, `plan` and `demo`: other systems, the paper's tables, and what a job will take."""

from dataclasses import asdict
from enum import StrEnum
from json import dumps, loads
from math import ceil
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from masp.cli.console import plain_table, results, say
from masp.cli.evaluate import measured, tell, with_split
from masp.cli.options import (
    BatchSize,
    Calibrate,
    Device,
    Dtype,
    DtypeOption,
    MaxPixels,
    MinPixels,
    ReadingMode,
    Revision,
)
from masp.core.errors import MaspError, UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from masp.baselines.base import System
    from masp.core.config import DataConfig, RunConfig
    from masp.core.flops import Sizes
    from masp.data.records import Dataset
    from masp.model.cost_estimate import CostJob, Part, Store

BASELINE_EXAMPLES = """
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
    from masp.baselines.registry import current_name, entry_of, make_system
    from masp.core.prompts import load_questions
    from masp.data.readers.open_dataset import open_dataset
    from masp.evaluation.predict_split import Batching

    if everything:
        results().print(_system_table())
        return
    missing = [option for option, given in (("NAME", name), ("--data", data), ("--out", out)) if given is None]
    if missing or name is None or data is None or out is None:
        raise UsageError(f"{missing[0]} is missing", "", "See masp baseline --help, and --list for the names.")
    name = current_name(name)
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
    from masp.baselines.learning import make_training_data
    from masp.training.feature_cache import ImageReading

    reading = ImageReading(settings.longest_side, settings.workers)
    system.fit(make_training_data(system.backbone, dataset, system.labels, out, seed, reading))


def _system_table() -> "Table":
    """Every system: its name, what it is, and its settings with their defaults."""
    from masp.baselines.registry import CATALOGUE, settings_of

    table = plain_table("system", "what it is", "settings")
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


REPRODUCE_EXAMPLES = """
Examples:

`masp reproduce all --out results --jobs 2`

`masp reproduce table2 --data DATA --backbone Qwen/Qwen2-VL-7B-Instruct --datasets FI,Emotion6 --out runs/table2`

DATA holds one folder for each data set: EmoSet, FI, Emotion6, Flickr, Instagram, Abstract, ArtPhoto. The same command
goes on with what was interrupted; what is there already is not run again.
"""


class Target(StrEnum):
    """Tables and figures of the paper."""

    table1 = "table1"
    table2 = "table2"
    table3 = "table3"
    table4 = "table4"
    figure3 = "figure3"
    figure4 = "figure4"
    all = "all"


def reproduce(
    what: Annotated[Target, typer.Argument(help="Which table or figure of the paper, or *all*.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings, such as `prompt.learning_rate=0.01` or `qlora.max_steps=100`."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where tables, figures and the result of every run go.")
    ] = Path("reproduced"),
    data: Annotated[
        Path | None,
        typer.Option(metavar="ROOT", help="Folder with one folder for each data set. Default: emoji scenes are drawn."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`.")] = None,
    datasets: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these; also folders of your own. Default: the paper's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Training seeds: 0, 1, 2 …")] = 3,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Runs side by side; the cores are shared among them.")] = 1,
    aspects: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Aspects trained before. Default: stage 1 is run here.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings as YAML.")] = None,
    reading: Annotated[
        ReadingMode,
        typer.Option(
            help="How answers are read. *score*: the most probable label; *generate*: the greedy text, which must be "
            "a label exactly (the paper's measure), counted beside the texts that name one."
        ),
    ] = ReadingMode.score,
    quick: Annotated[
        bool, typer.Option("--quick", help="Some minutes on drawn images; its figures mean nothing.")
    ] = False,
) -> None:
    """Run what a table or figure of the paper needs, and write it with the paper's numbers beside it.

    Without --data and --backbone everything runs on the embedded backbone and drawn images.
    """
    from masp.reproduce.config import Request, config_of
    from masp.reproduce.make_tables import reproduce as run

    names = None if datasets is None else tuple(name.strip() for name in datasets.split(",") if name.strip())
    asked = (data, backbone, names, seeds, aspects, config, quick, tuple(changes or ()), reading.value)
    request = Request(what.value, out, *asked)
    result = run(config_of(request), jobs, request.command(jobs))
    for outcome in result.failed:
        say(f"not there: {outcome.cell} ({outcome.error})")
    typer.echo(str(result.written[0]))
    if result.failed:
        raise MaspError(
            f"{len(result.failed)} of {result.cells} cells are not there; the tables hold the others",
            "",
            "Give the same command again: it runs only what is missing.",
        )


BACKBONE = "Qwen/Qwen2-VL-7B-Instruct"
STORES = ("none", "features", "prefix", "auto")
FORMATS = {"float32": 4, "bfloat16": 2, "float16": 2, "nf4": 2}
"""Bytes of a number as it is computed with; of nf4 the weights take less."""

ROOM = 1.1
"""The store of training also holds the images of the split val, and the heads of its files."""

PLAN_EXAMPLES = """
Examples:

`masp plan --backbone Qwen/Qwen2-VL-7B-Instruct --images 80000 --tokens 700 --peak 800 --bandwidth 3300 --price 2.5`

`masp plan --backbone runs/backbone --label 1000000 --bench bench.json --memory 24`
"""

Bench = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What `masp bench --json` wrote: peak, bandwidth, efficiency and dtype."),
]
Efficiency = Annotated[
    float | None,
    typer.Option(help="Share of the peak that is reached, up to 1. Default: that of --bench, else 0.35."),
]
PlannedDtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 or nf4 (4 bits). Default: as in --bench, else bfloat16 (`embedded`: float32)."
    ),
]
Released = Annotated[
    bool,
    typer.Option("--released", help="The layout of the authors' code: the prompt in two places, 5 queries per aspect."),
]

MicroBatch = Annotated[int | None, typer.Option(help="Examples that are trained at once. Default: all of a batch.")]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Layers are computed again in the backward pass.")
]
Val = Annotated[
    int | None,
    typer.Option(help="Images of the split val, measured once an epoch. Default: one for 16 that are trained on."),
]
EvalBatch = Annotated[
    int | None, typer.Option(help="Images of the split val measured at once. Default: what a step fits.")
]
CheckpointMinutes = Annotated[float, typer.Option(help="Minutes between checkpoints; 0: after every step.")]


def plan(
    backbone: Annotated[str, typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`.")] = BACKBONE,
    images: Annotated[int, typer.Option(help="Images to train on. This or --label is needed.")] = 0,
    label: Annotated[int, typer.Option(help="Images to label.")] = 0,
    tokens: Annotated[int, typer.Option(help="Visual tokens of an image: one per 28 × 28 pixels for Qwen2-VL.")] = 256,
    peak: Annotated[float | None, typer.Option(help="Peak of a device in TFLOP/s, in the dtype used.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Memory bandwidth of a device in GB/s.")] = None,
    memory: Annotated[float, typer.Option(help="Memory of a device in GB.")] = 80.0,
    devices: Annotated[int, typer.Option(help="How many devices share the work.")] = 1,
    cores: Annotated[int, typer.Option(help="Processor cores that read images, all together.")] = 16,
    price: Annotated[float, typer.Option(help="Price of one device for an hour, in any currency.")] = 0.0,
    efficiency: Efficiency = None,
    bench: Bench = None,
    dtype: PlannedDtype = None,
    store: Annotated[str, typer.Option(help="none, features, prefix or auto: what is kept between epochs.")] = "auto",
    disk: Annotated[float, typer.Option(help="Disk for what is kept, in GB.")] = 1000.0,
    aspect_epochs: Annotated[int, typer.Option(help="Passes of stage 1 over the images; 0: leave it out.")] = 3,
    prompt_epochs: Annotated[int, typer.Option(help="Passes of stage 2 over the images; 0: leave it out.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Examples in a batch.")] = 8,
    micro_batch_size: MicroBatch = None,
    gradient_checkpointing: Checkpointing = False,
    val: Val = None,
    eval_batch_size: EvalBatch = None,
    checkpoint_minutes: CheckpointMinutes = 10.0,
    released: Released = False,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Estimate time, memory, disk and money of both stages and of labelling.

    The device is described by --peak and --bandwidth, by --bench, or by both, where what is given wins.
    """
    from masp.backbones.model_stats import sizes_of
    from masp.model.cost_estimate import CostJob, Device, chosen_store, estimate

    _one_of("--store", store, STORES)
    known = {} if bench is None else _read(bench)
    top, wide, share = _peaks(known, peak, bandwidth, efficiency)
    device = Device(top, wide, memory, share, devices, cores, price)
    chosen = _planned_dtype(dtype, known, backbone)
    job = CostJob(
        images, tokens, label, aspect_epochs, prompt_epochs, store=cast("Store", store), disk=disk, batch=batch_size,
        micro_batch=micro_batch_size, checkpointing=gradient_checkpointing, eval_batch=eval_batch_size,
        val=images // 16 if val is None else val, checkpoint_minutes=checkpoint_minutes,
        released=released, itemsize=FORMATS[chosen], packed=chosen == "nf4", queries=5 if released else 1,
    )  # fmt: skip
    sizes = sizes_of(backbone)
    parts, line = estimate(sizes, job, device), train_line(backbone, chosen, sizes, job, devices)
    if json:
        content = {"backbone": asdict(sizes), "job": asdict(job), "device": asdict(device), "train": line}
        typer.echo(dumps(content | {"store": chosen_store(sizes, job), "parts": [asdict(part) for part in parts]}))
        return
    results().print(_plan_table(parts, device.memory))
    source = "given" if efficiency is not None else "measured" if known else "assumed; measure it with masp bench"
    _remark(
        f"numbers: {chosen}; store: {chosen_store(sizes, job)}; efficiency {share:.0%} of the peak ({source})",
        line,
        job,
    )


def _planned_dtype(asked: str | None, known: dict[str, Any], backbone: str) -> str:
    """The number format: as asked, else that of the benchmark, else what `auto` is on a device with bfloat16 units.

    Raises:
        UsageError: it is unknown.
    """
    from masp.backbones.files import EMBEDDED

    chosen = asked or known.get("machine", {}).get("dtype", "float32" if backbone == EMBEDDED else "bfloat16")
    _one_of("--dtype", chosen, tuple(FORMATS))
    return chosen


def _remark(assumed: str, line: str | None, job: "CostJob") -> None:
    """What was assumed, the command that trains like this, and what is not in the plan."""
    say(assumed)
    if line is not None:
        say(f"to train like this: {line}")
    if job.packed:
        say("nf4 saves memory, not arithmetic; the time that unpacking the weights takes is not in the plan")


def train_line(backbone: str, dtype: str, sizes: "Sizes", job: "CostJob", devices: int = 1) -> str | None:
    """The command that trains as it was planned; None where nothing is trained.

    DATA, RUN, STORE and, where stage 1 is left out, ASPECTS stand for folders. Both stages share one store. What is
    kept and where is always said, because training on its own keeps what fits in a few GB of memory; so are epochs and
    batch, which training on its own takes from the number of images and the stage.
    """
    stages = {"aspects": job.epochs1 if job.aspects else 0, "prompt": job.epochs2}
    chosen = [stage for stage, epochs in stages.items() if epochs]
    if not (job.images and chosen):
        return None
    start = f"accelerate launch --multi_gpu --num_processes {devices} -m " if devices > 1 else ""
    what = "all" if len(chosen) == 2 else chosen[0]
    words = ["masp", "train", what, "--data", "DATA", "--backbone", quote(backbone), "--out", "RUN"]
    words += ["--aspects", "ASPECTS"] if what == "prompt" and job.aspects else []
    words += [f"backbone.dtype={dtype}", *(["method.variant=released"] if job.released else [])]
    for stage in chosen:
        words += _stage_settings(stage, stages[stage], sizes, job)
    return start + " ".join(words)


def _stage_settings(stage: str, epochs: int, sizes: "Sizes", job: "CostJob") -> list[str]:
    """The settings of one stage."""
    from masp.core.config import TrainConfig
    from masp.model.cost_estimate import chosen_store, store_gb

    kept, usual = chosen_store(sizes, job), TrainConfig()
    values: dict[str, object] = {"store": "features" if stage == "aspects" and kept == "prefix" else kept}
    if kept != "none":
        gigabytes = ceil(ROOM * store_gb(sizes, job, kept) * 1e9 / 1024**3)
        values |= {"store_dir": "STORE", "store_disk_gb": max(1, gigabytes)}
    values |= {"epochs": epochs, "batch_size": job.batch}
    planned = {
        "micro_batch_size": job.micro_batch,
        "gradient_checkpointing": job.checkpointing,
        "eval_batch_size": job.eval_batch,
        "checkpoint_minutes": job.checkpoint_minutes,
    }
    values |= {name: value for name, value in planned.items() if value != getattr(usual, name)}
    written = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    return [f"{stage}.{name}={value}" for name, value in written.items()]


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Check a value.

    Raises:
        UsageError: it is unknown.
    """
    if value not in known:
        raise UsageError(f"{option} {value}", f"one of {', '.join(known)}", did_you_mean(value, known))


def _peaks(
    known: dict[str, Any], peak: float | None, bandwidth: float | None, efficiency: float | None
) -> tuple[float, float, float]:
    """Peak, bandwidth and efficiency of the device: as given, otherwise as measured.

    Raises:
        UsageError: one of the first two is neither.
    """
    from masp.model.cost_estimate import measured_efficiency, measured_peaks

    measured = measured_peaks(known) if known else (None, None)
    top, wide = (seen if given is None else given for seen, given in zip(measured, (peak, bandwidth), strict=True))
    if top is None or wide is None:
        raise UsageError(
            "the device is not described", "--peak and --bandwidth, or --bench FILE", "See its data sheet."
        )
    if efficiency is None:
        efficiency = measured_efficiency(known) if known else 0.35
    return top, wide, efficiency


def _read(file: Path) -> dict[str, Any]:
    """A result of `masp bench`.

    Raises:
        UsageError: it is none.
    """
    try:
        content = loads(file.read_text(encoding="utf-8"))
        machine = dict(content["machine"])
        groups = {name: _floats(group) for name, group in dict(content.get("groups", {})).items()}
        return {"machine": machine | _floats(machine), "groups": groups, "results": list(content["results"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "a file that `masp bench --json` wrote") from error


def _floats(peaks: dict[str, Any]) -> dict[str, float]:
    return {key: float(peaks[key]) for key in ("gemm_tflops", "bandwidth_gb_s")}


def _plan_table(parts: "list[Part]", memory: float) -> "Table":
    table = Table("", "how many", "time", "memory, GB", "disk, GB", "cost", "set by", box=SIMPLE)
    for part in parts:
        space = f"{part.memory:,.1f}" if part.memory else ""
        space += " (too much: a smaller --micro-batch-size)" if part.memory > memory else ""
        cost = f"{part.cost:,.2f}" if part.cost else ""
        disk = f"{part.disk:,.1f}" if part.disk else ""
        time = _time(part.seconds) if part.seconds else ""
        table.add_row(part.name, f"{part.examples:,}", time, space, disk, cost, part.bound)
    total = sum(part.seconds for part in parts)
    table.add_row("together", "", _time(total), "", "", f"{sum(part.cost for part in parts):,.2f}", "", style="bold")
    return table


def _time(seconds: float) -> str:
    """Seconds, minutes, hours or days, whichever reads best."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where data, adapters and the report go.")] = Path(
        "masp-demo"
    ),
) -> None:
    """Make data, train both stages, measure, predict, write a report: some minutes, no GPU, weights or internet."""
    from masp.demo import run_demo

    run_demo(out)
