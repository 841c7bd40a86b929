"""Which learning rate suits the systems that MASP is compared with: measured on a validation split, under one budget.

Every system learns as many steps of as many questions as a soft prompt of `masp reproduce` does on the embedded
backbone. Rates of LoRA layers are given in the natural scale, 1 / width of the language model: one step of AdamW
changes what a matrix makes of a vector by up to rate · width of its size. Those of a distilled head, which stands on a
probe here, are multiples of its own. No test image takes part.

    python benchmarks/baseline_rates.py WORK_FOLDER --out benchmarks/results/baseline_rates.json
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine

from masp.adapters import library_versions
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.baselines.base import TrainingData
from masp.baselines.learning import make_training_data
from masp.baselines.registry import make_system, settings_of
from masp.core.config import DataConfig, load_config
from masp.data.readers.open_dataset import open_dataset
from masp.demo.pictures import Plan, draw_dataset, is_drawn

PLAN = Plan(train=2000, val=1000, test=8, seed=2)  # other images than those of any committed table
RATES = (0.125, 0.25, 0.5, 1.0, 2.0)
SYSTEMS = ("qlora", "instruction", "distilled")
PARTS = ("teacher_rate", "head_rate", "gate_rate")
CONFIG = Path(__file__).parents[1] / "src" / "masp" / "configs" / "reproduce.yaml"
TOGETHER = 32


def measure(work: Path, plan: Plan, systems: tuple[str, ...], rates: tuple[float, ...], out: Path) -> None:
    """Let every system learn with every rate, ask it about the validation split, write the result file."""
    data = work / "data"
    if not is_drawn(data, plan):
        draw_dataset(data, plan, lambda _: None)
    backbone = load_backbone("embedded", dtype="float32")
    dataset = open_dataset(DataConfig(path=data, layout="emoset"))
    lessons = make_training_data(backbone, dataset, dataset.labels, work / "read")
    found: list[dict[str, Any]] = []
    for name in systems:
        for rate in rates:
            found.append(one(backbone, dataset.labels, lessons, (name, rate), work))
            write(out, plan, found)


def one(
    backbone: Backbone, labels: tuple[str, ...], lessons: TrainingData, what: tuple[str, float], work: Path
) -> dict[str, Any]:
    """A system with one rate: what it answers on the validation split."""
    (name, rate), started = what, time.perf_counter()
    changes = _changes(name, rate, backbone.dim)
    system = make_system(name, backbone, labels, changes)
    out = work / name / f"{rate:g}"
    system.fit(TrainingData(lessons.images, lessons.train, lessons.val, out, 0, lessons.fingerprint))
    right, likelihood = 0, 0.0
    for start in range(0, len(lessons.val), TOGETHER):
        held = lessons.val[start : start + TOGETHER]
        for lesson, said in zip(held, system.predict(lessons.images.visual([one.image for one in held])), strict=True):
            assert said.log_probabilities is not None
            right += said.predicted == lesson.label
            likelihood += said.log_probabilities[lesson.label]
    count = len(lessons.val)
    figures = {"accuracy": right / count, "negative_log_likelihood": -likelihood / count}
    return {"system": name, "rate": rate, **figures, "seconds": round(time.perf_counter() - started, 1)}


def _changes(name: str, rate: float, width: int) -> list[str]:
    """The settings of a system: the rate, and the budget of the soft prompt."""
    if name == "distilled":
        own = settings_of(name)
        return ["over=probe", *(f"{part}={rate * float(str(own[part]))}" for part in PARTS)]
    budget = load_config(CONFIG).prompt
    lengths = {key: getattr(budget, key) for key in ("max_steps", "batch_size", "epochs", "schedule", "warmup")}
    return [f"learning_rate={rate / width}", "evaluate_every=0", *(f"{key}={is_}" for key, is_ in lengths.items())]


def write(out: Path, plan: Plan, found: list[dict[str, Any]]) -> None:
    """The result file, with a table for people."""
    budget, backbone = load_config(CONFIG).prompt, load_backbone("embedded", dtype="float32")
    rows = []
    for one in found:
        half = 1.96 * math.sqrt(one["accuracy"] * (1 - one["accuracy"]) / plan.val)
        accuracy = f"{100 * one['accuracy']:.1f} ± {100 * half:.1f}"
        times = PARTS if one["system"] == "distilled" else ()
        own = [float(str(settings_of("distilled")[part])) for part in times] or [1 / backbone.dim]
        given = " · ".join(f"{one['rate'] * each:.2g}" for each in own)
        rows.append([one["system"], f"{one['rate']:g}", given, accuracy, f"{one['negative_log_likelihood']:.3f}"])
    names = " ".join(dict.fromkeys(one["system"] for one in found))
    factors = " ".join(dict.fromkeys(f"{one['rate']:g}" for one in found))
    content = {
        "command": f"python benchmarks/baseline_rates.py WORK_FOLDER --systems {names} --rates {factors}",
        "title": "Learning rates of the systems that MASP is compared with, chosen on a validation split",
        "note": f"Embedded backbone in float32, {budget.max_steps} steps of {budget.batch_size} questions, one seed, "
        f"{plan.train:,} images to learn from and {plan.val:,} to validate on, drawn for this.",
        "table": {
            "head": [
                "system",
                "factor",
                "rate: factor / width, or of teacher · head · gate",
                "accuracy on val, %",
                "negative log-likelihood, nats",
            ],
            "rows": rows,
        },
        "figures": found,
        "machine": machine(threads=torch.get_num_threads()),
        "versions": library_versions(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "baseline_rates.json")
    args = parser.parse_args()
    measure(args.work, PLAN, tuple(args.systems), tuple(args.rates), args.out)
