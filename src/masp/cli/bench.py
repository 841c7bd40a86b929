"""`masp bench`: what the method costs on this machine, against a plain implementation of it."""

from collections.abc import Mapping, Sequence
from json import dumps as dump
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from masp.cli.console import results, say
from masp.core.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """
Examples:

`masp bench --quick` shows in a minute that everything runs; its figures mean nothing.

`masp bench --json bench.json` measures at full size: about an hour on two quiet cores, 16 GB of memory.

`masp bench --json bench.json --add` goes on where that was stopped, group by group.
"""

Only = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="One group of lines: stage2, stage1, memory, score, batched, tasks, images, embedded or growth.",
    ),
]


def bench(
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all results here, as JSON.")
    ] = None,
    only: Only = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Keep the groups that FILE holds already; measure the missing ones, or --only one."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes and two repeats: a check, no measurement.")
    ] = False,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="How often each work is timed, five at least. Default: 5; 2 with --quick, or fewer."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="Number format of the weights: float32, bfloat16, float16; auto: what the device does well."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, a GPU if there is one; cpu, cuda …")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. Default: as torch or OMP_NUM_THREADS says.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Measure training and prediction on a backbone with random weights, as ratios to the plain baseline."""
    from masp.bench.run import Options, run_bench
    from masp.core.atomic_io import write_file

    if json is not None:  # before an hour is spent
        if json.is_dir():
            raise UsageError(f"--json {json} is a folder", "a file", "Name a file in it.")
        json.parent.mkdir(parents=True, exist_ok=True)
    before = _before(json) if add else None
    options = Options(only, quick, repeats, dtype, device, threads, seed)
    screen = Console(stderr=True, highlight=False)

    def keep(content: dict[str, Any]) -> None:
        if json is not None:
            write_file(json, (dump(content, indent=1) + "\n").encode())

    with screen.status("measuring") as status:
        found = run_bench(options, status.update, lambda result: screen.print(_line(result.to_json())), before, keep)
    results().print(_table(found["results"]))
    results().print(_machine(found))
    for table in (_growth(found["growth"]), _planned(found["plan"])):
        if table.row_count:
            results().print(table)
    if json is not None:
        say(f"everything is in {json}")


def _before(file: Path | None) -> dict[str, Any] | None:
    """What the file holds; None where there is none yet.

    Raises:
        UsageError: no file is named, or it is no benchmark's.
    """
    if file is None:
        raise UsageError("--add without --json", "a file to add to", "Name it: --json FILE.")
    if not file.exists():
        return None
    try:
        content = loads(file.read_text(encoding="utf-8"))
        return {**content, "groups": dict(content["groups"]), "results": list(content["results"])}
    except (OSError, ValueError, KeyError, TypeError):
        todo = "Name another file, or leave --add out to write it anew."
        raise UsageError(f"{file} is not what masp bench wrote", "a result file of masp bench", todo) from None


def _machine(found: Mapping[str, Any]) -> str:
    """The machine and what the baselines were."""
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['device']}, {machine['threads']} threads, {machine['dtype']}: "
        f"{machine['gemm_tflops']:.3f} TFLOP/s in a matrix product, {machine['bandwidth_gb_s']:.1f} GB/s copying\n"
        f"baseline: {found['baselines']}"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    visual = "" if row["visual"] is None else str(row["visual"])
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    goal = "" if row["goal"] is None else f"{'≥' if row['at_least'] else '≤'} {row['goal']:g}"
    met = "" if row["met"] is None else "yes" if row["met"] else "no"
    seconds = f"{row['median_s']:.4f}" if row["median_s"] else ""
    return row["name"], visual, str(row["batch"]), ratio, goal, met, seconds, f"{row['spread']:.0%}", _meaning(row)


def _meaning(row: Mapping[str, Any]) -> str:
    """What the ratio is, and what stands behind it where that is more than two times."""
    more = row["more"]
    if "optimizer_share" in more:
        return f"of its time: AdamW {more['optimizer_share']:.1%}, the vision tower {more['vision_share']:.1%}"
    if "gain_over_generating" in more:
        return f"{row['meaning']}: {more['gain_over_generating']:.2f} of at most {more['bound']:.2f} times"
    return row["meaning"]


def _line(row: Mapping[str, Any]) -> str:
    name, visual, _, ratio, goal, met, seconds, _, _ = _cells(row)
    return "  ".join(
        word for word in (name, visual and f"N = {visual}", ratio, goal, met, seconds and f"{seconds} s") if word
    )


def _growth(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """How the cost of stage 2 with the prefix kept grows; a job of n images is shown in its two parts."""
    table = Table("prefix kept: by", "", "N", "batch", "seconds", "spread", box=SIMPLE)
    for row in rows:
        seconds, spread = f"{row['seconds']:.4f} per example", f"{row.get('spread', 0):.0%}"
        if "building_s" in row:
            seconds, spread = f"{row['building_s']:.2f} once, {row['epoch_s']:.2f} an epoch", ""
        table.add_row(row["of"], str(row["at"]), str(row.get("visual", "")), str(row.get("batch", "")), seconds, spread)
    return table


def _planned(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """What `masp plan` would have said, by the efficiency of the other lines."""
    table = Table("the plan beside it", "N", "estimated", "measured", "", "ratio", box=SIMPLE)
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        values = (f"{row['estimated']:.4f}", f"{row['measured']:.4f}")
        table.add_row(row["name"], str(row["visual"]), *values, row["unit"], ratio)
    return table


def _table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    table = Table("", "N", "batch", "ratio", "goal", "met", "s per example", "spread", "the ratio is", box=SIMPLE)
    for row in rows:
        table.add_row(*_cells(row))
    return table
