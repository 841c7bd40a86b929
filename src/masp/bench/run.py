"""The whole benchmark: every group of lines on one machine, as one result."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from masp.adapters import library_versions
from masp.backbones.loading import choose_device, choose_dtype
from masp.bench import around, inference, training
from masp.bench.clock import machine
from masp.bench.result import Result
from masp.bench.setting import Setting, setting
from masp.errors import UsageError, did_you_mean
from masp.plan import checked

Tell = Callable[[str], object]
Group = Callable[[Setting, dict[str, Any], Tell], Iterator[Result]]

GROUPS: Mapping[str, Group] = MappingProxyType(
    {
        "stage2": training.stage2,
        "stage1": training.stage1,
        "memory": training.memory,
        "score": inference.one_image,
        "batched": inference.batched,
        "tasks": inference.tasks,
        "images": around.images,
        "embedded": around.embedded,
    }
)
GROWTH = "growth"
NAMES = (*GROUPS, GROWTH)


@dataclass(frozen=True)
class Options:
    """What is measured and how.

    Attributes:
        only: one of `NAMES`; None for all.
        quick: tiny sizes and few repeats, to see that it runs.
        repeats: how often each work is timed; None: five, or two when quick.
        dtype: as in `load_backbone`.
        device: as in `load_backbone`.
        threads: of torch; None: as it is.
        seed: of the random weights.

    Raises:
        UsageError: an unknown name, or too few repeats.
    """

    only: str | None = None
    quick: bool = False
    repeats: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.only is not None and self.only not in NAMES:
            raise UsageError(
                f"there is nothing to measure by the name '{self.only}'",
                f"one of {', '.join(NAMES)}",
                did_you_mean(self.only, NAMES),
            )
        if self.repeats is not None and self.repeats < (1 if self.quick else 5):
            raise UsageError(f"{self.repeats} repeats", "at least five; fewer only with --quick")


def run_bench(options: Options, tell: Tell, show: Callable[[Result], object]) -> dict[str, Any]:
    """Measure, and say what was measured.

    Args:
        options: what and how.
        tell: hears what runs now.
        show: gets every line as soon as it is known.

    Returns:
        Everything, ready for JSON.

    Raises:
        UsageError: an unknown name.
        BackboneError: an unknown dtype or device.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    tell("the machine's own peaks, and random weights")
    found = machine(dtype, device, options.quick)
    repeats = options.repeats or (2 if options.quick else 5)
    here = setting(options.quick, repeats, dtype, device, options.seed)
    results: list[Result] = []
    for name, group in GROUPS.items():
        if options.only in (None, name):
            for result in group(here, found, tell):
                results.append(result)
                show(result)
    growth = training.growth(here, found, tell) if options.only in (None, GROWTH) else []
    return {
        "command": command(options),
        "quick": options.quick,
        "machine": found,
        "versions": library_versions(),
        "seed": options.seed,
        "repeats": repeats,
        "backbone": {"weights": "random", "family": "qwen2_vl", **vars(here.shape), "parameters": _parameters(here)},
        "baselines": _baselines(dtype),
        "results": [result.to_json() for result in results],
        "growth": growth,
        "plan": checked([result.to_json() for result in results], found["gemm_tflops"]),
    }


def command(options: Options) -> str:
    """The command line that measures the same."""
    given = [
        ("--only", options.only),
        ("--repeats", options.repeats),
        ("--dtype", None if options.dtype == "auto" else options.dtype),
        ("--device", None if options.device == "auto" else options.device),
        ("--threads", options.threads),
        ("--seed", options.seed or None),
    ]
    words = [f"{name} {value}" for name, value in given if value is not None]
    return " ".join(["masp bench", *(["--quick"] if options.quick else []), *words, "--json FILE"])


def _parameters(here: Setting) -> int:
    return sum(one.numel() for one in here.made.plain.parameters())


def _baselines(dtype: torch.dtype) -> str:
    """What the baselines of this run are, in words."""
    name = str(dtype).removeprefix("torch.")
    plain = f"batch 1, full sequence, gradient checkpointing, all logits, AdamW on the embedding matrix, {name} weights"
    if dtype == torch.float32:
        return f"{plain}; computing in fp32, the code as released (fp32 weights under autocast) is the same baseline"
    return f"{plain}; and as released: fp32 weights under bfloat16 autocast"
