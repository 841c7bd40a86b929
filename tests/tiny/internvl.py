"""Tiny InternVL over Qwen3."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from masp.core.types import Pixels
from tiny.kind import Kind, text_config
from tiny.tokens import byte_level

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIDE = 16  # 4 × 4 patches of 4, of which 2 × 2 make one visual token


def _tokenizer() -> Any:
    roles = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return byte_level(MARKS, TEMPLATE, named, extra_special_tokens=roles | {"video_token": "<video>"})


def _internvl(tokenizer: Any) -> Any:
    sizes = {"hidden_size": 22, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        text_config=Qwen3Config(**text_config(head_dim=14)),
        vision_config=InternVLVisionConfig(**sizes, image_size=[SIDE, SIDE], patch_size=[4, 4]),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config)


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    tiles = model.model.get_image_features(pixels.values).pooler_output
    counts = [tiles_of + (tiles_of > 1) for tiles_of in pixels.grid.prod(1).tolist()]
    return [part.flatten(0, 1) for part in tiles.split(counts)]


def _official(folder: Path) -> Any:
    """The processor's rule for placeholders and its image part; the processor itself wants torchvision for videos."""

    def process(image: Any, text: str) -> dict[str, Any]:
        parts = GotOcr2ImageProcessorPil.from_pretrained(folder)
        batch = parts(images=[image], crop_to_patches=True, return_tensors="pt")
        rule = SimpleNamespace(
            start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=4
        )
        shown = InternVLProcessor.replace_image_token(rule, batch, 0)
        ids = AutoTokenizer.from_pretrained(folder)(text.replace("<IMG_CONTEXT>", shown)).input_ids
        return {"input_ids": torch.tensor([ids]), "pixel_values": batch["pixel_values"]}

    return process


INTERNVL = Kind(
    tokenizer=_tokenizer,
    model=_internvl,
    processor={
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "min_patches": 1,
        "max_patches": 4,
    },
    inputs=_inputs,
    features=_features,
    counts=[20, 16, 20],  # 4 each of 2 × 2, 3 × 1 and 2 × 2 tiles and the whole,
    official=_official,
)
