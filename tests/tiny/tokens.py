"""Tiny tokenizers of the two kinds that the families use, trained on a few sentences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

WORDS = """You are a helpful assistant. Which emotion does this image evoke? Pick one of: amusement, anger, awe,
contentment, disgust, excitement, fear, sadness, joy, surprise. What does the face express, where was it taken, what do
people do, how bright and how colorful is it: very low, low, moderate, high, very high. system user assistant"""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 421  # rows of the embedding matrix
WITHOUT_TOKEN = 6  # like real checkpoints, the model has rows that no token uses


def byte_level(marks: Sequence[str], template: str, named: Mapping[str, str], **more: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen, SmolLM and Llama 3 have it; the marks have the lowest ids.

    Args:
        marks: its special tokens.
        template: its chat template.
        named: special tokens by the name of their attribute.
        more: further arguments of the tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - WITHOUT_TOKEN,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(marks),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    rest = [mark for mark in marks if mark not in named.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, additional_special_tokens=rest, **named, **more
    )


def sentence_piece(marks: Sequence[str], template: str | None, legacy: bool, **more: Any) -> LlamaTokenizer:
    """A BPE over "▁" as Llama 2 and Vicuna have it; `legacy` puts a blank before every run of text, not only the first.

    Args:
        marks: special tokens besides <unk>, <s> and </s>.
        template: its chat template, if it has one.
        legacy: as in the checkpoint's tokenizer_config.json.
        more: further arguments of the tokenizer.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - WITHOUT_TOKEN - len(marks), special_tokens=special, show_progress=False
    )
    trained.train_from_iterator([WORDS] * 3, trainer)
    content = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in content["merges"]]
    rules = {"legacy": legacy, "add_bos_token": True, "chat_template": template}
    made = LlamaTokenizer(vocab=content["vocab"], merges=merges, **rules, **more)
    made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks], special_tokens=True)
    return made
