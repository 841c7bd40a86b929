"""A few images with labels and aspects on a tiny backbone, as a system under comparison is given them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from masp.backbones.base import Backbone
from masp.baselines.base import Example, TrainingData
from masp.core.types import VisualTokens

LABELS = ("joy", "fear")
ASPECTS = {"scene": ("beach", "city"), "brightness": ("high", "low")}


class Held:
    """Visual tokens in memory; counts the calls, and does what it is told at each."""

    def __init__(self, visual: VisualTokens, at_call: Callable[[int], None] = lambda call: None) -> None:
        self.tokens, self.at_call, self.calls = visual, at_call, 0

    def stream(self, items, images):
        return ((item, self.visual(images(item))) for item in items)

    def visual(self, images: Sequence[int]) -> VisualTokens:
        self.calls += 1
        self.at_call(self.calls)
        return self.tokens.select(list(images))


def tokens(backbone: Backbone, count: int, first: int = 0) -> VisualTokens:
    """Visual tokens of images in two families of colours and two sizes; even ones are reddish, odd ones bluish."""
    pictures = []
    for number in range(first, first + count):
        low, high = 10 + 7 * (number % 5), 255 - 9 * (number % 4)
        colour = (low, 90, high) if number % 2 else (high, 90, low)
        pictures.append(Image.new("RGB", (84, 56 if number % 3 else 84), colour))
    return backbone.visual_tokens(backbone.preprocess(pictures))


def lessons(
    backbone: Backbone,
    out: Path,
    train: int = 8,
    val: int = 4,
    aspects: bool = False,
    at_call: Callable[[int], None] = lambda call: None,
) -> TrainingData:
    """Lessons whose label is the colour; with `aspects`, every image but each third has two."""
    made = []
    for number in range(train + val):
        known = {name: values[number % 2] for name, values in ASPECTS.items()} if aspects and number % 3 else {}
        made.append(Example(number, LABELS[number % 2], known))
    held = Held(tokens(backbone, train + val), at_call)
    return TrainingData(held, tuple(made[:train]), tuple(made[train:]), out, seed=3)
