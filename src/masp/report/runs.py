"""The results that a comparison is made of: one record for each, whoever measured it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from masp.evaluation.metrics import Interval


@dataclass(frozen=True)
class Answer:
    """What a system said about one image; `log_probabilities` in nats, None where it gave none."""

    image: str
    truth: str
    predicted: str | None
    log_probabilities: Mapping[str, float] | None = None
    text: str | None = None

    @property
    def right(self) -> bool:
        """Whether the predicted label is the true one."""
        return self.predicted == self.truth
