"""Tiny Idefics3 and SmolVLM."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from masp.core.types import Pixels
from tiny.kind import Kind, text_config
from tiny.tokens import byte_level

MARKS = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
MARKS += [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SIDE = 16  # 4 × 4 patches of 4, of which 2 × 2 make one visual token


def _tokenizer() -> Any:
    named = {"pad_token": "<|endoftext|>", "eos_token": "<end_of_utterance>", "bos_token": "<|im_start|>"}
    return byte_level(MARKS, TEMPLATE, named)


def _config(kind: Any, tokenizer: Any) -> Any:
    sizes = {"hidden_size": 22, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2}
    return kind(
        text_config=LlamaConfig(**text_config(pad_token_id=0)),
        vision_config=sizes | {"image_size": SIDE, "patch_size": 4},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values, "pixel_attention_mask": pixels.mask}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.model.get_image_features(pixels.values, pixel_attention_mask=pixels.mask).pooler_output)


def _official(folder: Path) -> Any:
    parts = {"image_processor": Idefics3ImageProcessorPil.from_pretrained(folder)}
    made = Idefics3Processor(**parts, tokenizer=AutoTokenizer.from_pretrained(folder), image_seq_len=4)
    return lambda image, text: made(images=image, text=text, return_tensors="pt", add_special_tokens=False)


def _official_smol(folder: Path) -> Any:
    """The processor's rule for placeholders and its image part; the processor itself wants torchvision for videos."""

    def process(image: Any, text: str) -> dict[str, Any]:
        parts = SmolVLMImageProcessorPil.from_pretrained(folder)
        batch = parts(images=[[image]], return_row_col_info=True, return_tensors="pt")
        marks = {"fake_token_around_image": "<fake_token_around_image>", "image_token": "<image>"}
        size = (int(batch["rows"][0][0]), int(batch["cols"][0][0]))
        shown = get_image_prompt_string(*size, 4, **marks, global_image_token="<global-img>")
        whole = text.replace("<image>", shown)
        ids = AutoTokenizer.from_pretrained(folder)(whole, add_special_tokens=False).input_ids
        return {"input_ids": torch.tensor([ids]), "pixel_values": batch["pixel_values"]}

    return process


def _processor(name: str) -> dict[str, Any]:
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return {"image_processor_type": f"{name}ImageProcessor", "do_image_splitting": True} | sizes


IDEFICS3 = Kind(
    tokenizer=_tokenizer,
    model=lambda tokenizer: Idefics3ForConditionalGeneration(_config(Idefics3Config, tokenizer)),
    processor=_processor("Idefics3"),
    inputs=_inputs,
    features=_features,
    counts=[20, 12, 20],  # 4 each of 2 × 2, 2 × 1 and 2 × 2 tiles and the whole,
    official=_official,
)
SMOLVLM = Kind(
    tokenizer=_tokenizer,
    model=lambda tokenizer: SmolVLMForConditionalGeneration(_config(SmolVLMConfig, tokenizer)),
    processor=_processor("SmolVLM"),
    inputs=_inputs,
    features=_features,
    counts=[20, 12, 20],  # 4 each of 2 × 2, 2 × 1 and 2 × 2 tiles and the whole,
    official=_official_smol,
)
