"""Tiny LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from masp.core.types import Pixels
from tiny.kind import Kind, text_config
from tiny.tokens import byte_level, sentence_piece

PATCH, SIDE = 4, 12  # 3 × 3 features of a crop or tile
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + message['content'][0]['text'] + '</s>' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PINPOINTS = [[12, 24], [24, 12], [36, 12], [12, 36]]
MORE_PINPOINTS = [*PINPOINTS, [36, 24]]  # so large that features are thinned out
VISION: dict[str, Any] = {
    "hidden_size": 22,
    "intermediate_size": 31,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def _llava(tokenizer: Any) -> Any:
    text = LlamaConfig(**text_config())
    config = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=9,
    )
    return LlavaForConditionalGeneration(config)


def _next(tokenizer: Any) -> Any:
    text = MistralConfig(**text_config(num_attention_heads=3, sliding_window=None))
    config = LlavaNextConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextForConditionalGeneration(config)


def _onevision(tokenizer: Any) -> Any:
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**text_config()),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=MORE_PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    return LlavaOnevisionForConditionalGeneration(config)


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.model.get_image_features(pixels.values).pooler_output)


def _tiled_inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values, "image_sizes": pixels.grid}


def _tiled_features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.model.get_image_features(pixels.values, image_sizes=pixels.grid).pooler_output)


def _official(folder: Path) -> Any:
    parts = {"image_processor": CLIPImageProcessorPil.from_pretrained(folder)}
    parts |= {"tokenizer": AutoTokenizer.from_pretrained(folder)}
    made = LlavaProcessor(
        **parts, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return lambda image, text: made(images=image, text=text, return_tensors="pt")


def _official_next(folder: Path) -> Any:
    parts = {"image_processor": LlavaNextImageProcessorPil.from_pretrained(folder)}
    parts |= {"tokenizer": AutoTokenizer.from_pretrained(folder)}
    made = LlavaNextProcessor(
        **parts, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return lambda image, text: made(images=image, text=text, return_tensors="pt")


def _official_onevision(folder: Path) -> Any:
    """The processor's rule for placeholders and its image part; the processor itself wants torchvision for videos."""

    def process(image: Any, text: str) -> dict[str, Any]:
        parts = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        batch = parts(images=[image], return_tensors="pt")
        rule = SimpleNamespace(image_processor=parts, num_image_tokens=9, vision_aspect_ratio="anyres_max_2")
        rule._get_unpadded_features = partial(LlavaOnevisionProcessor._get_unpadded_features, rule)
        count = LlavaOnevisionProcessor._get_number_of_features(rule, image.height, image.width, SIDE, SIDE)
        ids = AutoTokenizer.from_pretrained(folder)(text.replace("<image>", "<image>" * count)).input_ids
        return {"input_ids": torch.tensor([ids]), "pixel_values": batch["pixel_values"]}

    return process


_crop = {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": SIDE}}
_tiles = {"image_grid_pinpoints": PINPOINTS}

LLAVA = Kind(
    tokenizer=lambda: sentence_piece(["<image>"], VICUNA, legacy=False),
    model=_llava,
    processor={"image_processor_type": "CLIPImageProcessor"} | _crop,
    inputs=_inputs,
    features=_features,
    counts=[9, 9, 9],
    official=_official,
)
NEXT = Kind(
    tokenizer=lambda: sentence_piece(["<image>"], MISTRAL, legacy=True),
    model=_next,
    processor={"image_processor_type": "LlavaNextImageProcessor"} | _crop | _tiles,
    inputs=_tiled_inputs,
    features=_tiled_features,
    counts=[24, 37, 24],  # 9 of the whole, and 3 × (4 + 1), 7 × (3 + 1), 3 × (4 + 1) of the tiles
    official=_official_next,
)
ONEVISION = Kind(
    tokenizer=lambda: byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        CHATML,
        {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
    ),
    model=_onevision,
    processor={"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    | {"image_grid_pinpoints": MORE_PINPOINTS},
    inputs=_tiled_inputs,
    features=_tiled_features,
    counts=[24, 27, 24],  # 9 of the whole, and 3 × (4 + 1), 6 × (2 + 1), 3 × (4 + 1) of the tiles
    official=_official_onevision,
)
