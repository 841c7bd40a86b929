"""Lessons of noise images over a tiny backbone, held in memory, and a source of images that can be interrupted."""

import atexit
import functools
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tiny
from masp.backbones.base import Backbone
from masp.baselines.base import Example, TrainingData
from masp.core.types import VisualTokens
from small_adapters import write_adapter

LABELS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
SIZES = ((90, 62), (58, 140), (118, 90))
TRAIN, VAL = 12, 6


class Watched:
    """Visual tokens of the images; counts how often it is asked, and may send a signal to this process.

    Args:
        backbone: computes them.
        signal_at: at which call it sends SIGTERM; None: never.
    """

    def __init__(self, backbone: Backbone, signal_at: int | None = None) -> None:
        pictures = [tiny.picture(*SIZES[number % 3], seed=number) for number in range(TRAIN + VAL)]
        self.all = backbone.visual_tokens(backbone.preprocess(pictures))
        self.calls, self.signal_at = 0, signal_at

    def stream(self, items, images):
        """See `Images`."""
        return ((item, self.visual(images(item))) for item in items)

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """See `Images`."""
        if self.calls == self.signal_at:
            signal.raise_signal(signal.SIGTERM)
        self.calls += 1
        return self.all.select(images)


def lessons(out: Path, images: Watched, seed: int = 0) -> TrainingData:
    """Twelve lessons and six to choose by, of three labels."""
    made = [
        Example(number, LABELS[(0, 4, 6)[number % 3]], {"scene": "beach", "brightness": "low"} if number % 2 else {})
        for number in range(TRAIN + VAL)
    ]
    return TrainingData(images, tuple(made[:TRAIN]), tuple(made[TRAIN:]), out, seed, "noise")


@functools.cache
def aspects_of(family: str) -> Path:
    """The folder of random aspects for a tiny backbone, removed when the tests are over."""
    keeper = tempfile.TemporaryDirectory(prefix="masp-aspects-")
    atexit.register(keeper.cleanup)
    return write_adapter(Path(keeper.name) / "adapter", LABELS, prompt=False, family=family)
