"""What the tests need to know about a family: how to build a tiny checkpoint, and what to hold it against."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from masp.core.types import Pixels

DIM = 30  # 3 heads of 10


@dataclass(frozen=True)
class Kind:
    """A family in tests.

    Attributes:
        tokenizer: makes its tokenizer.
        model: makes its model, given the tokenizer; the weights are replaced.
        processor: content of preprocessor_config.json.
        inputs: arguments of the reference's forward pass beside ids and mask, given model, pixels, ids and questions.
        features: the reference's own image features, one tensor per image, given model, pixels and questions.
        counts: visual tokens of the images of `tests/contract`.
        official: transformers' own processor for the folder, or of its parts those that load without torchvision.
        extra: writes what else the folder holds.
    """

    tokenizer: Callable[[], Any]
    model: Callable[[Any], Any]
    processor: dict[str, Any]
    inputs: Callable[[Any, Pixels, Tensor, list[str]], dict[str, Any]]
    features: Callable[[Any, Pixels, list[str]], list[Tensor]]
    counts: list[int]
    official: Callable[[Path], Callable[[Any, str], Any]]
    extra: Callable[[Path], None] = field(default=lambda folder: None)


def text_config(**changes: Any) -> dict[str, Any]:
    """Sizes of a tiny language model; widths are odd or prime where the architecture allows it."""
    from tiny.tokens import VOCABULARY

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": DIM,
        "intermediate_size": 43,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return sizes | changes
