"""Emoji scenes as a folder in EmoSet's published layout, with the truth about each image beside its annotations."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masp.core.aspects import ASPECTS
from masp.core.errors import DataError
from masp.data.emoji.label_model import EMOTIONS, INTERACTIONS, cause, effects, label_probabilities
from masp.data.emoji.render import GLYPHS, SHIFTED, SIDE, USUAL, Drawing, draw, draw_collage

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


SHARES = {"train": 0.70, "val": 0.05, "test": 0.15, "shifted": 0.10}


def split_sizes(images: int) -> dict[str, int]:
    """How many of `images` images each split gets: 70 / 5 / 15 %, and 10 % for the shifted test."""
    sizes = {name: int(images * share) for name, share in SHARES.items() if name != "train"}
    return {"train": images - sum(sizes.values()), **sizes}


def write_dataset(
    folder: Path,
    images: int | Mapping[str, int],
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Draw labelled emoji scenes into `folder`: image/, annotation/, one list for each split, info.json.

    Each annotation carries a key `emoji`: the true `probabilities` of the labels, the `cause` (the aspect whose cue did
    most for the label), every aspect's true `effects`, the `interactions` that applied, and `cells`, for each 28-pixel
    cell the [aspect, value] of the glyph that covers it, or null.

    Args:
        folder: a folder that is new or empty.
        images: how many images, all splits together; or how many for each split.
        seed: the same seed gives the same files, byte for byte.
        progress: called with 1 for every image.

    Raises:
        DataError: the folder holds something already, or a split is unknown.
    """
    sizes = split_sizes(images) if isinstance(images, int) else dict(images)
    unknown = sorted(set(sizes) - set(SHARES))
    if unknown:
        raise DataError(f"the split '{unknown[0]}'", f"one of {', '.join(SHARES)}", "Correct its name.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder", "a new or empty folder", "Choose another one.")
    for kind in ("image", "annotation"):
        for emotion in EMOTIONS:
            (folder / kind / emotion).mkdir(parents=True, exist_ok=True)
    counters = dict.fromkeys(EMOTIONS, 0)
    for split, count in sizes.items():
        rows = []
        for made in scenes(split, seed, count):
            rows.append(_write_scene(folder, made, counters))
            if progress is not None:
                progress(1)
        (folder / f"{split}.json").write_text(json.dumps(rows, indent=0))
    (folder / "info.json").write_text(json.dumps(_info(sizes, seed), indent=1))
    return folder


def _write_scene(folder: Path, made: Scene, counters: dict[str, int]) -> list[str]:
    """Write one image and its annotation; its row for the split's list."""
    label = made.label
    name = f"{label}_{counters[label]:05d}"
    counters[label] += 1
    image, note = f"image/{label}/{name}.jpg", f"annotation/{label}/{name}.json"
    made.drawing.image.save(folder / image, quality=95, subsampling=0)
    (folder / note).write_text(json.dumps(annotation(made, name)))
    return [label, name, image, note]


def annotation(made: Scene, name: str) -> dict[str, Any]:
    """The annotation of an image: EmoSet's keys (an absent cue is an absent key) and the truth under `emoji`."""
    cues, label = made.drawing.cues, made.label
    content: dict[str, Any] = {"image_id": name, "emotion": label}
    content |= {"brightness": cues.brightness, "colorfulness": cues.colorfulness}
    content |= {"scene": cues.scene, "object": list(cues.objects)}
    content |= {"facial_expression": cues.expression} if cues.expression else {}
    content |= {"human_action": cues.action} if cues.action else {}
    chances = dict(zip(EMOTIONS, (round(p, 6) for p in label_probabilities(cues).tolist()), strict=True))
    true_effects = effects(cues, label)
    content["emoji"] = {
        "probabilities": chances,
        "cause": cause(cues, label),
        "effects": {aspect: round(true_effects[aspect], 4) for aspect in ASPECTS},
        "interactions": [interaction.name for interaction in INTERACTIONS if interaction.holds(cues)],
        "cells": [
            [[GLYPHS[index].aspect, GLYPHS[index].value] if index >= 0 else None for index in row]
            for row in made.drawing.cells.tolist()
        ],
    }
    return content


def _info(sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """info.json as EmoSet has it, and what made this folder."""
    return {
        "info": "Emoji scenes: a made world whose labels, causes and best possible accuracy are known.",
        "label2idx": {emotion: index for index, emotion in enumerate(EMOTIONS)},
        "idx2label": {str(index): emotion for index, emotion in enumerate(EMOTIONS)},
        "emoji_scenes": {"world": WORLD_VERSION, "seed": seed, "side": SIDE, "splits": dict(sizes)},
    }
