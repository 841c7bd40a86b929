"""The learning rate as a plain function of the step, so that nothing of it needs saving; and how long a run is."""

import math
from dataclasses import dataclass
from typing import Literal

from masp.core.settings import TrainConfig

Schedule = Literal["cosine", "linear", "constant"]

PASSES = 3
"""Epochs of a run that names none and has data enough."""

VALIDATIONS = 10
"""About as often is measured on the split val, where a run names no epochs and each of them is short."""

NEGLIGIBLE = 0.1
"""A share of the spread of the embeddings; a soft prompt that cannot move further stays where it began."""


@dataclass(frozen=True)
class RateScale:
    """The natural scale of what a stage trains.

    Attributes:
        rate: what `learning_rate_scale` is multiplied with.
        spread: standard deviation of the numbers that a trained number is to be held against.
        name: what these numbers are.
    """

    rate: float
    spread: float
    name: str


@dataclass(frozen=True)
class TrainingLength:
    """How far and how long a run goes.

    Attributes:
        learning_rate: its peak.
        steps: of the optimizer.
        validate_every: steps between measurements on the split val; 0: never.
    """

    learning_rate: float
    steps: int
    validate_every: int


def budget_of(settings: TrainConfig, per_epoch: int, scale: float) -> TrainingLength:
    """Rate and steps of a run: what was given, else what trains on any backbone and however few images there are.

    Args:
        settings: a rate and a number of epochs that are given hold as they are.
        per_epoch: steps in a pass over the examples, at least 1.
        scale: what `learning_rate_scale` is multiplied with where no rate is given (see `Scale`).
    """
    rate = settings.learning_rate_scale * scale if settings.learning_rate is None else settings.learning_rate
    epochs, spaced = settings.epochs, 1
    steps = (epochs or PASSES) * per_epoch
    if epochs is None and steps < settings.min_steps:
        steps = settings.min_steps
        spaced = -(-steps // (VALIDATIONS * per_epoch))
    return TrainingLength(rate, min(steps, settings.max_steps or steps), settings.evaluate_every * spaced * per_epoch)


def rate_factor(step: int, total: int, warmup: float, schedule: Schedule) -> float:
    """What the learning rate is multiplied with in the step after `step` finished ones, in (0, 1].

    It rises in equal parts over the first `warmup` fraction of the steps, then falls to (almost) zero at the end.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def reach(budget: TrainingLength, warmup: float, schedule: Schedule) -> float:
    """About how far a number can move in a run: the sum of the rates, as a step of AdamW moves none by much more."""
    factors = (rate_factor(step, budget.steps, warmup, schedule) for step in range(budget.steps))
    return budget.learning_rate * sum(factors)
