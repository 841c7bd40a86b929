"""The learning rate as a plain function of the step, so that nothing of it needs saving."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


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
