"""Tiny random checkpoints of every family, written as the folders a user would have; nothing is downloaded.

Widths are odd or prime where the architecture allows it, so that a swapped axis does not pass unnoticed. A folder is
made once per test run and removed at its end.
"""

import atexit
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.utils import logging

from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
DIM = 30  # 3 heads of 10
VOCABULARY = 421
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
WORDS = """You are a helpful assistant. Which emotion does this picture evoke? Pick one of: amusement, anger, awe,
contentment, disgust, excitement, fear, sadness, joy, surprise. What does the face express, where was it taken, what do
people do, how bright and how colorful is it: very low, low, moderate, high, very high. system user assistant"""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def checkpoint(family: str = "qwen2_vl", seed: int = 0) -> Path:
    """The folder of a tiny random checkpoint, the same one for the same arguments."""
    return _checkpoint(family, seed)


def backbone(family: str = "qwen2_vl", dtype: str = "float32", seed: int = 0) -> Backbone:
    """A tiny frozen backbone on the CPU, shared between tests."""
    return _backbone(family, dtype, seed)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB picture of coloured noise in blocks, so that neighbouring visual tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (7, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


@functools.cache
def _checkpoint(family: str, seed: int) -> Path:
    keeper = tempfile.TemporaryDirectory(prefix="masp-tiny-")
    atexit.register(keeper.cleanup)
    folder = Path(keeper.name)
    write_checkpoint(folder, family, seed)
    return folder


@functools.cache
def _backbone(family: str, dtype: str, seed: int) -> Backbone:
    return load_backbone(str(checkpoint(family, seed)), dtype=dtype, device="cpu")


def write_checkpoint(folder: Path, family: str, seed: int = 0) -> None:
    """Write a tiny random checkpoint into `folder`."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 4 * 28**2, "max_pixels": 24 * 28**2}
    sizes = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | sizes))
    generator = torch.Generator().manual_seed(seed)
    model = tiny_model(family, tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_q" not in name:
                parameter.normal_(0, 0.23, generator=generator)
    logging.disable_progress_bar()
    model.save_pretrained(folder)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's marks and chat template, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 6,  # like real checkpoints, the model has rows that no token uses
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(MARKS),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    marks: dict[str, Any] = {
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "additional_special_tokens": list(MARKS[1:]),
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **marks)


def tiny_model(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> Qwen2VLForConditionalGeneration | Qwen2_5_VLForConditionalGeneration:
    """A model of the family with random weights."""
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": DIM,
        "intermediate_size": 43,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 2]},
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    marks: dict[str, Any] = {
        name: tokenizer.convert_tokens_to_ids(mark)
        for name, mark in (
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        )
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_vl":
        own: dict[str, Any] = {"embed_dim": 24, "hidden_size": DIM, "mlp_ratio": 3}
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision | own, **marks))
    own: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 29, "out_hidden_size": DIM, "window_size": 56}
    own["fullatt_block_indexes"] = [1]
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision | own, **marks))
