"""A tiny photo backbone: seven stages of a few channels, a projector, a Llama.

The reference that the contract compares with is the family's own model as transformers runs it; its tower is compared
with one written out in `tests/test_photo.py`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from masp.backbones.photo import PhotoConfig, PhotoForConditionalGeneration, PhotoVisionConfig, register
from masp.core.types import Pixels
from tiny.kind import Kind, text_config
from tiny.tokens import byte_level

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>"]
CARRIED = Path(__file__).parents[2] / "src" / "masp" / "backbones" / "photo_bridge"
SIDE, GRID, WHOLE = 70, 3, 2
STAGES = [[1, 3, 1, 1, 7], [2, 5, 2, 3, 11]]
VISION = {"image_size": SIDE, "stem": 5, "stages": STAGES, "hidden_size": 23}


def _tokenizer() -> Any:
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return byte_level(MARKS, (CARRIED / "chat_template.jinja").read_text(), named)


def _model(tokenizer: Any) -> Any:
    register()
    config = PhotoConfig(
        vision_config=PhotoVisionConfig(**VISION),
        text_config=LlamaConfig(**text_config(tie_word_embeddings=True)),
        image_token_id=tokenizer.convert_tokens_to_ids("<empty_output>"),
        grid=GRID,
        whole_tokens=WHOLE,
        cell_hidden=19,
        whole_hidden=17,
        tie_word_embeddings=True,
    )
    model = PhotoForConditionalGeneration(config)
    tower: Any = model.model.vision_tower
    generator = torch.Generator().manual_seed(3)
    for name, buffer in tower.named_buffers():
        buffer.uniform_(0.1, 0.5, generator=generator).add_(name.endswith("scale"))
    return model


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.model.get_image_features(pixels.values))


def _official(folder: Path) -> Any:
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), ViTImageProcessorPil.from_pretrained(folder)

    def process(image: Any, text: str) -> dict[str, Any]:
        text = text.replace("<empty_output>", "<empty_output>" * (GRID**2 + WHOLE))
        ids = tokenizer(text, return_tensors="pt").input_ids
        return {"input_ids": ids, "pixel_values": processor(images=image, return_tensors="pt")["pixel_values"]}

    return process


PHOTO = Kind(
    tokenizer=_tokenizer,
    model=_model,
    processor={
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    },
    inputs=_inputs,
    features=_features,
    counts=[GRID**2 + WHOLE] * 3,
    official=_official,
)
