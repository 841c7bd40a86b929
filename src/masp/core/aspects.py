"""The six aspects of an image, how annotations become answers (stage 1 of the method), and which aspect decides."""

from collections.abc import Mapping

from masp.core.errors import DataError, did_you_mean, shown

ASPECTS: tuple[str, ...] = ("facial_expression", "object", "scene", "human_action", "brightness", "colorfulness")
"""Order of the aspect tokens in Z; it is saved with every adapter."""

MEASURED: tuple[str, ...] = ("brightness", "colorfulness")
"""Aspects that are annotated with a number in [0, 1]; the others are annotated with text."""

LEVELS: tuple[str, ...] = ("very low", "low", "moderate", "high", "very high")

MIN_EFFECT = 0.05
"""Effects below this many nats (5 %) decide nothing."""

WHOLE_IMAGE = "image"
"""What `deciding_cue` calls the image as a whole."""

_STEPS_PER_LEVEL = 200_000  # a level is 0.2 wide, counted in millionths


def deciding_cue(effects: Mapping[str, float], image_effect: float | None = None) -> str | None:
    """What did most for a label: an aspect, `WHOLE_IMAGE`, or None where no effect reaches `MIN_EFFECT`.

    Args:
        effects: of the aspects on the label, in nats.
        image_effect: of the image as a whole beside them; None where an answer has no such part.
    """
    every = {**effects, **({WHOLE_IMAGE: image_effect} if effects and image_effect is not None else {})}
    return max((name for name in every if every[name] >= MIN_EFFECT), key=every.__getitem__, default=None)


def level(value: float | int) -> str:
    """The word for a measured aspect: five levels, each 0.2 wide, lower edge included, 1.0 is "very high".

    Values are counted in whole millionths first, so that 0.6 is "high" even when it is stored as 0.5999999999999999 or
    in single precision.

    Raises:
        DataError: not a number, or outside [0, 1].
    """
    if isinstance(value, bool):
        raise DataError(f"the level {value} is not a number", "a number from 0 to 1", "Correct the annotation.")
    steps = round(value * 1_000_000) if -1 < value < 2 else -1  # not so for NaN, which is out of range too
    if not 0 <= steps <= 1_000_000:
        raise DataError(f"the level {shown(value)} is out of range", "a number from 0 to 1", "Correct the annotation.")
    return LEVELS[min(steps // _STEPS_PER_LEVEL, len(LEVELS) - 1)]


def answer_text(aspect: str, value: object) -> str:
    """The answer an image's annotation stands for: a level for measured aspects, otherwise text.

    Lists are joined with ", ", underscores become blanks, everything is lower case and stripped. Blank items of a list
    vanish; the answer is "" when nothing is left.

    Args:
        aspect: one of `ASPECTS`.
        value: text, a list of texts or a number; whatever an annotation file holds.

    Raises:
        DataError: unknown aspect, a number where text belongs or the reverse, or a level outside [0, 1].
    """
    if aspect not in ASPECTS:
        raise DataError(f"unknown aspect '{aspect}'", "", did_you_mean(aspect, ASPECTS))
    if aspect in MEASURED:
        if isinstance(value, int | float):
            return level(value)
        raise DataError(f"{aspect} is {shown(value)}", "a number from 0 to 1", "Correct the annotation.")
    words = (" ".join(text.replace("_", " ").lower().split()) for text in _texts(aspect, value))
    return ", ".join(word for word in words if word)


def _texts(aspect: str, value: object) -> list[str]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise DataError(f"{aspect} is {shown(value)}", "a text or a list of texts", "Correct the annotation.")
    return texts
