"""What the method costs on this machine, as ratios to a plain implementation of it in the same run.

python benchmarks/bench.py --quick                  # a minute; that everything runs, its figures mean nothing
python benchmarks/bench.py --json bench.json        # an hour on two quiet cores, 16 GB of memory
python benchmarks/bench.py --json bench.json --add  # goes on where that was stopped, group by group
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from bench_setting import (
    ANSWERS,
    LABELS,
    TASKS,
    Setting,
    Timing,
    Work,
    in_turn,
    machine_of,
    memory_of,
    resident,
    setting,
)
from PIL import Image, ImageFilter
from plain_steps import PlainSteps, bare_forward
from random_weights import make

from masp.adapters import library_versions
from masp.backbones.loading import choose_device, choose_dtype, load_backbone
from masp.backbones.model_stats import sizes_of
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import write_file
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import MaspError, UsageError, did_you_mean
from masp.core.types import CachedPrefix, ImageInput, Pixels
from masp.data.prefetch import prefetch
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import MaspModel, init_soft_prompt
from masp.model.scoring import LabelQuestion, generate, score, score_tasks

Tell = Callable[[str], object]
Line = dict[str, Any]
Goals = Mapping[int, float]  # visual tokens → goal; 0: any other number

PAIRS_OF = 2  # images of a batch of stage 1
GRAPH, MOST = 1024, 8  # columns with a graph, and examples, that a batch may have; more saves no time and costs memory
PLAIN = ("facial_expression", "scene", "brightness")
"""The aspects that the baseline of stage 1 takes, because all six take it long; its pairs have a mean length of their
own, which its operations are counted by."""
STAGE2_GOALS: Mapping[str, Goals] = {
    "stage 2, released layout": {0: 6.0},
    "stage 2, paper layout, prefix recomputed": {0: 10.0},
    "stage 2, paper layout, prefix kept": {0: 18.0, 700: 30.0},
}
STAGE1_GOALS: Mapping[str, Goals] = {
    "stage 1, image-major": {0: 3.5},
    "stage 1, features kept": {0: 6.0, 700: 9.0},
}
ONE_GOALS: Goals = {0: 1.25, 700: 1.10}
EACH_TASK: Goals = {0: 0.20, 700: 0.12}  # of the first task's cost
WORDS = 4
COLUMNS = 4096  # of a batch
PICTURES = 8  # files, read again and again
SMALL = 512  # pixels of the longer side, which make 252 visual tokens


def line(
    name: str,
    ratio: float | None,
    meaning: str,
    goal: float | None = None,
    time: Timing | None = None,
    *,
    at_least: bool = True,
    baseline: Timing | None = None,
    visual: int | None = None,
    batch: int = 1,
    **more: Any,
) -> Line:
    """One line: what was measured, its ratio to the baseline of the same run, and whether its goal is met."""
    met = None if goal is None or ratio is None else ratio >= goal if at_least else ratio <= goal
    seconds = [] if time is None else list(time.seconds)
    return {
        "name": name,
        "ratio": ratio,
        "meaning": meaning,
        "goal": goal,
        "at_least": None if goal is None else at_least,
        "met": met,
        "median_s": time.median if time else 0.0,
        "baseline_s": baseline.median if baseline else None,
        "spread": time.spread if time else 0.0,
        "visual": visual,
        "batch": batch,
        "repeats": len(seconds),
        "seconds": seconds,
        "note": "",
        "more": more,
    }


def faster(name: str, ours: Timing, baseline: Timing, goal: float, visual: int, batch: int, **more: Any) -> Line:
    """How many times faster per example than the baseline."""
    where = {"baseline": baseline, "visual": visual, "batch": batch}
    return line(name, baseline.median / ours.median, "times faster than the baseline", goal, ours, **where, **more)


def costs(name: str, ours: Timing, other: Timing, what: str, goal: float | None, visual: int, **more: Any) -> Line:
    """The time of `ours` as a multiple of that of `other`."""
    ratio = ours.median / other.median
    return line(name, ratio, what, goal, ours, at_least=False, baseline=other, visual=visual, **more)


def reaches(name: str, ours: Timing, rate: float, unit: str, batch: int = 1, **more: Any) -> Line:
    """A rate (examples per second) as a share of the one that is wanted."""
    value = 1 / ours.median
    return line(name, value / rate, f"of {rate:g} {unit}", 1.0, ours, batch=batch, value=value, unit=unit, **more)


# --- training --------------------------------------------------------------------------------------------------------


def stage2(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """Steps of the soft prompt, from kept visual tokens or kept prefixes."""
    plain, really = PlainSteps(setting.made, setting.model("released")), as_released(setting)
    for count in setting.counts:
        works, flops = _stage2_works(setting, count)
        works["baseline"] = (_plain_step(setting, plain, count), 1)
        if really is not None:
            works["baseline as released"] = (_plain_step(setting, really, count), 1)
        times = in_turn(works, setting.repeats, tell)
        for name, goals in STAGE2_GOALS.items():
            found = _training_line(name, times, goals, count, works[name][1], flops, machine)
            if really is not None:
                found["more"]["ratio_to_released"] = times["baseline as released"].median / found["median_s"]
            yield found
        yield _where("baseline of stage 2", times["baseline"], plain, count)
        if really is not None:
            name = "baseline of stage 2, fp32 weights under autocast"
            yield _where(name, times["baseline as released"], really, count)
        plain.forget()


def as_released(setting: Setting) -> PlainSteps | None:
    """The baseline as the released code really runs: fp32 weights, computing in bfloat16 by autocast.

    None where everything runs in fp32 anyway, because the machine has no bfloat16 arithmetic: then the two are one.
    """
    backbone = setting.backbone
    if backbone.dtype == torch.float32:
        return None
    wide = replace(setting, made=make(setting.shape, torch.float32, backbone.device, setting.seed))
    return PlainSteps(wide.made, wide.model("released"), autocast=True)


def _plain_step(setting: Setting, plain: PlainSteps, count: int) -> Work:
    pixels, question = setting.pixels(count), setting.question(variant="released")
    return lambda: plain.stage2(pixels, question, "awe")


def stage1(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """Steps of the aspect modules; the unit is one pair of image and aspect."""
    plain = PlainSteps(setting.made, setting.model("released"))
    sizes = setting.sizes()
    for count in setting.counts:
        works = _stage1_works(setting, count)
        works["baseline"] = (_plain_pairs(setting, plain, count), len(PLAIN))
        times = in_turn(works, setting.repeats, tell)
        step = mean(sizes.step_flops(columns, 0, 4) for columns in pair_columns(setting, ASPECTS))
        flops = {
            "stage 1, image-major": step + sizes.vision_flops(count) / len(ASPECTS),
            "stage 1, features kept": step,
            "baseline": mean(sizes.plain_flops(count, columns) for columns in pair_columns(setting, PLAIN)),
        }
        for name, goals in STAGE1_GOALS.items():
            yield _training_line(name, times, goals, count, works[name][1], flops, machine)
        yield _where("baseline of stage 1", times["baseline"], plain, count)
        plain.forget()


def pair_columns(setting: Setting, names: Sequence[str]) -> list[int]:
    """Columns of a pair of stage 1 for each of these aspects."""
    model = setting.model("released")
    asked, said = [setting.aspect_question(name) for name in names], [ANSWERS[name] for name in names]
    tokens = torch.zeros(len(names), 1, model.aspect_module().queries, setting.backbone.dim)
    return model.sequence_builder(asked, said, aspects=tokens).attention_mask.sum(1).tolist()


def _stage1_works(setting: Setting, count: int) -> dict[str, tuple[Work, int]]:
    """The two ways of stage 1 on whole images."""
    model, pixels = setting.model("released"), setting.pixels(count, PAIRS_OF)
    kept = setting.backbone.visual_tokens(pixels)
    optimizer = torch.optim.AdamW(model.aspect_module().parameters(), lr=1e-9, fused=True)
    rows = [row for row in range(PAIRS_OF) for _ in ASPECTS]
    index = torch.arange(len(ASPECTS)).repeat(PAIRS_OF)
    asked = [setting.aspect_question(name) for name in ASPECTS] * PAIRS_OF
    said = [ANSWERS[name] for name in ASPECTS] * PAIRS_OF

    def work(from_pixels: bool) -> None:
        visual = setting.backbone.visual_tokens(pixels) if from_pixels else kept
        _update(model.aspect_loss(visual, index, asked, said, rows).mean(), optimizer)

    return {
        "stage 1, image-major": (lambda: work(True), len(rows)),
        "stage 1, features kept": (lambda: work(False), len(rows)),
    }


def _plain_pairs(setting: Setting, plain: PlainSteps, count: int) -> Work:
    """A step for each of some aspects of one image, each from the pixels."""
    pixels = setting.pixels(count)
    asked = {name: setting.aspect_question(name) for name in PLAIN}

    def work() -> None:
        for name in PLAIN:
            plain.stage1(pixels, name, asked[name], ANSWERS[name])

    return work


def memory(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """Peak memory of a step of stage 2 beyond the frozen weights, at batch 1."""
    weights = sum(one.numel() * one.element_size() for one in setting.made.plain.parameters())
    for count in setting.counts:
        tell(f"memory of stage 2, N = {count}")
        ours = {name: memory_of(work) for name, (work, _) in _stage2_works(setting, count, 1)[0].items()}
        plain = PlainSteps(setting.made, setting.model("released"))
        baseline = memory_of(_plain_step(setting, plain, count))
        for name, found in ours.items():
            more: dict[str, Any] = {"bytes": found, "baseline_bytes": baseline, "weights_bytes": weights}
            more["with_weights"] = (found + weights) / (baseline + weights)
            what = "of the baseline's, beyond the frozen weights"
            yield line(f"peak memory, {name}", found / baseline, what, 0.35, at_least=False, visual=count, **more)


def _stage2_works(
    setting: Setting, count: int, batch: int | None = None
) -> tuple[dict[str, tuple[Work, int]], dict[str, float]]:
    """The three ways of stage 2 with their batch sizes, and operations per example."""
    works: dict[str, tuple[Work, int]] = {}
    flops: dict[str, float] = {}
    sizes = setting.sizes()
    for name in STAGE2_GOALS:
        variant = "released" if "released" in name else "paper"
        model, question = setting.model(variant), setting.question(variant=variant)
        one = setting.backbone.visual_tokens(setting.pixels(count))
        inputs = model.build_inputs(one, [question], ["awe"])
        graph = inputs.attention_mask.shape[1] - inputs.prefix_end
        number = batch or max(1, min(MOST, GRAPH // graph))
        visual = one.select([0] * number)
        prefix = [model.prefix(one, [question]).rows()[0]] * number if "kept" in name else None
        works[name] = (prompt_step(model, visual if prefix is None else prefix, question), number)
        flops[name] = sizes.step_flops(graph, inputs.prefix_end, int((inputs.labels >= 0).sum()))
        if variant == "released":
            flops["baseline"] = sizes.plain_flops(count, inputs.attention_mask.shape[1])
        if "recomputed" in name:
            flops[name] += sizes.forward_flops(inputs.prefix_end)
    return works, flops


def prompt_step(model: MaspModel, images: ImageInput | list[CachedPrefix], question: str) -> Work:
    """A step of the optimizer on images whose visual tokens or prefixes are kept."""
    assert model.prompt is not None
    optimizer = torch.optim.AdamW(model.prompt.parameters(), lr=1e-9, fused=True)

    def work() -> None:
        seen = CachedPrefix.stack(images) if isinstance(images, list) else images  # as the store hands them out
        answers = [LABELS[row % len(LABELS)] for row in range(len(seen))]
        _update(model.prompt_loss(seen, [question] * len(seen), answers).mean(), optimizer)

    return work


def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _training_line(
    name: str,
    times: Mapping[str, Timing],
    goals: Goals,
    count: int,
    batch: int,
    flops: Mapping[str, float],
    machine: Line,
) -> Line:
    reached = flops[name] / times[name].median / 1e12
    more = {"flops": flops[name], "tflops": reached, "share_of_gemm_peak": reached / machine["gemm_tflops"]}
    more["ratio_by_arithmetic"] = flops["baseline"] / flops[name]  # what equal efficiency would give
    return faster(name, times[name], times["baseline"], goals.get(count, goals[0]), count, batch, **more)


def _where(name: str, baseline: Timing, plain: PlainSteps, count: int) -> Line:
    """How much of the baseline is AdamW and how much the vision tower."""
    optimizer, vision = median(plain.spent.optimizer), median(plain.spent.vision)
    plain.spent.optimizer.clear()
    plain.spent.vision.clear()
    shares: dict[str, Any] = {"optimizer_share": optimizer / baseline.median, "vision_share": vision / baseline.median}
    return line(name, None, "", None, baseline, visual=count, optimizer_s=optimizer, vision_s=vision, **shares)


# --- prediction ------------------------------------------------------------------------------------------------------


def one_image(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """`score` on one image, from its pixels, as a multiple of transformers' forward pass of the bare backbone."""
    model, question, backbone = setting.model("paper"), setting.question(), setting.backbone
    for count in setting.counts:
        pixels = setting.pixels(count)
        visual = backbone.visual_tokens(pixels)
        works: dict[str, tuple[Work, int]] = {
            "score": (_scored(setting, count, 1), 1),
            "bare": (partial(bare_forward, setting.made, pixels, question, visual.layouts), 1),
        }
        times = in_turn(works, setting.repeats, tell)
        columns = model.build_inputs(visual, [question]).attention_mask.shape[1]
        columns += sum(len(backbone.answer_ids(label, end=True)) - 1 for label in LABELS)
        bare = len(backbone.template(question, visual.layouts[0]).ids)
        what, goal = "times one forward pass of the bare backbone", ONE_GOALS.get(count, ONE_GOALS[0])
        more = {"columns": columns, "bare_columns": bare, "columns_ratio": columns / bare}
        yield costs("score, one image", times["score"], times["bare"], what, goal, count, **more)


def batched(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """`score` in batches against greedy answers image by image; the goal is the bound that the prompt itself sets."""
    for count in setting.counts:
        number = max(1, min(16, COLUMNS // (count + 100)))
        works: dict[str, tuple[Work, int]] = {
            "score": (_scored(setting, count, number), number),
            "prefill": (_prefilled(setting, count, number), number),
            "generate": (_generated(setting, count, WORDS), 1),
            "prefill of one": (_generated(setting, count, 1), 1),
        }
        times = in_turn(works, setting.repeats, tell)
        score_s, prefill_s = times["score"].median, times["prefill"].median
        generate_s, one_s = times["generate"].median, times["prefill of one"].median
        more = {
            "gain_over_generating": generate_s / score_s,
            "bound": generate_s / prefill_s,
            "prefill_s": prefill_s,
            "prefill_one_s": one_s,
            "decode_word_s": (generate_s - one_s) / (WORDS - 1),
            "words": WORDS,
        }
        what = "of the largest possible gain over greedy answers image by image"
        where = {"baseline": times["generate"], "visual": count, "batch": number}
        yield line("score, batched, of the bound", prefill_s / score_s, what, 0.9, times["score"], **where, **more)


def tasks(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """Several questions, each with its labels, on one image, as a multiple of the first question alone."""
    model, backbone = setting.model("paper"), setting.backbone
    asked = [LabelQuestion(model, setting.question(labels), labels) for labels in TASKS]

    def several(pixels: Pixels, number: int) -> Work:
        return lambda: score_tasks(backbone.visual_tokens(pixels), asked[:number])

    for count in setting.counts:
        numbers, pixels = (2, len(asked)), setting.pixels(count)
        works: dict[str, tuple[Work, int]] = {"one": (_scored(setting, count, 1), 1)}
        works |= {str(number): (several(pixels, number), 1) for number in numbers}
        times = in_turn(works, setting.repeats, tell)
        for number in numbers:
            goal = 1 + EACH_TASK.get(count, EACH_TASK[0]) * (number - 1)
            yield costs(f"{number} tasks on one image", times[str(number)], times["one"], "times one task", goal, count)


def _scored(setting: Setting, count: int, number: int) -> Work:
    model, question, pixels = setting.model("paper"), setting.question(), setting.pixels(count, number)
    return lambda: score(model, setting.backbone.visual_tokens(pixels), question, LABELS)


def _prefilled(setting: Setting, count: int, number: int) -> Work:
    """The same prompts without any label: what has to be computed for one word of an answer."""
    model, question, pixels = setting.model("paper"), setting.question(), setting.pixels(count, number)
    backbone = setting.backbone

    @torch.no_grad()
    def work() -> None:
        found = model.build_inputs(backbone.visual_tokens(pixels), [question] * number)
        columns = (found.inputs_embeds, found.position_ids, found.attention_mask)
        last = torch.full((number, 1), found.attention_mask.shape[1] - 1, device=found.attention_mask.device)
        backbone.logits(backbone.forward(*columns, output_positions=last).hidden)

    return work


def _generated(setting: Setting, count: int, words: int) -> Work:
    model, question, pixels = setting.model("paper"), setting.question(), setting.pixels(count)
    return lambda: generate(model, setting.backbone.visual_tokens(pixels), question, max_new_tokens=words)


# --- around the large backbone ---------------------------------------------------------------------------------------


def images(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """Decoding, shrinking and preprocessing JPEGs of 1600 × 1200, in one thread."""
    many, each = (24, 8) if setting.quick else (10_000, 40)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="masp-bench-") as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(PICTURES)]
        for number, path in enumerate(paths):
            _photograph(number).save(path, quality=90)

        def read(count: int, side: int = SMALL) -> list[int]:
            stream = (paths[number % PICTURES] for number in range(count))
            batches = enumerate(prefetch(stream, setting.backbone.preprocess, 4, 0, side))
            return [resident() for number, _ in batches if number % 8 == 0]

        def each_of(work: Callable[[Path], None]) -> tuple[Work, int]:
            return lambda: [work(paths[number % PICTURES]) for number in range(each)], each

        torch.set_num_threads(1)
        try:
            works: dict[str, tuple[Work, int]] = {
                "reading": (lambda: read(each), each),
                "as by default": (lambda: read(each, 1024), each),
                "decoding": each_of(_decoded),
                "and shrinking": each_of(_shrunk),
            }
            times = in_turn(works, setting.repeats, tell)
            tell(f"reading {many} images, for the memory")
            seen = read(many)
        finally:
            torch.set_num_threads(threads)
    floor: dict[str, Any] = {"decode_s": times["decoding"].median, "decode_and_shrink_s": times["and shrinking"].median}
    unit = "images/s per core"
    yield reaches(f"read a 1600 × 1200 JPEG at {SMALL} pixels", times["reading"], 40.0, unit, 1, **floor)
    yield reaches("read a 1600 × 1200 JPEG at 1,024 pixels", times["as by default"], 40.0, unit)
    start, later = max(seen[: len(seen) // 10 + 1]), max(seen)
    what = f"of what the first tenth of {many:,} images needed"
    more: dict[str, Any] = {"pictures": many, "start_bytes": start}
    yield line("memory while reading", later / start, what, 1.05, at_least=False, most_bytes=later, **more)


def embedded(setting: Setting, machine: Line, tell: Tell) -> Iterator[Line]:
    """The embedded default: steps of stage 2 with the prefix kept, as `masp demo` sets it up."""
    backbone = load_backbone("embedded")
    aspects = AspectModules(backbone.dim, ASPECTS, 5, "single", torch.Generator().manual_seed(0))
    prompt = init_soft_prompt(PromptInit(), 32, backbone, torch.Generator().manual_seed(0))
    model = MaspModel(backbone, MethodConfig(queries=5, prompt_length=32), aspects, prompt)
    batch, question = (8 if setting.quick else 64), setting.question()
    pictures = [_photograph(number).resize((168, 168)) for number in range(PICTURES)]
    visual = backbone.visual_tokens(backbone.preprocess(pictures))
    rows = model.prefix(visual, [question] * PICTURES).rows()
    step = prompt_step(model, [rows[number % PICTURES] for number in range(batch)], question)
    time = in_turn({"the embedded default": (step, batch)}, setting.repeats, tell)["the embedded default"]
    row = model.build_inputs(visual.select([0]), [question], [LABELS[0]])
    graph, supervised = row.attention_mask.shape[1] - row.prefix_end, int((row.labels >= 0).sum())
    flops = sizes_of("embedded").step_flops(graph, row.prefix_end, supervised)
    same = backbone.dtype == setting.backbone.dtype
    peak = (machine if same else machine_of(backbone.dtype, backbone.device, setting.quick))["gemm_tflops"]
    reached = flops / time.median / 1e12
    more = {"flops": flops, "tflops": reached, "share_of_gemm_peak": reached / peak, "at_peak": 1e12 * peak / flops}
    yield reaches("embedded default, stage 2, prefix kept", time, 500.0, "examples/s", batch, **more)


def _decoded(path: Path) -> None:
    """What Pillow's decoder alone takes."""
    with Image.open(path) as image:
        image.load()


def _shrunk(path: Path) -> None:
    """Decoding, and Pillow's one pass to the final size: less than this no reading with Pillow can take."""
    with Image.open(path) as image:
        image.resize((SMALL, SMALL * 3 // 4), Image.Resampling.BICUBIC)


def _photograph(seed: int) -> Image.Image:
    """An image of 1600 × 1200 with large shapes and fine grain, whose JPEG is as large as a photograph's."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (12, 16, 3), generator=generator, dtype=torch.uint8)
    smooth = Image.fromarray(small.numpy()).resize((1600, 1200), Image.Resampling.BICUBIC)
    grain = torch.randint(0, 256, (1200, 1600, 3), generator=generator, dtype=torch.uint8)
    return Image.blend(smooth, Image.fromarray(grain.numpy()).filter(ImageFilter.GaussianBlur(1)), 0.15)


# --- the whole -------------------------------------------------------------------------------------------------------

Group = Callable[[Setting, Line, Tell], Iterator[Line]]

GROUPS: Mapping[str, Group] = {
    "stage2": stage2,
    "stage1": stage1,
    "memory": memory,
    "score": one_image,
    "batched": batched,
    "tasks": tasks,
    "images": images,
    "embedded": embedded,
}


@dataclass(frozen=True)
class Options:
    """What is measured and how; see the command's options."""

    only: str | None = None
    quick: bool = False
    repeats: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.only is not None and self.only not in GROUPS:
            got = f"there is nothing to measure by the name '{self.only}'"
            raise UsageError(got, f"one of {', '.join(GROUPS)}", did_you_mean(self.only, GROUPS))
        if self.repeats is not None and self.repeats < (1 if self.quick else 5):
            raise UsageError(f"{self.repeats} repeats", "at least five; fewer only with --quick")

    def command(self) -> str:
        """The command line that measures the same."""
        given = {
            "--only": self.only,
            "--repeats": self.repeats,
            "--dtype": None if self.dtype == "auto" else self.dtype,
            "--device": None if self.device == "auto" else self.device,
            "--threads": self.threads,
            "--seed": self.seed or None,
        }
        words = [f"{name} {value}" for name, value in given.items() if value is not None]
        return " ".join(["python benchmarks/bench.py", *(["--quick"] if self.quick else []), *words, "--json FILE"])


def run_bench(
    options: Options,
    tell: Tell,
    show: Callable[[dict[str, Any]], object],
    before: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda content: None,
) -> dict[str, Any]:
    """Measure group by group; a ratio compares with the baseline of its own group, so each may have its own time."""
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    tell("the machine's own peaks, and random weights")
    repeats = options.repeats or (2 if options.quick else 5)
    here = setting(options.quick, repeats, dtype, device, options.seed)
    content: dict[str, Any] = {
        "command": options.command(),
        "quick": options.quick,
        "machine": machine_of(dtype, device, options.quick),
        "versions": library_versions(),
        "seed": options.seed,
        "repeats": repeats,
        "backbone": {"weights": "random", "family": "qwen2_vl", **vars(here.shape), "parameters": _parameters(here)},
        "baselines": _baselines(here.backbone.dtype),
        "groups": {},
        "results": [],
    }
    if before is not None:
        content = _continued(before, content)
    todo = [options.only] if options.only else [name for name in GROUPS if name not in content["groups"]]
    for name in todo:
        found = machine_of(dtype, device, options.quick)
        lines = []
        for result in GROUPS[name](here, found, tell):
            lines.append({"group": name, **result})
            show(lines[-1])
        others = [line for line in content["results"] if line["group"] != name]
        results = sorted(others + lines, key=lambda line: list(GROUPS).index(line["group"]))
        peaks = {key: found[key] for key in ("gemm_tflops", "bandwidth_gb_s")}
        content |= {"machine": found, "groups": {**content["groups"], name: peaks}, "results": results}
        keep(content)
    return content


def _continued(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, if it may stand beside what is measured now."""
    machine: Mapping[str, Any] = before.get("machine") or {}
    same = ("quick", "versions", "seed", "repeats", "backbone", "baselines")
    different = [key for key in same if before.get(key) != now[key]]
    different += [key for key in ("processor", "device", "threads", "dtype") if machine.get(key) != now["machine"][key]]
    if different:
        todo = "Measure into another file, or without --add."
        raise UsageError(f"what the file holds was measured with other {', '.join(different)}", "", todo)
    return {**before, "command": re.sub(r" --only \w+", "", now["command"])}


def _parameters(here: Setting) -> int:
    return sum(one.numel() for one in here.made.plain.parameters())


def _baselines(dtype: torch.dtype) -> str:
    """What the baselines of this run are, in words."""
    name = str(dtype).removeprefix("torch.")
    plain = f"batch 1, full sequence, gradient checkpointing, all logits, AdamW on the embedding matrix, {name} weights"
    if dtype == torch.float32:
        return f"{plain}; computing in fp32, the code as released (fp32 weights under autocast) is the same baseline"
    return f"{plain}; and as released: fp32 weights under bfloat16 autocast"


def line_of(row: Mapping[str, Any]) -> str:
    """One result on one line; behind the ratio what it is, and where the baseline's time goes."""
    goal = "" if row["goal"] is None else f"(goal {'≥' if row['at_least'] else '≤'} {row['goal']:g}, met: {row['met']})"
    more, what = row["more"], row["meaning"]
    if "optimizer_share" in more:
        what = f"of its time: AdamW {more['optimizer_share']:.1%}, the vision tower {more['vision_share']:.1%}"
    if "gain_over_generating" in more:
        what += f": {more['gain_over_generating']:.2f} of at most {more['bound']:.2f} times"
    visual = "" if row["visual"] is None else f"N = {row['visual']}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    seconds = f"{row['median_s']:.4f} s per example, spread {row['spread']:.0%}" if row["median_s"] else ""
    return "  ".join(word for word in (row["name"], visual, ratio, what, goal, seconds) if word)


def read_before(file: Path | None) -> dict[str, Any] | None:
    """What the file holds; None where there is none yet."""
    if file is None:
        raise UsageError("--add without --json", "a file to add to", "Name it: --json FILE.")
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content, "groups": dict(content["groups"]), "results": list(content["results"])}
    except (OSError, ValueError, KeyError, TypeError):
        todo = "Name another file, or leave --add out to write it anew."
        raise UsageError(f"{file} is not what this benchmark wrote", "a result file of it", todo) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print every line as soon as it is known, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here")
    parser.add_argument("--only", metavar="NAME", help=f"one group of lines: {', '.join(GROUPS)}")
    parser.add_argument("--add", action="store_true", help="keep the groups that FILE holds; measure the missing ones")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two repeats: a check, no measurement")
    parser.add_argument("--repeats", type=int, help="how often each work is timed; default: 5")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.json is not None:  # before an hour is spent
        asked.json.parent.mkdir(parents=True, exist_ok=True)
    before = read_before(asked.json) if asked.add else None
    given = (asked.only, asked.quick, asked.repeats, asked.dtype, asked.device, asked.threads, asked.seed)

    def keep(content: dict[str, Any]) -> None:
        if asked.json is not None:
            write_file(asked.json, (json.dumps(content, indent=1) + "\n").encode())

    def tell(name: str) -> None:
        print(name, file=sys.stderr)

    found = run_bench(Options(*given), tell, lambda row: print(line_of(row), flush=True), before, keep)
    machine = found["machine"]
    print(
        f"{machine['processor']}, {machine['device']}, {machine['threads']} threads, {machine['dtype']}: "
        f"{machine['gemm_tflops']:.3f} TFLOP/s in a matrix product, {machine['bandwidth_gb_s']:.1f} GB/s copying\n"
        f"baseline: {found['baselines']}"
    )


if __name__ == "__main__":
    try:
        main()
    except MaspError as error:
        sys.exit(f"error: {error}")
