"""The six aspects of a picture, and how their annotations become answers (section "Stage 1" of the method)."""

import math
from collections.abc import Sequence

from masp.errors import DataError, did_you_mean

ASPECTS: tuple[str, ...] = ("facial_expression", "object", "scene", "human_action", "brightness", "colorfulness")
"""Order of the aspect tokens in Z; it is saved with every adapter."""

MEASURED: tuple[str, ...] = ("brightness", "colorfulness")
"""Aspects that are annotated with a number in [0, 1]; the others are annotated with text."""

LEVELS: tuple[str, ...] = ("very low", "low", "moderate", "high", "very high")

_STEPS_PER_LEVEL = 200_000  # a level is 0.2 wide, counted in millionths


def level(value: float) -> str:
    """The word for a measured aspect: five levels, each 0.2 wide, lower edge included, 1.0 is "very high".

    Values are counted in whole millionths first, so that 0.6 is "high" even when it is stored as 0.5999999999999999 or
    in single precision.

    Raises:
        DataError: not a number, or outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"the level {value!r:.60} is not a number", "a number from 0 to 1", "Correct the annotation.")
    steps = round(value * 1_000_000) if math.isfinite(value) else -1
    if not 0 <= steps <= 1_000_000:
        raise DataError(f"the level {value!r:.60} is out of range", "a number from 0 to 1", "Correct the annotation.")
    return LEVELS[min(steps // _STEPS_PER_LEVEL, len(LEVELS) - 1)]


def answer_text(aspect: str, value: str | Sequence[str] | float) -> str:
    """The answer a picture's annotation stands for: a level for measured aspects, otherwise text.

    Lists are joined with ", ", underscores become blanks, everything is lower case and stripped. Blank items of a list
    vanish; the answer is "" when nothing is left.

    Raises:
        DataError: unknown aspect, a number where text belongs or the reverse, or a level outside [0, 1].
    """
    if aspect not in ASPECTS:
        raise DataError(f"unknown aspect '{aspect}'", "", did_you_mean(aspect, ASPECTS))
    if aspect in MEASURED:
        if isinstance(value, int | float):
            return level(value)
        raise DataError(f"{aspect} is {value!r:.60}", "a number from 0 to 1", "Correct the annotation.")
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise DataError(f"{aspect} is {value!r:.60}", "a text or a list of texts", "Correct the annotation.")
    words = (" ".join(item.replace("_", " ").lower().split()) for item in items)
    return ", ".join(word for word in words if word)
