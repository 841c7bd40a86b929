"""What one GPU does with a 7B: both stages, label scores and memory, against a plain baseline and PEFT in the same run.

A randomly initialised backbone of Qwen2-VL-7B's shape in bfloat16; what it answers means nothing, its speed does not
depend on the weights. Parts run in the order of their weight until the minutes are over; the file is written after
each, and names those that were left out. Times are medians after a warm-up, works that are compared in turn.

    python benchmarks/gpu.py --minutes 8
    python benchmarks/gpu.py --quick --out FILE      # a tiny shape on any machine, to see that all parts run

A result for the documents is only written on a GPU.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import against_peft
import torch
from bench import prompt_step
from bench_setting import ANSWERS, LABELS, TINY, Setting, Work, in_turn, machine_of, memory_of, once
from plain_steps import PlainSteps
from random_weights import Shape, make
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from masp.adapters.info import library_versions
from masp.backbones.device_map import keep_packing, packed_layers, require_bitsandbytes
from masp.backbones.loading import choose_device
from masp.core.aspects import ASPECTS
from masp.model.scoring import score

HOME = Path(__file__).parent
RESULT = HOME / "results" / "gpu.json"
SEVEN_B = Shape(
    dim=3584, layers=28, heads=28, groups=4, intermediate=18944, vocabulary=152_064, tied=False,
    vision_width=1280, vision_depth=32, vision_heads=16,
)  # fmt: skip
LONG, SHORT = 700, 256  # visual tokens
GOALS: Mapping[str, tuple[float, bool]] = {  # the value, and whether it is the least or the most
    "stage 2, N = 700, recomputed": (28.0, True),
    "stage 2, N = 700, prefix kept": (100.0, True),
    "stage 2, N = 700, peak at batch 1": (24.0, False),
    "stage 1, N = 256, image-major": (150.0, True),
    "score, N = 256, batched": (40.0, True),
    "one image, N = 256, p50": (45.0, False),
}
TESTS = (
    "tests/backbones/test_threads.py",
    "tests/backbones/test_loading.py",
    "tests/backbones/test_output_head.py",
    "tests/contract",
)


@dataclass(frozen=True)
class Sizes:
    """How much each part does: examples of a step, images scored together, repeats."""

    step: int
    images: int
    scored: int
    repeats: int
    singles: int


FULL, SMALL = Sizes(8, 4, 32, 5, 50), Sizes(2, 2, 2, 1, 4)


@dataclass(frozen=True)
class Run:
    """One set of weights, with the sizes of the parts and the measured matrix peak in TFLOP/s."""

    here: Setting
    sizes: Sizes
    peak: float

    @property
    def long(self) -> int:
        """Visual tokens of the long images: 700, or few where it is only tried."""
        return self.here.counts[-1]

    @property
    def short(self) -> int:
        """Visual tokens of the short images."""
        return self.here.counts[0]


Row = dict[str, Any]
Part = Callable[[Run], list[Row]]


def stage2(run: Run) -> list[Row]:
    """Steps of the soft prompt in the layout of the paper, against the plain baseline and PEFT."""
    here, number = run.here, run.sizes.step
    model, question = here.model("paper"), here.question()
    pixels, one = here.pixels(run.long), here.backbone.visual_tokens(here.pixels(run.long))
    assembled, arithmetic = model.build_inputs(one, [question], [LABELS[0]]), here.sizes()
    prefix, graph = assembled.prefix_end, assembled.attention_mask.shape[1] - assembled.prefix_end
    step = arithmetic.step_flops(graph, prefix, int((assembled.labels >= 0).sum()))
    plain = PlainSteps(here.made, here.model("released"))
    asked = here.question(variant="released")
    works: dict[str, tuple[Work, int]] = {
        "recomputed": (prompt_step(model, one.select([0] * number), question), number),
        "prefix kept": (prompt_step(model, [model.prefix(one, [question]).rows()[0]] * number, question), number),
        "plain baseline": (lambda: plain.stage2(pixels, asked, LABELS[0]), 1),
    }
    flops = {"recomputed": step + arithmetic.forward_flops(prefix), "prefix kept": step}
    found = in_turn(works, run.sizes.repeats)
    plain.forget()
    name = f"stage 2, N = {run.long}, "
    return [
        _rate(name + key, timing.seconds, "images/s", found["plain baseline"].median, run.peak, flops.get(key))
        for key, timing in found.items()
    ]


def peft(run: Run) -> list[Row]:
    """The same step by PEFT's trainable tokens and the Hugging Face trainer (see against_peft.py)."""
    seconds = against_peft.peft_seconds(run.here, run.long, 2, run.sizes.repeats)
    return [_rate(f"stage 2, N = {run.long}, PEFT", seconds, "images/s")]


def memory(run: Run) -> list[Row]:
    """Peak memory of a step of one example, weights included."""
    model, question = run.here.model("paper"), run.here.question()
    visual = run.here.backbone.visual_tokens(run.here.pixels(run.long))
    beyond = memory_of(prompt_step(model, visual, question))
    return [_memory(f"stage 2, N = {run.long}, peak at batch 1", run.here, beyond)]


def stage1(run: Run) -> list[Row]:
    """Steps of the aspect modules from the pixels, all aspects of every image; the unit is one pair."""
    here, images = run.here, run.sizes.images
    model, pixels = here.model("paper"), here.pixels(run.short, run.sizes.images)
    rows, index = [row for row in range(images) for _ in ASPECTS], torch.arange(len(ASPECTS)).repeat(images)
    asked = [here.aspect_question(name) for name in ASPECTS] * images
    said = [ANSWERS[name] for name in ASPECTS] * images
    optimizer = torch.optim.AdamW(model.aspect_module().parameters(), lr=1e-9, fused=True)
    plain, single = PlainSteps(here.made, here.model("released")), here.pixels(run.short)

    def ours() -> None:
        model.aspect_loss(here.backbone.visual_tokens(pixels), index, asked, said, rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    scene = (here.aspect_question("scene"), ANSWERS["scene"])
    works: dict[str, tuple[Work, int]] = {
        "image-major": (ours, len(rows)),
        "plain baseline": (lambda: plain.stage1(single, "scene", *scene), 1),
    }
    found = in_turn(works, run.sizes.repeats)
    plain.forget()
    beside = found["plain baseline"].median
    name = f"stage 1, N = {run.short}, "
    return [_rate(name + key, timing.seconds, "examples/s", beside) for key, timing in found.items()]


def scores(run: Run) -> list[Row]:
    """Label scores from the pixels: in batches, and one image at a time."""
    here, model, question = run.here, run.here.model("paper"), run.here.question()

    def scored(number: int) -> Work:
        pixels = here.pixels(run.short, number)
        return lambda: score(model, here.backbone.visual_tokens(pixels), question, LABELS)

    found = in_turn({"batched": (scored(run.sizes.scored), run.sizes.scored)}, run.sizes.repeats)["batched"]
    work = scored(1)
    work()
    singles = [1000 * once(work) for _ in range(run.sizes.singles)]
    p95 = quantiles(singles, n=20)[-1]
    return [
        _rate(f"score, N = {run.short}, batched", found.seconds, "images/s"),
        {"name": f"one image, N = {run.short}, p50", "value": median(singles), "unit": "ms", "p95": p95},
    ]


def fsdp(run: Run) -> list[Row]:
    """One forward pass with the layers in FSDP2's hands, in a group of one process: it runs, and says the same."""
    model, question = run.here.model("paper"), run.here.question()
    visual = run.here.backbone.visual_tokens(run.here.pixels(run.short))
    before = score(model, visual, question, LABELS)
    kind = run.here.backbone.device.type
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", rank=0, world_size=1)
    try:
        mesh = init_device_mesh(kind, (1,))
        for layer in run.here.made.plain.model.language_model.layers[:-1]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        seconds = once(lambda: score(model, visual, question, LABELS))
        gap = float((score(model, visual, question, LABELS) - before).abs().max())
    finally:
        distributed.destroy_process_group()
    return [{"name": "FSDP, one process, one score", "value": seconds, "unit": "s", "largest_difference": gap}]


def nf4(run: Run) -> list[Row]:
    """Stage 2 with the linear layers in 4 bits: rate and peak memory at batch 1."""
    kind, here = require_bitsandbytes().nn, run.here
    for name, layer in packed_layers(here.made.plain, here.backbone.device).items():
        if name.startswith("model.visual"):
            continue  # the tower runs in a form of its own, which shares these weights
        packed = kind.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, quant_type="nf4"
        )
        packed.weight = kind.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
        if layer.bias is not None:
            packed.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        parent, _, last = name.rpartition(".")
        setattr(here.made.plain.get_submodule(parent), last, packed.to(here.backbone.device).eval())
    keep_packing(here.made.plain)
    model, question = here.model("paper"), here.question()
    visual = here.backbone.visual_tokens(here.pixels(run.long))
    number = run.sizes.step
    work = prompt_step(model, visual.select([0] * number), question)
    found = in_turn({"nf4": (work, number)}, run.sizes.repeats)["nf4"]
    name = f"stage 2 in NF4, N = {run.long}, "
    beyond = memory_of(prompt_step(model, visual, question))
    return [
        _rate(name + "recomputed", found.seconds, "images/s"),
        _memory(name + "peak at batch 1", here, beyond),
    ]


def tests(run: Run) -> list[Row]:
    """The tests of dtypes and threads on this device, in a process of their own."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
    chosen = TESTS[:1] if run.here.quick else TESTS
    done = subprocess.run([*words, *chosen], cwd=HOME.parent, capture_output=True, text=True, timeout=420)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED") or " in " in line]
    return [{"name": "tests of dtypes and threads", "value": done.returncode, "unit": "exit code", "said": lines[-9:]}]


# Those that change the weights come last, each on weights of its own.
PARTS: Mapping[str, tuple[Part, bool]] = {
    "stage2": (stage2, False),
    "peft": (peft, False),
    "memory": (memory, False),
    "stage1": (stage1, False),
    "scores": (scores, False),
    "tests": (tests, False),
    "fsdp": (fsdp, True),
    "nf4": (nf4, True),
}


def _rate(
    name: str,
    seconds: Any,
    unit: str,
    beside: float | None = None,
    peak: float | None = None,
    flops: float | None = None,
) -> Row:
    """Examples per second; how many times the plain baseline's; the share of the measured matrix peak."""
    each = median(seconds)
    row: Row = {"name": name, "value": 1 / each, "unit": unit, "seconds": list(seconds)}
    if beside is not None:
        row["times_plain"] = beside / each
    if flops is not None and peak:
        row |= {"flops": flops, "share_of_peak": flops / each / 1e12 / peak}
    return row


def _memory(name: str, here: Setting, beyond: int) -> Row:
    weights = sum(one.numel() * one.element_size() for one in here.made.plain.parameters())
    return {"name": name, "value": (weights + beyond) / 1e9, "unit": "GB", "weights": weights, "beyond": beyond}


def matrix_peak(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """TFLOP/s of the fastest of several products of two square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(once(lambda: left @ right) for _ in range(8)) / 1e12


def weights(quick: bool, device: torch.device) -> Setting:
    """The backbone: Qwen2-VL-7B's shape in bfloat16, or next to nothing in float32."""
    shape, dtype = (replace(TINY), torch.float32) if quick else (SEVEN_B, torch.bfloat16)
    counts = (16, 35) if quick else (SHORT, LONG)
    return Setting(make(shape, dtype, device), shape, counts, 1 if quick else 5, quick)


def measure(minutes: float, quick: bool, out: Path, only: tuple[str, ...] = tuple(PARTS)) -> dict[str, Any]:
    """All parts that the minutes allow; the file is written anew after each of them."""
    started, device = time.monotonic(), choose_device("cpu" if quick else "auto")
    here = weights(quick, device)
    dtype = here.backbone.dtype
    peak = matrix_peak(dtype, device, 256 if quick else 8192)
    run = Run(here, SMALL if quick else FULL, peak)
    content: dict[str, Any] = {
        "command": f"python benchmarks/gpu.py --minutes {minutes:g}{' --quick' if quick else ''}",
        "title": "A backbone of 7B on one GPU",
        "note": "Random weights of Qwen2-VL-7B's shape in bfloat16; six aspects, 32 trained vectors.",
        "quick": quick,
        "machine": machine_of(dtype, device, quick) | {"gemm_tflops": peak},
        "versions": library_versions(),
        "backbone": vars(here.shape) | {"parameters": sum(one.numel() for one in here.made.plain.parameters())},
        "results": [],
        "left_out": {},
    }
    del here
    for name in only:
        part, own = PARTS[name]
        if time.monotonic() - started > 60 * minutes:
            content["left_out"][name] = "no time was left"
        else:
            if own:
                run = _with_fresh_weights(run, quick, device)
            content["results"] += _tried(name, part, run, content["left_out"])
        _write(out, content)
    return content


def _tried(name: str, part: Part, run: Run, left_out: dict[str, str]) -> list[Row]:
    """The rows of a part, each with its goal; a part that fails does not end the others."""
    try:
        rows = part(run)
    except Exception as error:
        left_out[name] = f"{type(error).__name__}: {error}"[:400]
        rows = []
    for row in rows:
        if row["name"] in GOALS:
            value, least = GOALS[row["name"]]
            row |= {"goal": value, "met": row["value"] >= value if least else row["value"] <= value}
        print(f"{row['name']}: {row['value']:.3g} {row['unit']}", flush=True)
    gc.collect()
    return rows


def _with_fresh_weights(run: Run, quick: bool, device: torch.device) -> Run:
    sizes, peak = run.sizes, run.peak
    del run
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Run(weights(quick, device), sizes, peak)


def _write(out: Path, content: dict[str, Any]) -> None:
    rows = [
        [
            row["name"],
            f"{row['value']:.3g} {row['unit']}",
            f"{row['times_plain']:.1f}" if "times_plain" in row else "",
            f"{100 * row['share_of_peak']:.0f} %" if "share_of_peak" in row else "",
            f"{row['goal']:g}: {'met' if row['met'] else 'not met'}" if "goal" in row else "",
        ]
        for row in content["results"]
    ]
    head = ["measured", "value", "times the plain baseline", "of the matrix peak", "goal"]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content | {"table": {"head": head, "rows": rows}}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--quick", action="store_true", help="a tiny shape on the CPU; its figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.out is None and (args.quick or not torch.cuda.is_available()):
        parser.error("without a GPU nothing is measured that documents may show: name another file with --out")
    measure(args.minutes, args.quick, args.out or RESULT, tuple(args.only))
