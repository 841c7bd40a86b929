"""Reading and checking EmoSet's annotation files: made-up files in EmoSet's layout, read as the command reads them.

The goal is 118,000 files in under 60 seconds. Lists and annotations only; images are not opened (`--no-images`). The
files were written by the same process just before, so they are in the system's memory: a disk's own time comes on top.

    python benchmarks/annotations.py --files 118000 --out benchmarks/results/annotations.json
    python benchmarks/annotations.py --files 2000 --images    # with a small image for every file, opened and hashed
"""

import argparse
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from PIL import Image

from masp.core.labels import LABEL_SETS
from masp.data.readers.open_dataset import settings_for
from masp.data.validation.check import Depth, check, open_together
from masp.data.validation.duplicates import hasher

GOAL = 60.0
"""Seconds that reading and checking may take."""

SHARES = {"train": 0.8, "val": 0.05, "test": 0.15}
OPTIONAL = {
    "scene": ["ice_skating_rink/outdoor", "beach", "living_room"],
    "object": [["Tree", "Food & drink"], ["Person"], []],
    "facial_expression": ["happy", "sad", "fear"],
    "human_action": ["reading (a book) ", "riding a horse"],
}


def write_files(root: Path, count: int, images: bool) -> None:
    """`count` annotation files with their lists; an image beside each where asked for."""
    dice = random.Random(0)
    labels = LABEL_SETS["emoset"]
    for label in labels:
        (root / "annotation" / label).mkdir(parents=True)
        (root / "image" / label).mkdir(parents=True)
    numbers = {label: number for number, label in enumerate(labels)}
    (root / "info.json").write_text(json.dumps({"emotion": {"label2idx": numbers}}))
    rows: dict[str, list[list[object]]] = {split: [] for split in SHARES}
    for number in range(count):
        label = labels[number % len(labels)]
        name = f"{label}_{number:05d}"
        picture, note = f"image/{label}/{name}.jpg", f"annotation/{label}/{name}.json"
        content: dict[str, object] = {"image_id": name, "emotion": label}
        content |= {aspect: dice.randrange(11) / 10 for aspect in ("brightness", "colorfulness")}
        content |= {key: dice.choice(values) for key, values in OPTIONAL.items() if dice.random() < 0.6}
        (root / note).write_text(json.dumps(content))
        if images:
            (root / picture).write_bytes(_picture(number))
        split = dice.choices(list(SHARES), list(SHARES.values()))[0]
        rows[split].append([numbers[label], name, picture, note])
    for split, listed in rows.items():
        (root / f"{split}.json").write_text(json.dumps(listed))


def _picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((512, 384)).save(buffer, "JPEG")
    return buffer.getvalue()


def measure(files: int, images: bool) -> dict[str, Any]:
    """Write, read and check `files` annotations, and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), files, images)
        busy = os.getloadavg()[0]
        begin, cpu = time.perf_counter(), time.process_time()
        (opened,) = open_together([settings_for(folder)])
        read = time.perf_counter()
        report = check([opened], Depth(images=images, hasher=hasher() if images else None))
        done, cpu = time.perf_counter(), time.process_time() - cpu
    (found,) = report.data_sets
    assert found.images == files, found
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    from masp.adapters import library_versions  # only now: torch would count as memory

    return {
        "command": f"python benchmarks/annotations.py --files {files}{' --images' * images}",
        "files": files,
        "images_opened": images,
        "reading_s": round(read - begin, 3),
        "checking_s": round(done - read, 3),
        "seconds": round(done - begin, 3),
        "goal_s": GOAL,
        "processor_s": round(cpu, 3),
        "files_per_second": round(files / (done - begin), 1),
        "largest_memory_mb": memory,
        "errors": report.errors,
        "machine": machine(load_average=round(busy, 2)),
        "versions": library_versions(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--files", type=int, default=118_000)
    options.add_argument("--images", action="store_true")
    options.add_argument("--out", type=Path, help="also write the figures into this file")
    given = options.parse_args()
    figures = json.dumps(measure(given.files, given.images), indent=1) + "\n"
    sys.stdout.write(figures)
    if given.out is not None:
        given.out.write_text(figures)


if __name__ == "__main__":
    main()
