"""The splits of the emoji scenes: each image has random numbers of its own, so that no split can share one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from masp.data.emoji.label_model import EMOTIONS, label_probabilities
from masp.data.emoji.render import SHIFTED, USUAL, Drawing, draw, draw_collage

WORLD_VERSION = 1
"""Raised whenever the same seed no longer gives the same images."""

SPLIT_NUMBERS = {"pretrain": 0, "collage": 1, "train": 2, "val": 3, "test": 4, "shifted": 5}
"""`pretrain` and `collage` are for the backbone alone; `shifted` is the test split with another layout."""


@dataclass(frozen=True)
class Scene:
    """One labelled image: the drawing, and the emotion drawn from its true probabilities."""

    drawing: Drawing
    label: str


def generator(split: str, seed: int, index: int) -> np.random.Generator:
    """The random numbers of image `index` of a split: independent of every other image's."""
    entropy = [WORLD_VERSION, seed, SPLIT_NUMBERS[split], index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def scene(split: str, seed: int, index: int) -> Scene:
    """Image `index` of a split with its label; the same arguments give the same pixels and label."""
    rng = generator(split, seed, index)
    made = draw_collage(rng) if split == "collage" else draw(rng, SHIFTED if split == "shifted" else USUAL)
    return Scene(made, str(rng.choice(EMOTIONS, p=label_probabilities(made.cues))))


def scenes(split: str, seed: int, count: int) -> Iterator[Scene]:
    """The first `count` images of a split, one at a time."""
    return (scene(split, seed, index) for index in range(count))
