"""A handful of noise images with labels, annotations and a made-up truth of emoji scenes."""

from pathlib import Path

import tiny
from masp.data.records import Dataset, Record
from small_adapters import LABELS

CELLS = [
    [["scene", "beach"], None, None],
    [None, ["object", "Cat"], ["object", "Cup"]],
]
"""Two rows of three fields, on an image of any size."""


def write_scenes(root: Path, count: int = 7) -> Dataset:
    """`count` images of two sizes in the split test; the last one is not annotated."""
    root.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        path = root / f"{number}.png"
        tiny.picture(84 if number % 2 else 140, 112, seed=number).save(path)
        label = LABELS[number % 3]
        chances = {name: 0.6 if name == LABELS[number % 2] else 0.2 for name in LABELS}
        known = {"object": "cat, cup", "scene": "beach"} if number < count - 1 else {}
        truth = {"cause": "scene" if number % 2 else "object", "cells": CELLS, "probabilities": chances}
        records.append(Record(path, label, known, extra={"emoji": truth}))
    return Dataset("scenes", root, LABELS, {"test": tuple(records)}, "folder")
