"""Tiny Gemma 3."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from masp.core.types import Pixels
from tiny.kind import Kind, text_config
from tiny.tokens import byte_level

MARKS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
MARKS += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _tokenizer() -> Any:
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    roles = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    return byte_level(MARKS, TEMPLATE, named, extra_special_tokens=roles)


def _gemma(tokenizer: Any) -> Any:
    """Two sliding layers with a short window, then one that sees everything, then a sliding one."""
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    own = {"num_hidden_layers": 4, "layer_types": types, "sliding_window": 11, "head_dim": 14}
    boi, eoi, visual = tokenizer.convert_tokens_to_ids(["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    sizes = {"hidden_size": 22, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text_config(**own, query_pre_attn_scalar=14, pad_token_id=0),
        vision_config=SiglipVisionConfig(**sizes, image_size=24, patch_size=4, vision_use_head=False),
        mm_tokens_per_image=9,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=visual,
    )
    return Gemma3ForConditionalGeneration(config)


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values, "token_type_ids": (ids == model.config.image_token_id).int()}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.model.get_image_features(pixels.values).pooler_output)


def _official(folder: Path) -> Any:
    parts = {"image_processor": Gemma3ImageProcessorPil.from_pretrained(folder)}
    made = Gemma3Processor(**parts, tokenizer=AutoTokenizer.from_pretrained(folder), image_seq_length=9)
    return lambda image, text: made(images=image, text=text, return_tensors="pt", add_special_tokens=False)


GEMMA3 = Kind(
    tokenizer=_tokenizer,
    model=_gemma,
    processor={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 24, "width": 24}},
    inputs=_inputs,
    features=_features,
    counts=[9, 9, 9],
    official=_official,
)
