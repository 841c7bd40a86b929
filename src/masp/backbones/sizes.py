"""The sizes of a backbone from its configuration alone: nothing of its weights is fetched or put in memory."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from masp.arithmetic import QWEN2_VL_7B, Sizes
from masp.backbones.files import find
from masp.errors import BackboneError

KNOWN = {"qwen2-vl-7b": QWEN2_VL_7B}
"""Names that need no file."""


def sizes_of(name: str, revision: str | None = None) -> Sizes:
    """The sizes of a folder, a hub id, the embedded backbone, or a name in `KNOWN`.

    Raises:
        BackboneError: it is not found, or is of no kind that transformers knows.
    """
    if name.casefold() in KNOWN:
        return KNOWN[name.casefold()]
    files = find(name, revision)
    try:
        config: Any = AutoConfig.from_pretrained(files.folder, local_files_only=True)
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
        return _read(config, model)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
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
    return Sizes(
        dim=text.hidden_size,
        layers=text.num_hidden_layers,
        kv_dim=head_dim * text.num_key_value_heads,
        language=counts["language"],
        vocabulary=text.vocab_size,
        vision=counts["vision"],
        vision_width=width,
        vision_layers=vision.get("depth") or vision["num_hidden_layers"],
        patches=vision.get("spatial_merge_size", 1) ** 2,
    )
