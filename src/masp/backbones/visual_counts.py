"""How many visual tokens a picture becomes, from its size alone, for kinds whose rule is known here.

Each rule is the family's own: transformers' arithmetic where it has a function for it, otherwise written out. Sizes
are (width, height) in pixels, as the picture reaches the backbone.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from masp.backbones.facts import UNBUILDABLE, model_config
from masp.backbones.published import Description
from masp.errors import BackboneError, UsageError

Preprocessor = Mapping[str, Any]
Rule = Callable[[Any, Preprocessor, int, int], int | None]
LARGEST = 100_000
CLASS_TOKENS: Mapping[str, int] = MappingProxyType({"clip_vision_model": 1, "siglip_vision_model": 0})


def visual_tokens(description: Description, sizes: tuple[tuple[int, int], ...]) -> tuple[int | None, ...]:
    """Visual tokens of one picture of each size; None for a kind whose rule is not known here, or without its bounds.

    Raises:
        UsageError: a size that no picture has, or that the kind refuses.
        BackboneError: a broken configuration.
    """
    for width, height in sizes:
        if not (0 < width <= LARGEST and 0 < height <= LARGEST):
            raise UsageError(f"the size {width}x{height}", f"1 to {LARGEST} pixels on each side")
    config = model_config(description)
    rule = RULES.get(config.model_type)
    if rule is None or (description.preprocessor is None and config.model_type in BOUNDED):
        return (None,) * len(sizes)
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


def _built(kind: Any, preprocessor: Preprocessor) -> Any:
    """An image processor of this class with the checkpoint's settings."""
    return kind.from_dict(dict(preprocessor))


def _qwen(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """Both sides to multiples of a merged patch, the area within the checkpoint's pixel bounds."""
    processor = _built(Qwen2VLImageProcessorPil, preprocessor)
    bounds = processor.size["shortest_edge"], processor.size["longest_edge"]
    cell = processor.patch_size * processor.merge_size
    rows, columns = smart_resize(height, width, cell, *bounds)
    return (rows // cell) * (columns // cell)


def _llava(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int | None:
    """A square crop of one size; vision towers of varying size (Pixtral) have another rule."""
    return _whole(config) if config.vision_config.model_type in CLASS_TOKENS else None


def _llava_next(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """The picture as a whole, then its tiles without their padding and a newline after each row."""
    rows, columns = _unpadded(config, width, height)
    return _whole(config) + rows * columns + rows


def _whole(config: Any) -> int:
    """Tokens of one tile: the strategy "default" drops the first one, which is CLIP's class token."""
    first = config.vision_feature_select_strategy == "default"
    return _side(config) ** 2 + CLASS_TOKENS[config.vision_config.model_type] - first


def _llava_onevision(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """As LLaVA-NeXT; tiles beyond the largest area are shrunk. Its vision tower has no class token."""
    side = _side(config)
    rows, columns = _unpadded(config, width, height)
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return side**2 + rows * columns + rows


def _side(config: Any) -> int:
    """Patches along one side of a tile."""
    return config.vision_config.image_size // config.vision_config.patch_size


def _unpadded(config: Any, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of patches over all tiles, less those that hold only padding."""
    tile, side = config.vision_config.image_size, _side(config)
    tall, wide = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = tall // tile * side, wide // tile * side
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows, columns


def _internvl(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """Tiles on the grid nearest in shape, and the picture as a whole if there are several."""
    processor = _built(GotOcr2ImageProcessorPil, preprocessor)
    tiles = processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
    return tiles * config.image_seq_length


def _idefics(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """Tiles of the enlarged picture, and the picture as a whole; the text between the tiles is not counted."""
    kind = SmolVLMImageProcessorPil if config.model_type == "smolvlm" else Idefics3ImageProcessorPil
    tiles, _, _ = _built(kind, preprocessor).get_number_of_image_patches(height, width, {})
    return max(tiles, 1) * _side(config) ** 2 // config.scale_factor**2


def _gemma3(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """Always the same number: pan and scan is off unless it is asked for."""
    return config.mm_tokens_per_image


def _instructblip(config: Any, preprocessor: Preprocessor, width: int, height: int) -> int:
    """The queries of the Q-Former."""
    return config.num_query_tokens


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "qwen2_vl": _qwen,
        "qwen2_5_vl": _qwen,
        "qwen3_vl": _qwen,
        "llava": _llava,
        "llava_next": _llava_next,
        "llava_onevision": _llava_onevision,
        "internvl": _internvl,
        "idefics3": _idefics,
        "smolvlm": _idefics,
        "gemma3": _gemma3,
        "instructblip": _instructblip,
    }
)
BOUNDED = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm"}
