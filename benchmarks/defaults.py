"""Whether the defaults of training are good ones: soft prompts of a small sweep around them, on few and on more images.

V+S, and V+A+S with the aspects that ship, on the embedded backbone in float32, on 182 and on 1,386 emoji scenes (what
260 and 1,980 drawn scenes leave for training; 13 and 99 are for validation), several training seeds. Every row
of the sweep differs from the defaults in the settings that it names.

Defaults are chosen with `--select`: other images (data seed 11), another training seed, measured on images of the
split val. The result is of images that take no part in that (data seed 0, split test). Two measures: accuracy, and
the mean true probability of the named label, which accuracy tends to and which has far less noise.

    python benchmarks/defaults.py WORK --select --seeds 10 # to choose by
    python benchmarks/defaults.py WORK --seeds 0 1 2       # the result; a finished cell is not run again
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from machine import machine
from torch import Tensor

from masp.adapters import Adapter, library_versions, load_adapter
from masp.adapters.shipped import shipped_adapter
from masp.backbones.loading import load_backbone
from masp.core.atomic_io import write_file
from masp.core.config import load_config
from masp.core.labels import render_labels
from masp.core.prompts import load_questions
from masp.core.types import VisualTokens
from masp.data.emoji.dataset import write_dataset
from masp.data.images import open_image
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset, read_json
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import score
from masp.training import VisualMemory, train_prompt

HOME = Path(__file__).parent
SIZES = {182: 13, 1386: 99}
"""Images to train on, and images of the split val that go with them."""

MEASURED = 600
TOGETHER = 100
DEFAULTS = "defaults"
ROWS: Mapping[str, tuple[str, ...]] = {
    DEFAULTS: (),
    "rate / 3": ("learning_rate_scale=0.06",),
    "rate × 3": ("learning_rate_scale=0.5",),
    "batch / 2": ("batch_size=8",),
    "batch × 2": ("batch_size=32",),
    "steps / 2": ("max_steps=150",),
    "steps × 2": ("epochs=1000", "max_steps=600", "evaluate_every=6"),
    "start: vocabulary": ("init.kind=vocabulary",),
    "loss: labels": ("loss=labels",),
    "rate 1e-4, batch 8, 3 epochs": ("learning_rate=1e-4", "batch_size=8", "epochs=3"),
}
"""What a row of the sweep changes in the settings of stage 2."""

ASPECTS_TOO = "V+A+S, "
ROWS = ROWS | {f"{ASPECTS_TOO}{row}": ROWS[row] for row in (DEFAULTS, "rate / 3", "rate × 3", "steps × 2")}
"""The same with aspect tokens before the image."""


@dataclass(frozen=True)
class Pictures:
    """Where the images come from, and which of them are measured.

    Attributes:
        data: seed of the drawn data set.
        split: that is measured.
    """

    data: int
    split: str


FINAL, SELECTION = Pictures(0, "test"), Pictures(11, "val")


class Bench:
    """Trains a soft prompt for each cell and measures it on images that are read once.

    Args:
        work: folder of images, runs and finished cells.
        images: which of them.
    """

    def __init__(self, work: Path, pictures: Pictures) -> None:
        self.work, self.pictures = work / f"data{pictures.data}", pictures
        self.backbone, self.memory = load_backbone("embedded", dtype="float32", device="cpu"), VisualMemory()
        self.questions = load_questions()
        home = self.work / "pictures"
        (self.work / "cells").mkdir(parents=True, exist_ok=True)
        if not (home / "info.json").exists():
            shutil.rmtree(home, ignore_errors=True)
            held = max(SIZES.values())
            sizes = {"train": max(SIZES), "val": held + MEASURED * (pictures.split == "val")}
            write_dataset(home, sizes | {"test": MEASURED * (pictures.split == "test")}, pictures.data)
        whole = open_dataset(home, layout="emoset")
        self.labels, self.data = whole.labels, {size: _part(whole, size, val) for size, val in SIZES.items()}
        self.measured = whole.splits[pictures.split][-MEASURED:]

    @cached_property
    def visual(self) -> VisualTokens:
        """Visual tokens of the measured images."""
        parts = []
        for start in range(0, MEASURED, TOGETHER):
            images = [open_image(record.path) for record in self.measured[start : start + TOGETHER]]
            with torch.no_grad():
                parts.append(self.backbone.visual_tokens(self.backbone.preprocess(images)))
        return VisualTokens.stack(parts)

    @cached_property
    def chances(self) -> Tensor:
        """True probability of each label for each measured image: (images, labels)."""
        known: list[Any] = [record.extra["emoji"] for record in self.measured]
        return torch.tensor([[one["probabilities"][label] for label in self.labels] for one in known])

    def cell(self, size: int, row: str, seed: int) -> dict[str, Any]:
        """One trained and measured soft prompt; read where it is there already."""
        aspects = shipped_adapter() if row.startswith(ASPECTS_TOO) else None
        changes = ["data.path=scenes", f"prompt.seed={seed}", *(["prompt.aspects=[]"] if aspects is None else [])]
        changes += [f"prompt.store_dir={self.work / 'store'}"]  # prefixes are the same for all of them
        changes += [f"prompt.{change}" for change in ROWS[row]]
        config = load_config(None, changes)
        told = config.prompt.model_dump(mode="json", exclude={"seed", "store_dir"})
        name = f"{size}-{row.replace('/', 'by').replace(' ', '_')}-{seed}"
        file = self.work / "cells" / f"{name}.json"
        before = read_json(file) if file.is_file() else {}
        if isinstance(before, dict) and before.get("settings") == told:
            return before
        run = self.work / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        started, worked = time.perf_counter(), time.process_time()
        result = train_prompt(config, self.data[size], self.backbone, aspects, run, memory=self.memory)
        spent = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - worked}
        trained = load_adapter(result.adapter, self.backbone)
        steps = {"steps": result.steps, "step_seconds": result.seconds / result.steps}
        found = {"images": size, "row": row, "seed": seed, **self._figures(trained), **steps, **spent, "settings": told}
        write_file(file, json.dumps(found).encode())
        print(f"{size:5}  {row:30} seed {seed}: {100 * found['accuracy']:.1f} %", flush=True)
        return found

    @torch.no_grad()
    def _figures(self, trained: Adapter) -> dict[str, float]:
        model = MaspModel(self.backbone, trained.info.method, trained.aspects, trained.prompt, self.questions)
        use = ActiveParts(() if trained.aspects is None else trained.aspects.aspects)
        question = self.questions.ask_emotion(render_labels(self.labels, "comma"))
        named: list[int] = []
        for start in range(0, MEASURED, TOGETHER):
            seen = self.visual.select(list(range(start, min(start + TOGETHER, MEASURED))))
            named += score(model, seen, question, self.labels, use).argmax(1).tolist()
        right = sum(self.labels[one] == record.label for one, record in zip(named, self.measured, strict=True))
        return {"accuracy": right / MEASURED, "expected": float(self.chances[range(MEASURED), named].mean())}


def _part(whole: Dataset, size: int, val: int) -> Dataset:
    return replace(whole, splits={"train": whole.split("train")[:size], "val": whole.split("val")[:val]})


def result(cells: Sequence[Mapping[str, Any]], pictures: Pictures, asked: str) -> dict[str, Any]:
    """What the file says of these cells; a row that is not there for every size and seed is left out."""
    seeds = sorted({one["seed"] for one in cells})
    rows, means = [], {}
    for row in ROWS:
        own = {size: [one for one in cells if one["row"] == row and one["images"] == size] for size in SIZES}
        if any({one["seed"] for one in group} != set(seeds) for group in own.values()):
            continue
        means[row] = {
            str(size): {key: mean(one[key] for one in group) for key in ("accuracy", "expected")}
            for size, group in own.items()
        }
        changed = ", ".join(ROWS[row]) or "–"
        rows.append([row, changed, *(_cell(means[row][str(size)]) for size in SIZES)])
    behind = {
        system: _behind({row: one for row, one in means.items() if row.startswith(ASPECTS_TOO) == bool(first)}, first)
        for system, first in (("V+S", ""), ("V+A+S", ASPECTS_TOO))
        if f"{first}{DEFAULTS}" in means
    }
    worst = "; ".join(
        f"{system}, {size} images: {100 * value['accuracy']:.1f} points"
        for system, sizes in behind.items()
        for size, value in sizes.items()
    )
    head = ["sweep", "settings of stage 2", *(f"{size:,} images" for size in SIZES)]
    return {
        "command": f"python benchmarks/defaults.py WORK {asked}",
        "title": "Training with the defaults, V+S and V+A+S on the embedded backbone",
        "note": f"Accuracy on {MEASURED} images, mean over the training seeds {', '.join(map(str, seeds))}; in "
        f"brackets the mean true probability of the named label. The defaults are behind the best row by: {worst}.",
        "table": {"head": head, "rows": rows},
        "behind_best": behind,
        "means": means,
        "pictures": {"data_seed": pictures.data, "split": pictures.split, "measured": MEASURED},
        "seeds": seeds,
        "machine": machine(threads=torch.get_num_threads(), dtype="float32"),
        "versions": library_versions(),
        "cells": [{key: value for key, value in one.items() if key != "settings"} for one in cells],
    }


def _behind(means: Mapping[str, Mapping[str, Any]], first: str) -> dict[str, dict[str, float]]:
    """How far the defaults are behind the best row of their system, for each size."""
    own = means[f"{first}{DEFAULTS}"]
    return {
        str(size): {
            key: max(one[str(size)][key] for one in means.values()) - own[str(size)][key]
            for key in ("accuracy", "expected")
        }
        for size in SIZES
    }


def _cell(found: Mapping[str, float]) -> str:
    return f"{100 * found['accuracy']:.1f} ({100 * found['expected']:.1f})"


def measure(work: Path, pictures: Pictures, seeds: Sequence[int], rows: Sequence[str], most: int, out: Path) -> None:
    """Every row with every size and seed, at most so many new ones; the result file is written after every seed."""
    bench, cells, started = Bench(work, pictures), [], time.time()
    for place, seed in enumerate(seeds, start=1):
        for row, size in product(rows, SIZES):
            if sum(file.stat().st_mtime > started for file in (bench.work / "cells").glob("*.json")) >= most:
                print("stopped; the same command goes on")
                return
            cells.append(bench.cell(size, row, seed))
        asked = "--select " * (pictures == SELECTION) + f"--seeds {' '.join(map(str, seeds[:place]))}"
        write_file(out, (json.dumps(result(cells, pictures, asked), indent=1) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="only these rows")
    parser.add_argument("--select", action="store_true", help="the images that the defaults were chosen by")
    parser.add_argument("--most", type=int, default=10**6, help="stop after so many new cells")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    usual = args.work / "selection.json" if args.select else HOME / "results" / "defaults.json"
    torch.manual_seed(0)
    measure(args.work, SELECTION if args.select else FINAL, args.seeds, args.rows, args.most, args.out or usual)
