"""How many visual tokens a picture becomes, from its size alone; each family's own file has the rule.

Sizes are (width, height) in pixels, as the picture reaches the backbone.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from masp.backbones.known_models import Description
from masp.backbones.loading import by_name
from masp.backbones.model_stats import UNBUILDABLE, model_config
from masp.core.errors import BackboneError, UsageError

Rule = Callable[[Any, Mapping[str, Any], int, int], int | None]
LARGEST = 100_000
RULES: Mapping[str, str] = MappingProxyType(
    {
        "qwen2_vl": "masp.backbones.qwen2_vl:visual_count",
        "qwen2_5_vl": "masp.backbones.qwen2_vl:visual_count",
        "llava": "masp.backbones.llava:visual_count",
        "llava_next": "masp.backbones.llava_next:visual_count",
        "gemma3": "masp.backbones.gemma3:visual_count",
        "qwen3_vl": "masp.backbones.qwen2_vl:visual_count",
        "internvl": "masp.backbones.internvl:visual_count",
        "smolvlm": "masp.backbones.idefics3:visual_count",
        "idefics3": "masp.backbones.idefics3:visual_count",
        "llava_onevision": "masp.backbones.llava_onevision:visual_count",
        "instructblip": "masp.backbones.instructblip:visual_count",
        "photo": "masp.backbones.photo:visual_count",
    }
)
"""model_type → module and function that counts, given the configuration as transformers reads it, the content of
preprocessor_config.json, width and height; imported when needed. None: no rule for such a checkpoint."""

BOUNDED = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm"}
"""Kinds whose count depends on preprocessor_config.json."""


def visual_tokens(description: Description, sizes: tuple[tuple[int, int], ...]) -> tuple[int | None, ...]:
    """Visual tokens of one picture of each size; None for a kind whose rule is not known here, or without its bounds.

    They are those that enter the language model: of a family that asks, the ones that answer a question.

    Raises:
        UsageError: a size that no picture has, or that the kind refuses.
        BackboneError: a broken configuration.
    """
    for width, height in sizes:
        if not (0 < width <= LARGEST and 0 < height <= LARGEST):
            raise UsageError(f"the size {width}x{height}", f"1 to {LARGEST} pixels on each side")
    config = model_config(description)
    place = RULES.get(config.model_type)
    if place is None or (description.preprocessor is None and config.model_type in BOUNDED):
        return (None,) * len(sizes)
    rule: Rule = by_name(place)
    return tuple(_counted(description, rule, config, size) for size in sizes)


def _counted(description: Description, rule: Rule, config: Any, size: tuple[int, int]) -> int | None:
    try:
        return rule(config, description.preprocessor or {}, *size)
    except ValueError as error:  # what smart_resize says of a picture 1 pixel high and 900 wide
        raise UsageError(f"{description.name} takes no picture of {size[0]}x{size[1]}: {error}") from error
    except UNBUILDABLE as error:
        raise BackboneError(
            f"the image settings of {description.name} are not those of its kind: {error}",
            "",
            f"Check its preprocessor_config.json ({description.source}).",
        ) from error
