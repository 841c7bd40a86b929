"""Both stages of training against the plain baseline: time per example, memory, where the baseline's time goes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean, median
from typing import Any

import torch

from masp.backbones.random_init import make
from masp.bench.baseline import PlainSteps
from masp.bench.clock import Timing, Work, in_turn, memory_of
from masp.bench.result import BenchResult, Goal, faster
from masp.bench.setting import ANSWERS, LABELS, Setting
from masp.core.aspects import ASPECTS
from masp.core.types import CachedPrefix, ImageInput
from masp.model.masp_model import MaspModel

Tell = Callable[[str], object]
PAIRS_OF = 2  # images of a batch of stage 1
GRAPH, MOST = 1024, 8  # columns with a graph, and examples, that a batch may have; more saves no time and costs memory
PLAIN = ("facial_expression", "scene", "brightness")
"""The aspects that the baseline of stage 1 takes, because all six take it long; its pairs have a mean length of their
own, which its operations are counted by."""
STAGE2_GOALS = {
    "stage 2, released layout": {0: 6.0},
    "stage 2, paper layout, prefix recomputed": {0: 10.0},
    "stage 2, paper layout, prefix kept": {0: 18.0, 700: 30.0},
}
STAGE1_GOALS = {"stage 1, image-major": {0: 3.5}, "stage 1, features kept": {0: 6.0, 700: 9.0}}


def stage2(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """Steps of the soft prompt, from kept visual tokens or kept prefixes."""
    plain, really = PlainSteps(setting.made, setting.model("released")), as_released(setting)
    for count in setting.counts:
        works, batches, flops = _stage2_works(setting, count)
        works["baseline"] = (_plain_step(setting, plain, count), 1)
        if really is not None:
            works["baseline as released"] = (_plain_step(setting, really, count), 1)
        times = in_turn(works, setting.repeats, tell)
        for name, goals in STAGE2_GOALS.items():
            found = _training_result(name, times, goals, count, batches[name], flops, machine)
            if really is not None:
                found.more["ratio_to_released"] = times["baseline as released"].median / found.median_s
            yield found
        yield _where("baseline of stage 2", times["baseline"], plain, count)
        if really is not None:
            yield _where(
                "baseline of stage 2, fp32 weights under autocast", times["baseline as released"], really, count
            )
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


def stage1(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """Steps of the aspect modules; the unit is one pair of image and aspect."""
    plain = PlainSteps(setting.made, setting.model("released"))
    sizes = setting.sizes()
    for count in setting.counts:
        works = _stage1_works(setting, count)
        pairs = PAIRS_OF * len(ASPECTS)
        works["baseline"] = (_plain_pairs(setting, plain, count), len(PLAIN))
        times = in_turn(works, setting.repeats, tell)
        step = mean(sizes.step_flops(columns, 0, 4) for columns in pair_columns(setting, ASPECTS))
        flops = {
            "stage 1, image-major": step + sizes.vision_flops(count) / len(ASPECTS),
            "stage 1, features kept": step,
            "baseline": mean(sizes.plain_flops(count, columns) for columns in pair_columns(setting, PLAIN)),
        }
        for name, goals in STAGE1_GOALS.items():
            yield _training_result(name, times, goals, count, pairs, flops, machine)
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


def memory(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """Peak memory of a step of stage 2 beyond the frozen weights, at batch 1."""
    for count in setting.counts:
        tell(f"memory of stage 2, N = {count}")
        works, _, _ = _stage2_works(setting, count, 1)
        ours = {name: memory_of(work) for name, (work, _) in works.items()}
        plain = PlainSteps(setting.made, setting.model("released"))
        baseline = memory_of(_plain_step(setting, plain, count))
        weights = sum(one.numel() * one.element_size() for one in setting.made.plain.parameters())
        for name, found in ours.items():
            yield BenchResult(
                f"peak memory, {name}",
                found / baseline,
                "of the baseline's, beyond the frozen weights",
                Goal(0.35, at_least=False),
                0.0,
                None,
                0.0,
                count,
                more={
                    "bytes": found,
                    "baseline_bytes": baseline,
                    "weights_bytes": weights,
                    "with_weights": (found + weights) / (baseline + weights),
                },
            )


def _stage2_works(
    setting: Setting, count: int, batch: int | None = None
) -> tuple[dict[str, tuple[Work, int]], dict[str, int], dict[str, float]]:
    """The three ways of stage 2, with batch sizes and operations per example."""
    works: dict[str, tuple[Work, int]] = {}
    batches: dict[str, int] = {}
    flops: dict[str, float] = {}
    sizes = setting.sizes()
    for name in STAGE2_GOALS:
        variant = "released" if "released" in name else "paper"
        model, question = setting.model(variant), setting.question(variant=variant)
        one = setting.backbone.visual_tokens(setting.pixels(count))
        assembled = model.build_inputs(one, [question], ["awe"])
        graph = assembled.attention_mask.shape[1] - assembled.prefix_end
        number = batch or max(1, min(MOST, GRAPH // graph))
        visual = one.select([0] * number)
        prefix = [model.prefix(one, [question]).rows()[0]] * number if "kept" in name else None
        works[name] = (prompt_step(model, visual if prefix is None else prefix, question), number)
        batches[name] = number
        supervised = int((assembled.labels >= 0).sum())
        flops[name] = sizes.step_flops(graph, assembled.prefix_end, supervised)
        if variant == "released":
            flops["baseline"] = sizes.plain_flops(count, assembled.attention_mask.shape[1])
        if "recomputed" in name:
            flops[name] += sizes.forward_flops(assembled.prefix_end)
    return works, batches, flops


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


def _training_result(
    name: str,
    times: dict[str, Timing],
    goals: dict[int, float],
    count: int,
    batch: int,
    flops: dict[str, float],
    machine: dict[str, Any],
) -> BenchResult:
    goal = Goal(goals.get(count, goals[0]))
    found = faster(name, times[name], times["baseline"], goal, count, batch)
    reached = flops[name] / found.median_s / 1e12
    found.more.update(flops=flops[name], tflops=reached, share_of_gemm_peak=reached / machine["gemm_tflops"])
    found.more["ratio_by_arithmetic"] = flops["baseline"] / flops[name]  # what equal efficiency would give
    return found


def _where(name: str, baseline: Timing, plain: PlainSteps, count: int) -> BenchResult:
    """How much of the baseline is AdamW and how much the vision tower."""
    optimizer, vision = median(plain.spent.optimizer), median(plain.spent.vision)
    plain.spent.optimizer.clear()
    plain.spent.vision.clear()
    shares = {"optimizer_share": optimizer / baseline.median, "vision_share": vision / baseline.median}
    return BenchResult(
        name,
        None,
        "",
        None,
        baseline.median,
        None,
        baseline.spread,
        count,
        1,
        baseline.seconds,
        more={"optimizer_s": optimizer, "vision_s": vision, **shares},
    )
