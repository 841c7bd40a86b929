"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from masp.core.types import Pixels
from tiny.kind import DIM, Kind, text_config
from tiny.tokens import byte_level

MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + TURNS
)
NAMED = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def _tokenizer(template: str = TEMPLATE) -> Any:
    return byte_level(MARKS, template, NAMED)


def _config(kind: Any, tokenizer: Any, rope: dict[str, Any], vision: dict[str, Any], **changes: Any) -> Any:
    """A configuration of `kind`, with the ids of its marks."""
    marks: dict[str, Any] = {
        name: tokenizer.convert_tokens_to_ids(mark)
        for name, mark in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        )
    }
    full_rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 2]} | rope
    text = text_config(rope_parameters=full_rope, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"), **changes)
    sizes = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return kind(text_config=text, vision_config=sizes | vision, **marks)


def _qwen2(tokenizer: Any) -> Any:
    vision = {"embed_dim": 24, "hidden_size": DIM, "mlp_ratio": 3}
    changes = {"use_sliding_window": False}
    return Qwen2VLForConditionalGeneration(_config(Qwen2VLConfig, tokenizer, {}, vision, **changes))


def _qwen2_5(tokenizer: Any) -> Any:
    vision: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 29, "out_hidden_size": DIM, "window_size": 56}
    vision["fullatt_block_indexes"] = [1]
    changes = {"use_sliding_window": False}
    return Qwen2_5_VLForConditionalGeneration(_config(Qwen2_5_VLConfig, tokenizer, {}, vision, **changes))


def _qwen3(tokenizer: Any) -> Any:
    vision: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 29, "out_hidden_size": DIM, "patch_size": 16}
    vision |= {"depth": 3, "deepstack_visual_indexes": [0, 2], "num_position_embeddings": 25}
    rope = {"mrope_interleaved": True}
    return Qwen3VLForConditionalGeneration(_config(Qwen3VLConfig, tokenizer, rope, vision, head_dim=10))


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    types = (ids == model.config.image_token_id).int()
    return {"pixel_values": pixels.values, "image_grid_thw": pixels.grid, "mm_token_type_ids": types}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.model.get_image_features(pixels.values, pixels.grid).pooler_output)


def _official(folder: Path) -> Any:
    """The processor's image part and its rule for placeholders; its video part wants torchvision."""

    def process(image: Any, text: str) -> dict[str, Tensor]:
        batch = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[image], return_tensors="pt")
        count = int(batch["image_grid_thw"].prod()) // 4
        ids = AutoTokenizer.from_pretrained(folder)(text.replace("<|image_pad|>", "<|image_pad|>" * count)).input_ids
        return {"input_ids": torch.tensor([ids]), "pixel_values": batch["pixel_values"]}

    return process


def _processor(patch: int) -> dict[str, Any]:
    side = 2 * patch
    pixels = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 4 * side**2, "max_pixels": 24 * side**2}
    return pixels | {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}


QWEN2 = Kind(_tokenizer, _qwen2, _processor(14), _inputs, _features, [6, 10, 12], _official)
QWEN2_5 = Kind(_tokenizer, _qwen2_5, _processor(14), _inputs, _features, [6, 10, 12], _official)
QWEN3 = Kind(lambda: _tokenizer(TURNS), _qwen3, _processor(16), _inputs, _features, [6, 8, 12], _official)
