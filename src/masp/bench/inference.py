"""Label scores against asking the bare backbone, against generating answers, and for several tasks on one image."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from masp.bench.baseline import bare_forward
from masp.bench.clock import Work, in_turn
from masp.bench.result import BenchResult, Goal, costs
from masp.bench.setting import LABELS, TASKS, Setting
from masp.model.scoring import LabelQuestion, generate, score, score_tasks

Tell = Callable[[str], object]
ONE_GOALS = {0: 1.25, 700: 1.10}
EACH_TASK = {0: 0.20, 700: 0.12}  # of the first task's cost
WORDS = 4
COLUMNS = 4096  # of a batch


def one_image(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """`score` on one image, from its pixels, as a multiple of transformers' forward pass of the bare backbone."""
    model, question = setting.model("paper"), setting.question()
    for count in setting.counts:
        pixels = setting.pixels(count)
        layouts = setting.backbone.visual_tokens(pixels).layouts
        works: dict[str, tuple[Work, int]] = {
            "score": (_scored(setting, count, 1), 1),
            "bare": (_bare(setting, count), 1),
        }
        times = in_turn(works, setting.repeats, tell)
        columns = model.build_inputs(setting.backbone.visual_tokens(pixels), [question]).attention_mask.shape[1]
        branches = sum(len(setting.backbone.answer_ids(label, end=True)) - 1 for label in LABELS)
        bare = len(setting.backbone.template(question, layouts[0]).ids)
        goal = Goal(ONE_GOALS.get(count, ONE_GOALS[0]), at_least=False)
        what = "times one forward pass of the bare backbone"
        more = {"columns": columns + branches, "bare_columns": bare, "columns_ratio": (columns + branches) / bare}
        yield costs("score, one image", times["score"], times["bare"], what, goal, count, **more)


def batched(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
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
        yield BenchResult(
            "score, batched, of the bound",
            prefill_s / score_s,
            "of the largest possible gain over greedy answers image by image",
            Goal(0.9),
            score_s,
            generate_s,
            times["score"].spread,
            count,
            number,
            times["score"].seconds,
            more={
                "gain_over_generating": generate_s / score_s,
                "bound": generate_s / prefill_s,
                "prefill_s": prefill_s,
                "prefill_one_s": one_s,
                "decode_word_s": (generate_s - one_s) / (WORDS - 1),
                "words": WORDS,
            },
        )


def tasks(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """Several questions, each with its labels, on one image, as a multiple of the first question alone."""
    model = setting.model("paper")
    asked = [(setting.question(labels), labels) for labels in TASKS]
    for count in setting.counts:
        works: dict[str, tuple[Work, int]] = {"one": (_scored(setting, count, 1), 1)}
        for number in (2, len(asked)):
            works[str(number)] = (_several(setting, model, count, asked[:number]), 1)
        times = in_turn(works, setting.repeats, tell)
        for number in (2, len(asked)):
            goal = Goal(1 + EACH_TASK.get(count, EACH_TASK[0]) * (number - 1), at_least=False)
            yield costs(f"{number} tasks on one image", times[str(number)], times["one"], "times one task", goal, count)


def _scored(setting: Setting, count: int, number: int) -> Work:
    model, question, pixels = setting.model("paper"), setting.question(), setting.pixels(count, number)
    return lambda: score(model, setting.backbone.visual_tokens(pixels), question, LABELS)


def _bare(setting: Setting, count: int) -> Work:
    pixels, question = setting.pixels(count), setting.question()
    layouts = setting.backbone.visual_tokens(pixels).layouts
    return lambda: bare_forward(setting.made, pixels, question, layouts)


def _prefilled(setting: Setting, count: int, number: int) -> Work:
    """The same prompts without any label: what has to be computed for one word of an answer."""
    model, question, pixels = setting.model("paper"), setting.question(), setting.pixels(count, number)
    backbone = setting.backbone

    @torch.no_grad()
    def work() -> None:
        found = model.build_inputs(backbone.visual_tokens(pixels), [question] * number)
        last = torch.full((number, 1), found.attention_mask.shape[1] - 1, device=found.attention_mask.device)
        backbone.logits(
            backbone.forward(
                found.inputs_embeds, found.position_ids, found.attention_mask, output_positions=last
            ).hidden
        )

    return work


def _generated(setting: Setting, count: int, words: int) -> Work:
    model, question, pixels = setting.model("paper"), setting.question(), setting.pixels(count)
    return lambda: generate(model, setting.backbone.visual_tokens(pixels), question, max_new_tokens=words)


def _several(setting: Setting, model: Any, count: int, asked: list[tuple[str, Any]]) -> Work:
    pixels = setting.pixels(count)
    questions = [LabelQuestion(model, question, labels) for question, labels in asked]
    return lambda: score_tasks(setting.backbone.visual_tokens(pixels), questions)
