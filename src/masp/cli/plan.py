"""`masp plan`: what a job will take, before it is paid for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from masp.core.flops import Sizes
    from masp.model.cost_estimate import Job, Part, Store

BACKBONE = "Qwen/Qwen2-VL-7B-Instruct"
STORES = ("none", "features", "prefix", "auto")
FORMATS = {"float32": 4, "bfloat16": 2, "float16": 2, "nf4": 2}
"""Bytes of a number as it is computed with; of nf4 the weights take less."""

ROOM = 1.1
"""The store of training also holds the pictures of the split val, and the heads of its files."""

EXAMPLES = """
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
    cores: Annotated[int, typer.Option(help="Processor cores that read pictures, all together.")] = 16,
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
    from dataclasses import asdict
    from json import dumps

    from masp.backbones.sizes import sizes_of
    from masp.cli.console import results
    from masp.model.cost_estimate import Device, Job, chosen_store, estimate

    _one_of("--store", store, STORES)
    known = {} if bench is None else _read(bench)
    top, wide, share = _peaks(known, peak, bandwidth, efficiency)
    device = Device(top, wide, memory, share, devices, cores, price)
    chosen = _planned_dtype(dtype, known, backbone)
    job = Job(
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
    results().print(_table(parts, device.memory))
    said = "given" if efficiency is not None else "measured" if known else "assumed; measure it with masp bench"
    _remark(
        f"numbers: {chosen}; store: {chosen_store(sizes, job)}; efficiency {share:.0%} of the peak ({said})", line, job
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


def _remark(assumed: str, line: str | None, job: "Job") -> None:
    """What was assumed, the command that trains like this, and what is not in the plan."""
    from masp.cli.console import say

    say(assumed)
    if line is not None:
        say(f"to train like this: {line}")
    if job.packed:
        say("nf4 saves memory, not arithmetic; the time that unpacking the weights takes is not in the plan")


def train_line(backbone: str, dtype: str, sizes: "Sizes", job: "Job", devices: int = 1) -> str | None:
    """The command that trains as it was planned; None where nothing is trained.

    DATA, RUN, STORE and, where stage 1 is left out, ASPECTS stand for folders. Both stages share one store. What is
    kept and where is always said, because training on its own keeps what fits in a few GB of memory; so are epochs and
    batch, which training on its own takes from the number of images and the stage.
    """
    from shlex import quote

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


def _stage_settings(stage: str, epochs: int, sizes: "Sizes", job: "Job") -> list[str]:
    """The settings of one stage."""
    from math import ceil

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
    from masp.core.errors import UsageError, did_you_mean

    if value not in known:
        raise UsageError(f"{option} {value}", f"one of {', '.join(known)}", did_you_mean(value, known))


def _peaks(
    known: dict[str, Any], peak: float | None, bandwidth: float | None, efficiency: float | None
) -> tuple[float, float, float]:
    """Peak, bandwidth and efficiency of the device: as given, otherwise as measured.

    Raises:
        UsageError: one of the first two is neither.
    """
    from masp.core.errors import UsageError
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
    from json import loads

    from masp.core.errors import UsageError

    try:
        found = loads(file.read_text(encoding="utf-8"))
        machine = dict(found["machine"])
        groups = {name: _floats(group) for name, group in dict(found.get("groups", {})).items()}
        return {"machine": machine | _floats(machine), "groups": groups, "results": list(found["results"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "a file that `masp bench --json` wrote") from error


def _floats(peaks: dict[str, Any]) -> dict[str, float]:
    return {key: float(peaks[key]) for key in ("gemm_tflops", "bandwidth_gb_s")}


def _table(parts: "list[Part]", memory: float) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

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
