"""How long cells will take: by measured speeds on the embedded default, a guess before the first is done."""

from collections.abc import Mapping
from dataclasses import dataclass

from masp.baselines.registry import CATALOGUE
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import Experiment
from masp.reproduce.specs import ASKING, Kind, budget_of

PAIRS = 1 / 190
"""Seconds for an image-aspect pair of stage 1 on the embedded backbone, on one core."""

EXAMPLE, VECTOR = 0.0075, 0.00022
"""Seconds for an example of stage 2: a fixed part, and more for each vector of the soft prompt."""

VISION = 1 / 70
"""Seconds to read an image."""

ANSWER = 1 / 140
"""Seconds to answer one whose visual tokens are there."""

BASELINE = 75 / 5000
"""Seconds that another system learns, for each image to learn from, or each question where it asks any."""

START = 0.8
"""Seconds that every cell takes, whatever it does."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of every cell, by its name."""

    seconds: Mapping[str, float]

    def left(self, names: set[str], jobs: int) -> float:
        """Seconds until these cells are done."""
        return sum(self.seconds[name] for name in names) / jobs


def estimate(job: ReproduceConfig, cells: tuple[Experiment, ...]) -> Estimate | None:
    """Seconds of each cell on one core of an idle machine; None where nobody knows (other backbones, other data)."""
    if job.drawn is None or job.config.backbone.id != "embedded":
        return None
    return Estimate({cell.name: START + _seconds(job, cell) for cell in cells})


def _seconds(job: ReproduceConfig, cell: Experiment) -> float:
    assert job.drawn is not None
    plan, config = job.drawn, job.config
    test = (plan.test + plan.val) * ANSWER
    kinds: Mapping[Kind, float] = {
        "data": (plan.train + plan.val + plan.test) * VISION,
        "aspects": PAIRS * config.aspects.batch_size * _steps(config.aspects.max_steps),
        "masp": test,
        "baseline": test,
        "attention": test,
        "parameters": 1.0,
    }
    if cell.recipe.kind == "masp" and cell.recipe.prompt == "trained":
        length = cell.recipe.length or config.method.prompt_length
        each = EXAMPLE + VECTOR * length
        return test + each * config.prompt.batch_size * _steps(config.prompt.max_steps)
    if cell.recipe.kind == "baseline" and CATALOGUE[cell.recipe.name].learns:
        asked = budget_of(config.prompt, plan.train).questions
        return test + BASELINE * (asked if cell.recipe.name in ASKING else plan.train)
    return kinds[cell.recipe.kind]


def _steps(most: int | None) -> int:
    return 0 if most is None else most
