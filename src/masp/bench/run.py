"""The whole benchmark: every group of lines on one machine, as one result."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from masp.adapters import library_versions
from masp.backbones.loading import choose_device, choose_dtype
from masp.bench import around, growing, inference, training
from masp.bench.clock import machine
from masp.bench.planned import checked
from masp.bench.result import BenchResult
from masp.bench.setting import Setting, setting
from masp.core.errors import UsageError, did_you_mean
from masp.model.cost_estimate import measured_peaks

Tell = Callable[[str], object]
Group = Callable[[Setting, dict[str, Any], Tell], Iterator[BenchResult]]

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


def run_bench(
    options: Options,
    tell: Tell,
    show: Callable[[BenchResult], object],
    before: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda content: None,
) -> dict[str, Any]:
    """Measure group by group, and say what was measured.

    A ratio compares with the baseline of its own group, so groups may be measured at different times. What the plan
    would have said is worked out anew from all lines, also where no group is left to measure.

    Args:
        options: what and how.
        tell: hears what runs now.
        show: gets every line as soon as it is known.
        before: what an earlier call on this machine returned. Its groups are kept and not measured again, unless
            `options.only` names one.
        keep: gets everything so far, at first and after each group.

    Returns:
        Everything, ready for JSON.

    Raises:
        UsageError: an unknown name, or `before` is of another machine, other versions or other options.
        BackboneError: an unknown dtype or device.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    tell("the machine's own peaks, and random weights")
    repeats = options.repeats or (2 if options.quick else 5)
    here = setting(options.quick, repeats, dtype, device, options.seed)
    content = _frame(options, here, machine(dtype, device, options.quick), repeats)
    if before is not None:
        content = _continued(before, content)
        content = _with_plan(content, here)
        keep(content)
    todo = [options.only] if options.only else [name for name in NAMES if name not in content["groups"]]
    for name in todo:
        found = machine(dtype, device, options.quick)
        lines = list(_measured(name, here, found, tell, show))
        content = _with_plan(_with_group(content, name, found, lines), here)
        keep(content)
    return content


def _with_plan(content: dict[str, Any], here: Setting) -> dict[str, Any]:
    """The same with the plan held against all lines."""
    plan = checked(content["results"], here.sizes(), measured_peaks(content), here.backbone.dtype.itemsize)
    return {**content, "plan": plan}


def _frame(options: Options, here: Setting, found: dict[str, Any], repeats: int) -> dict[str, Any]:
    """All but the measurements."""
    return {
        "command": command(options),
        "quick": options.quick,
        "machine": found,
        "versions": library_versions(),
        "seed": options.seed,
        "repeats": repeats,
        "backbone": {"weights": "random", "family": "qwen2_vl", **vars(here.shape), "parameters": _parameters(here)},
        "baselines": _baselines(here.backbone.dtype),
        "groups": {},
        "results": [],
        "growth": [],
        "plan": [],
    }


def _continued(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, if it may stand beside what is measured now."""
    same = ("quick", "versions", "seed", "repeats", "backbone", "baselines")
    different = [key for key in same if before.get(key) != now[key]]
    different += [key for key in ("processor", "device", "threads", "dtype") if _of(before, key) != now["machine"][key]]
    if different:
        todo = "Measure into another file, or without --add."
        raise UsageError(f"what the file holds was measured with other {', '.join(different)}", "", todo)
    return {**before, "command": now["command"].partition(" --only")[0] + " --json FILE"}


def _of(before: Mapping[str, Any], key: str) -> object:
    machine = before.get("machine")
    return machine.get(key) if isinstance(machine, Mapping) else None


def _measured(
    name: str, here: Setting, found: dict[str, Any], tell: Tell, show: Callable[[BenchResult], object]
) -> Iterator[dict[str, Any]]:
    """The lines of one group."""
    if name == GROWTH:
        yield from growing.growth(here, found, tell)
        return
    for result in GROUPS[name](here, found, tell):
        show(result)
        yield {"group": name, **result.to_json()}


def _with_group(
    content: Mapping[str, Any], name: str, found: dict[str, Any], lines: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was measured so far, with one more group in its place."""
    results = [line for line in content["results"] if line["group"] != name]
    results = sorted(results + (lines if name != GROWTH else []), key=lambda line: NAMES.index(line["group"]))
    peaks = {key: found[key] for key in ("gemm_tflops", "bandwidth_gb_s")}
    return {
        **content,
        "machine": found,
        "groups": {**content["groups"], name: peaks},
        "results": results,
        "growth": lines if name == GROWTH else content["growth"],
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
