"""Photographs by their kept features: what each shows, which are for training, and how one is varied."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOP = 5
KINDS = {
    "fish": [(0, 7), (389, 398)],
    "bird": [(7, 25), (80, 101), (127, 147)],
    "reptile": [(25, 69)],
    "insect": [(69, 80), (300, 327)],
    "dog": [(151, 276)],
    "cat": [(281, 294)],
    "wild animal": [(101, 127), (147, 151), (276, 281), (294, 300), (327, 389)],
    "object": [(398, 924), (999, 1000)],
    "food": [(924, 970)],
    "landscape": [(970, 981)],
    "person": [(981, 984)],
    "plant": [(984, 999)],
}
"""Kinds of things → ranges of ImageNet's classes."""


@dataclass(frozen=True)
class Shown:
    """What is known of a photograph.

    Attributes:
        part, row: where its features are.
        name: its main thing, where a person has named it.
        captions: sentences about it.
        guesses, chances: the classes that the tower's own head puts first.
        kinds: the tower's chances of the kinds of things.
    """

    part: str
    row: int
    name: str | None
    captions: tuple[str, ...]
    guesses: tuple[str, ...]
    chances: tuple[float, ...]
    kinds: tuple[float, ...]


class Features:
    """The kept features of some parts; `limit` images of each that have been computed so far."""

    def __init__(self, folder: Path, parts: list[str]) -> None:
        self.names: dict[str, list[str]] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        for part in parts:
            done = folder / f"{part}.done"
            if not done.exists():
                continue
            self.names[part] = json.loads((folder / f"{part}.json").read_text())[: int(done.read_text())]
            kinds = ("last", "stages", "scores")
            self.arrays[part] = {kind: np.load(folder / f"{part}.{kind}.npy", mmap_mode="r") for kind in kinds}

    def read(self, rows: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        """Last features and stages of some photographs, fp32."""
        last = np.stack([self.arrays[part]["last"][row] for part, row in rows])
        stages = np.stack([self.arrays[part]["stages"][row] for part, row in rows])
        return torch.from_numpy(last).float(), torch.from_numpy(stages).float()

    def varied(self, rows: list[tuple[str, int]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The same, mirrored and cut at random: a window of the last features, which stands for one of the picture."""
        size = int(rng.integers(7, 10))
        lasts = []
        for part, row in rows:
            top, left = rng.integers(0, 10 - size, 2)
            last = self.arrays[part]["last"][row][top : top + size, left : left + size]
            lasts.append(last[:, ::-1] if rng.random() < 0.5 else last)
        stages = np.stack([self.arrays[part]["stages"][row] for part, row in rows])
        return torch.from_numpy(np.stack(lasts)).float(), torch.from_numpy(stages).float()


def sum_over(scores: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    """The chances of some ranges of classes together."""
    return torch.stack([scores[:, begin:end].sum(dim=1) for begin, end in ranges]).sum(dim=0)


def class_names(root: Path) -> list[str]:
    """ImageNet's thousand names in the order of the tower's head."""
    files = sorted((root / "aspects" / "imagenet").glob("*.jpg"))
    assert len(files) == 1000, f"{len(files)} classes"
    return [file.stem.split("_", 1)[1].replace("_", " ") for file in files]


def catalogue(root: Path, features: Features) -> tuple[list[Shown], list[Shown]]:
    """Photographs for training and for validation (Caltech's); no label but names of things is read."""
    classes = class_names(root)
    named: dict[str, tuple[str, str]] = {}
    with (root / "aspects" / "annotations.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            named["aspects/" + row["image"]] = (row["value"] if row["aspect"] == "object" else "", row["split"])
    captions: dict[str, list[str]] = {}
    with (root / "captions" / "captions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            captions.setdefault("captions/" + row["image"], []).append(row["caption"].strip())
    parts: dict[str, list[Shown]] = {"train": [], "val": []}
    for part, names in features.names.items():
        scores = torch.from_numpy(features.arrays[part]["scores"][: len(names)].astype(np.float32)).softmax(dim=1)
        chances, order = scores.topk(TOP, dim=1)
        kinds = torch.stack([sum_over(scores, ranges) for ranges in KINDS.values()], dim=1)
        for row, name in enumerate(names):
            value, split = named.get(name, ("", "train"))
            guesses = tuple(classes[i] for i in order[row].tolist())
            known = (value or None, tuple(captions.get(name, ())))
            shown = Shown(part, row, *known, guesses, tuple(chances[row].tolist()), tuple(kinds[row].tolist()))
            parts[split].append(shown)
    return parts["train"], [one for one in parts["val"] if one.part == "caltech101"]
