"""The sizes of a backbone from its configuration alone: nothing of its weights is fetched or put in memory."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from masp.backbones.known_models import describe
from masp.backbones.model_stats import UNBUILDABLE, model_config
from masp.core.errors import BackboneError
from masp.core.flops import Sizes


def sizes_of(name: str, revision: str | None = None) -> Sizes:
    """The sizes of a folder, a hub id, or the embedded backbone.

    Raises:
        BackboneError: it is not found, or is of no kind that transformers knows.
    """
    config: Any = model_config(describe(name, revision))
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
        return _read(config, model)
    except UNBUILDABLE as error:
        raise BackboneError(f"the sizes of {name} cannot be read: {error}", "a vision-language model") from error


def _read(config: Any, model: Any) -> Sizes:
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
