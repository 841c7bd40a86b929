"""A reproduction that takes seconds: a tiny random backbone, a handful of drawn images, one step of training."""

from pathlib import Path

import tiny
from masp.demo.pictures import Plan
from masp.reproduce.config import ReproduceConfig, drawn_source, embedded_config
from masp.reproduce.specs import QUICKLY

PLAN = Plan(train=11, val=3, test=7, seed=5)
SETTINGS = (
    "method.queries=2",
    "method.prompt_length=3",
    "aspects.batch_size=7",
    "prompt.batch_size=5",
    "aspects.max_steps=1",
    "prompt.max_steps=1",
)


def small_job(out: Path, *experiments: str, seeds: int = 2, changes: tuple[str, ...] = ()) -> ReproduceConfig:
    """The job of the embedded default, made as small as it goes."""
    config = embedded_config([f"backbone.id={tiny.checkpoint()}", *SETTINGS, *changes], quick=True)
    source = drawn_source(out / "scratch", config.data)
    return ReproduceConfig(experiments, config, (source,), (), tuple(range(seeds)), out, others=QUICKLY, drawn=PLAN)
