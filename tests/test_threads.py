"""One backbone asked by several threads at once answers each of them as it would alone."""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import tiny
from masp.adapters import combine
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.predictor import Masp
from masp.types import ImageLayout
from small_adapters import write_adapter

WORDS = ("joy", "fear", "awe", "anger", "sadness", "disgust")
TASKS = {"first": WORDS[:3], "second": WORDS[2:], "third": ("good", "bad")}
SIZES = ((62, 90), (140, 58), (90, 118), (61, 61))


@pytest.fixture
def hasty() -> Iterator[None]:
    """Python switches between threads a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


def fresh(family: str) -> Backbone:
    """A tiny backbone that has cached nothing yet."""
    return load_backbone(str(tiny.checkpoint(family)), dtype="float32", device="cpu")


class _Meddled:
    """A tokenizer of the `tokenizers` library; before its first call encodes, something else happens."""

    def __init__(self, inner: Any, meanwhile: Callable[[], object]) -> None:
        self.__dict__.update(inner=inner, meanwhile=meanwhile, due=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.inner, name, value)

    def encode_batch(self, *texts: Any, **options: Any) -> Any:
        if self.due:
            self.__dict__["due"] = False
            self.meanwhile()
        return self.inner.encode_batch(*texts, **options)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_answer_in_the_middle_of_a_template_does_not_reach_it(family: str) -> None:
    """Marks are tokens in a template and text in an answer, and transformers' tokenizer keeps which as its state."""
    backbone: Any = fresh(family)
    tokenizer, image = backbone._tokenizer, ImageLayout(0)
    expected = tiny.backbone(family).template("How does it feel?", image)
    other = threading.Thread(target=backbone.answer_ids, args=("joy", True))

    def meanwhile() -> None:
        other.start()
        other.join(timeout=0.3)  # the other may have to wait for us

    tokenizer._tokenizer = _Meddled(tokenizer._tokenizer, meanwhile)
    assert backbone.template("How does it feel?", image) == expected
    other.join()
    assert backbone.answer_ids("<s>joy", True) == tiny.backbone(family).answer_ids("<s>joy", True)
