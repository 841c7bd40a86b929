"""How the cost of stage 2 with the prefix kept grows: with visual tokens, with the batch, with the number of images."""

from collections.abc import Callable
from typing import Any

from masp.bench.clock import Timing, Work, in_turn, once
from masp.bench.setting import Setting
from masp.bench.training import MOST, prompt_step
from masp.core.types import CachedPrefix
from masp.model.masp_model import MaspModel

Tell = Callable[[str], object]
Point = tuple[int, int]  # visual tokens of an image, images of a step
TIMES = (1, 2, 4)  # batches of the jobs


def growth(setting: Setting, machine: dict[str, Any], tell: Tell) -> list[dict[str, Any]]:
    """Seconds per example of a step, by visual tokens and by batch size; and what whole jobs of n images take.

    A job computes the prefixes of its images once and then takes each of them through one step, so that both the
    one-off cost and what an epoch adds are seen to grow. A job is run once, as one takes minutes at full size; steps
    are repeated and timed in turn.
    """
    counts, batches, batch = ((16, 35), (1, 2), 2)
    if not setting.quick:
        counts, batches, batch = (64, 128, 256, 512, 700), (1, 2, 4, 8, 16), MOST
    usual, model = setting.counts[0], setting.model("paper")
    points = dict.fromkeys([*((count, batch) for count in counts), *((usual, number) for number in batches)])
    works: dict[str, tuple[Work, int]] = {_name(point): (_step(setting, model, *point), point[1]) for point in points}
    times = in_turn(works, setting.repeats, tell)
    found = [_timed("visual tokens", count, (count, batch), times) for count in counts]
    found += [_timed("batch size", number, (usual, number), times) for number in batches]
    return found + [_job(setting, model, usual, batch, number, tell) for number in TIMES]


def _name(point: Point) -> str:
    return f"a step of {point[1]} images of {point[0]} visual tokens"


def _step(setting: Setting, model: MaspModel, count: int, batch: int) -> Work:
    question = setting.question()
    prefix = model.prefix(setting.backbone.visual_tokens(setting.pixels(count)), [question]).rows()
    return prompt_step(model, prefix * batch, question)


def _timed(of: str, at: int, point: Point, times: dict[str, Timing]) -> dict[str, Any]:
    found = times[_name(point)]
    where = {"visual": point[0], "batch": point[1], "repeats": len(found.seconds)}
    return {"of": of, "at": at, **where, "seconds": found.median, "spread": found.spread}


def _job(setting: Setting, model: MaspModel, count: int, batch: int, batches: int, tell: Tell) -> dict[str, Any]:
    """Prefixes of so many batches of images, then a step with each of these."""
    question, images = setting.question(), batch * batches
    pictures = [setting.pixels(count, batch, seed) for seed in range(batches)]
    kept: list[list[CachedPrefix]] = []

    def build() -> None:
        for pixels in pictures:
            visual = setting.backbone.visual_tokens(pixels)
            kept.append(model.prefix(visual, [question] * batch).rows())

    def epoch() -> None:
        for step in steps:
            step()

    tell(f"a job of {images} images of {count} visual tokens")
    building = once(build)
    steps = [prompt_step(model, rows, question) for rows in kept]
    passing = once(epoch)
    where = {"visual": count, "batch": batch, "repeats": 1}
    parts = {"building_s": building, "epoch_s": passing}
    return {"of": "images", "at": images, **where, "seconds": building + passing, **parts}
