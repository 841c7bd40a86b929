"""The values that settings take, checked where they enter; and what all sections of settings share."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from masp.core.aspects import ASPECTS
from masp.core.errors import did_you_mean, shown

FREE = {"may_change_on_resume": True}
"""Mark of a setting that changes neither the result nor the state of a run: a resumed run may have another value."""

ADDED = {"left_out_at_default": True}
"""Mark of a setting that came when there were runs already: at its default it is no part of a run's identity."""

_LONGEST_PATTERN = 500

Text = Annotated[str, Strict()]
Switch = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[int, Strict(), Field(ge=1)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Factor = Annotated[float, Strict(), Field(gt=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]


def _as_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path is needed")
    return Path(value)


def as_tuple(value: object) -> object:
    """A list of YAML as a tuple, which is frozen; anything else as it is, for pydantic to refuse."""
    return tuple(value) if isinstance(value, list) else value


def _in_order(aspects: object) -> tuple[str, ...]:
    """Aspect names in the one order of Z."""
    names = as_tuple(aspects)
    if not isinstance(names, tuple):
        raise ValueError("a list of aspects is needed, like [scene, object]")
    for name in names:
        if name not in ASPECTS:
            raise ValueError(f"unknown aspect {shown(name)}. {did_you_mean(str(name), ASPECTS)}")
    if len(set(names)) != len(names):
        raise ValueError("an aspect is named twice")
    return tuple(name for name in ASPECTS if name in names)


def _as_pattern(text: str) -> str:
    """A regular expression that names the group `label`."""
    if len(text) > _LONGEST_PATTERN:
        raise ValueError(f"the pattern has {len(text)} characters: at most {_LONGEST_PATTERN} are taken")
    try:
        groups = re.compile(text).groupindex
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is no regular expression ({error})") from None
    if "label" not in groups:
        raise ValueError(f"{text!r} has no group of the name label: write (?P<label>…) where the label stands")
    return text


def _as_image_counts(value: object) -> object:
    """A number of images, or one for each aspect that is named, in the one order of Z; null lifts a bound."""
    if isinstance(value, dict) and value:
        value = {name: value[name] for name in _in_order(tuple(value)) if value[name] is not None} or None
    if value is None:
        return None
    counts = [*value.values()] if isinstance(value, dict) else [value]
    if not counts or any(type(count) is not int or count < 1 for count in counts):
        raise ValueError("whole numbers of 1 or more are needed: one, or some by aspect, like {scene: 300}")
    return value


def _in_rising_order(bounds: dict[str, tuple[float | None, float | None]]) -> object:
    """Labels by their values, whatever the order they were written in."""
    if len(bounds) < 2:
        raise ValueError("at least two labels are needed")
    for label, (low, high) in bounds.items():
        if low is not None and high is not None and low >= high:
            raise ValueError(f"{label} goes from {low:g} to {high:g}: the lower number comes first")
    rising = sorted(bounds.items(), key=lambda item: -math.inf if item[1][0] is None else item[1][0])
    for (one, (_, high)), (other, (low, _)) in pairwise(rising):
        if high is None or low is None or low < high:
            raise ValueError(f"{one} and {other} overlap: where one ends the other may begin, not before")
    return dict(rising)


Pattern = Annotated[str, Strict(), AfterValidator(_as_pattern)]
Bounds = tuple[Number | None, Number | None]
ImageCounts = Annotated[Positive | dict[str, Positive] | None, BeforeValidator(_as_image_counts)]
Thresholds = Annotated[dict[Text, Bounds], AfterValidator(_in_rising_order)]
FilePath = Annotated[Path, BeforeValidator(_as_path)]
AspectNames = Annotated[tuple[str, ...], BeforeValidator(_in_order)]
Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class Settings(BaseModel):
    """What all sections share: frozen, no unknown keys, defaults checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_defaults(cls, content: object) -> object:
        """A section whose lines are all commented out reads as null; it then has its defaults."""
        if not isinstance(content, dict):
            return content
        sections = {name for name, field in cls.model_fields.items() if is_section(field.annotation)}
        return {key: value for key, value in content.items() if value is not None or key not in sections}

    def added_at_default(self) -> set[str]:
        """Settings marked `ADDED` that have their default: no identity names them."""
        fields = type(self).model_fields.items()
        return {
            name for name, field in fields if field.json_schema_extra == ADDED and getattr(self, name) == field.default
        }


def is_section(annotation: object) -> bool:
    """Whether a setting is a group of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)
