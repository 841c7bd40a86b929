"""What a backbone consists of and how many visual tokens an image becomes, counted without weights.

transformers builds the model on the meta device. Parts are told apart by the names of the parameters, so any
vision-language model that transformers can build is counted, whether or not a family here serves it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from masp.backbones.decoder import AXES
from masp.backbones.device_map import packed_bytes, packed_layers
from masp.backbones.files import PHOTO
from masp.backbones.known_models import Description, describe
from masp.backbones.loading import FAMILIES, Family, refuse_unserved
from masp.core.errors import BackboneError, UsageError, did_you_mean, reason_of
from masp.core.flops import Sizes

PARTS: tuple[str, ...] = ("vision tower", "projector", "language model layers", "embeddings", "output head", "other")
PROJECTOR = {
    "merger",
    "deepstack_merger_list",
    "multi_modal_projector",
    "connector",
    "image_newline",
    "qformer",
    "query_tokens",
    "language_projection",
}
VISION = {"visual", "vision_tower", "vision_model"}
LANGUAGE = {"language_model", "text_model"}

LARGEST = 100_000  # pixels of a side of an image
LORA_RANK = 8
LORA_TARGETS = ("q_proj", "v_proj")
MOST_LAYERS = 1000
IGNORED = ("auto_map", "quantization_config", "_attn_implementation", "attn_implementation")
UNBUILDABLE = (
    AttributeError,
    ImportError,
    KeyError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)


@dataclass(frozen=True)
class ModelStats:
    """A backbone in numbers.

    Attributes:
        name: as asked for.
        source: where its configuration was found.
        model_type: what the configuration calls its kind.
        served: whether a family of this package loads it.
        dim: width of the language model.
        layers: blocks of the language model.
        parameters: numbers in each of `PARTS`; an output head that is tied to the embeddings counts once, there.
        tied: whether the output head is the embedding matrix.
        memory: bytes of the weights alone, by number format; "nf4_cpu" where NF4 is loaded on a CPU.
        lora: numbers in low-rank pairs (rank 8) on every query and value projection of the language model; None where
            it has no such projections.
    """

    name: str
    source: str
    model_type: str
    served: bool
    dim: int
    layers: int
    parameters: Mapping[str, int]
    tied: bool
    memory: Mapping[str, int]
    lora: int | None

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())


def count(description: Description) -> ModelStats:
    """The numbers of a backbone.

    Raises:
        BackboneError: the configuration is of no vision-language model that transformers knows, or a broken one.
    """
    config = model_config(description)
    try:
        model = _without_weights(config)
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        text = config.get_text_config(decoder=True)
        dim, layers = text.hidden_size, text.num_hidden_layers
    except UNBUILDABLE as error:
        raise _broken(description, error) from error
    tied = head is None or head.weight is embeddings
    parameters = _by_part(model, embeddings, None if head is None else head.weight)
    return ModelStats(
        name=description.name,
        source=description.source,
        model_type=config.model_type,
        served=_served(description, text.model_type),
        dim=dim,
        layers=layers,
        parameters=parameters,
        tied=tied,
        memory=memory_of(
            sum(parameters.values()), *(_packed(model, kind) for kind in ("cuda", "cpu")), full=_full(model)
        ),
        lora=lora_size(_targets(model)),
    )


def _without_weights(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, attn_implementation="eager")


def _served(description: Description, language: str) -> bool:
    """Whether the family would load it, with a language model of this kind."""
    try:
        refuse_unserved(description.name, description.config)
    except BackboneError:
        return False
    return language in AXES


def _by_part(model: nn.Module, embeddings: Tensor, head: Tensor | None) -> dict[str, int]:
    """Parameters in each of `PARTS`; embeddings and output head are told apart by identity, the rest by name."""
    parameters = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if parameter is embeddings:
            part = "embeddings"
        elif parameter is head:
            part = "output head"
        parameters[part] += parameter.numel()
    return parameters


def model_config(description: Description) -> Any:
    """The configuration as transformers reads it.

    Raises:
        BackboneError: no vision-language model that transformers knows, or a broken configuration.
    """
    content = {key: value for key, value in description.config.items() if key not in IGNORED}
    kind = content.get("model_type")
    if kind == PHOTO:  # a kind of our own, of which transformers has to be told
        FAMILIES[PHOTO].get("register")()
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        todo = did_you_mean(str(kind), FAMILIES)
        raise BackboneError(f"{description.name} is of the unknown kind '{kind}'", "a model_type of transformers", todo)
    deep = [(key, size) for key, size in _layer_counts(content) if not isinstance(size, int) or size > MOST_LAYERS]
    if deep:
        key, size = deep[0]
        raise BackboneError(f"the configuration of {description.name} says {key} {size}", f"at most {MOST_LAYERS}")
    try:
        config = CONFIG_MAPPING[kind].from_dict(content)
        known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    except UNBUILDABLE as error:
        raise _broken(description, error) from error
    if not known:
        raise BackboneError(
            f"{description.name} is of the kind '{kind}', which does not read images",
            f"a vision-language model, such as one of the kinds {', '.join(FAMILIES)}",
        )
    return config


def _layer_counts(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every number of layers in a configuration and its sections."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _layer_counts(value)
        elif key in ("num_hidden_layers", "depth") and value is not None:
            yield key, value


def _broken(description: Description, error: Exception) -> BackboneError:
    got = f"no model can be built from the configuration of {description.name}: {reason_of(error)}"
    return BackboneError(got, "", f"Check its config.json ({description.source}).")


def part_of(name: str) -> str:
    """The part that a parameter of this name belongs to, where it is neither embeddings nor output head."""
    words = set(name.split("."))
    if words & PROJECTOR:
        return "projector"
    if words & VISION:
        return "vision tower"
    return "language model layers" if words & LANGUAGE else "other"


def memory_of(parameters: int, packed: Sequence[int], packed_on_cpu: Sequence[int], full: int = 0) -> dict[str, int]:
    """Bytes of the weights alone.

    Args:
        parameters: all of them.
        packed: sizes of the matrices that NF4 packs.
        packed_on_cpu: those that it packs on a CPU.
        full: parameters that stay in fp32 whatever the format.

    Returns:
        By format. What NF4 does not pack stays in bf16.
    """
    halves = 2 * (parameters + full)
    four_bit, on_cpu = (halves - 2 * sum(sizes) + sum(map(packed_bytes, sizes)) for sizes in (packed, packed_on_cpu))
    return {"float32": 4 * parameters, "bfloat16": halves, "float16": halves, "nf4": four_bit, "nf4_cpu": on_cpu}


def lora_size(shapes: Iterable[tuple[int, int]], rank: int = LORA_RANK) -> int | None:
    """Numbers in low-rank pairs beside matrices of these shapes; None if there are none.

    A pair beside a matrix (out, in) is (out, rank) and (rank, in). Grouped key and value heads make `v_proj` smaller
    than `q_proj`, which is why the shapes are read and not guessed.
    """
    sizes = [rank * (rows + columns) for rows, columns in shapes]
    return sum(sizes) if sizes else None


def _targets(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Shapes of the query and value projections of the language model."""
    for name, module in model.named_modules():
        wanted = name.rpartition(".")[2] in LORA_TARGETS and part_of(name) == "language model layers"
        if wanted and isinstance(module, nn.Linear):
            yield module.out_features, module.in_features


def _full(model: PreTrainedModel) -> int:
    """Parameters of the parts that a family keeps in fp32."""
    kept = model._keep_in_fp32_modules_strict or ()
    return sum(one.numel() for name, one in model.named_parameters() if any(part in name for part in kept))


def _packed(model: PreTrainedModel, device: str) -> list[int]:
    """Sizes of the matrices that NF4 packs on this device."""
    return [layer.weight.numel() for layer in packed_layers(model, torch.device(device)).values()]


def sizes_of(name: str, revision: str | None = None) -> Sizes:
    """The sizes of a folder, a hub id, or the embedded backbone, as the arithmetic of costs takes them.

    Raises:
        BackboneError: it is not found, or is of no kind that transformers knows.
    """
    config: Any = model_config(describe(name, revision))
    try:
        return _sizes(config, _without_weights(config))
    except UNBUILDABLE as error:
        raise BackboneError(f"the sizes of {name} cannot be read: {error}", "a vision-language model") from error


def _sizes(config: Any, model: Any) -> Sizes:
    text, vision = config.get_text_config(), config.vision_config.to_dict()
    counts = {"vision": 0, "language": 0}
    for key, parameter in model.named_parameters():
        if "visual" in key or "vision" in key:
            counts["vision"] += parameter.numel()
        elif ".layers." in key:
            counts["language"] += parameter.numel()
    head_dim = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
    width = vision.get("embed_dim") or vision["hidden_size"]
    head = model.get_output_embeddings()
    return Sizes(
        dim=text.hidden_size,
        layers=text.num_hidden_layers,
        kv_dim=head_dim * text.num_key_value_heads,
        language=counts["language"],
        vocabulary=text.vocab_size,
        vision=counts["vision"],
        vision_width=width,
        vision_layers=vision.get("depth") or vision["num_hidden_layers"],
        patches=_patches(config.to_dict(), vision),
        tied=head is None or head.weight is model.get_input_embeddings().weight,
    )


def _patches(config: dict[str, Any], vision: dict[str, Any]) -> int:
    """Patches of the vision tower behind one visual token, by whichever of these a family writes down."""
    if "spatial_merge_size" in vision:  # Qwen-VL
        return vision["spatial_merge_size"] ** 2
    if "scale_factor" in config:  # Idefics3, SmolVLM
        return config["scale_factor"] ** 2
    if "downsample_ratio" in config:  # InternVL
        return round(config["downsample_ratio"] ** -2)
    tokens = config.get("mm_tokens_per_image") or config.get("num_query_tokens")  # Gemma 3, InstructBLIP
    return round((vision["image_size"] / vision["patch_size"]) ** 2 / tokens) if tokens else 1


def visual_tokens(description: Description, sizes: tuple[tuple[int, int], ...]) -> tuple[int | None, ...]:
    """Visual tokens of one image of each size; None for a kind whose rule is not known here, or without its bounds.

    Sizes are (width, height) in pixels, as the image reaches the backbone. Tokens are those that enter the language
    model: of a family that asks, the ones that answer a question.

    Raises:
        UsageError: a size that no image has, or that the kind refuses.
        BackboneError: a broken configuration.
    """
    for width, height in sizes:
        if not (0 < width <= LARGEST and 0 < height <= LARGEST):
            raise UsageError(f"the size {width}x{height}", f"1 to {LARGEST} pixels on each side")
    config = model_config(description)
    family = FAMILIES.get(config.model_type)
    if family is None or (description.preprocessor is None and family.sized):
        return (None,) * len(sizes)
    return tuple(_visual_count(description, family, config, size) for size in sizes)


def _visual_count(description: Description, family: Family, config: Any, size: tuple[int, int]) -> int | None:
    try:
        return family.get("visual_count")(config, description.preprocessor or {}, *size)
    except ValueError as error:  # what smart_resize says of an image 1 pixel high and 900 wide
        raise UsageError(f"{description.name} takes no image of {size[0]}x{size[1]}: {error}") from error
    except UNBUILDABLE as error:
        raise BackboneError(
            f"the image settings of {description.name} are not those of its kind: {error}",
            "",
            f"Check its preprocessor_config.json ({description.source}).",
        ) from error
