"""Evaluating 10,000 images with the shipped adapter: the whole command, from start to figures.

The images are drawn for this (seed 0, split test; the first 2,000 are those of `benchmarks/embedded.py`). The goal is
180 seconds on two cores.

    python benchmarks/evaluating.py WORK_FOLDER
"""

import argparse
import json
from importlib import resources
from pathlib import Path

from machine import machine
from random_backbone import timed
from rich.progress import Progress

from masp.adapters.info import library_versions
from masp.data.emoji.dataset import write_dataset

GOAL = 180.0
"""Seconds for 10,000 images."""


def measure(work: Path, images: int, out: Path) -> None:
    """Draw the images once, evaluate, write the result file."""
    data, figures = work / f"scenes{images}", work / f"figures{images}"
    if not data.exists():
        with Progress() as bar:
            task = bar.add_task("drawing", total=images)
            write_dataset(data, {"test": images}, 0, lambda count: bar.advance(task, count))
    adapter = resources.files("masp").joinpath("backbones", "embedded_adapter")
    if figures.exists():
        raise SystemExit(f"{figures} is there already, and nothing would be measured: remove it")
    run = timed("evaluate", "--adapter", str(adapter), "--data", str(data), "--out", str(figures))
    summary = json.loads((figures / "summary.json").read_text())
    found = summary["used"]
    met = "yes" if run.seconds <= GOAL * images / 10_000 else "no"
    row = [f"{found:,}", f"{run.seconds:.0f}", f"{found / run.seconds:.0f}", f"{GOAL * images / 10_000:.0f}", met]
    content = {
        "command": f"python benchmarks/evaluating.py WORK_FOLDER --images {images}",
        "title": "Evaluating the shipped adapter of the embedded default: `masp evaluate`, start and reading included",
        "table": {"head": ["pictures", "seconds", "images a second", "goal, seconds", "met"], "rows": [row]},
        "images": found,
        "accuracy": summary["accuracy"],
        **run.record(),
        "goal_s": GOAL * images / 10_000,
        "machine": machine(),
        "versions": library_versions(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluating.json")
    args = parser.parse_args()
    measure(args.work, args.images, args.out)
