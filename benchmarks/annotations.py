"""Reading and checking EmoSet's annotation files: made-up files in EmoSet's layout, read as the command reads them.

The goal is 118,000 files in under 60 seconds. Lists and annotations only; images are not opened (`--no-images`).

    python benchmarks/annotations.py --files 118000
    python benchmarks/annotations.py --files 2000 --images    # with a small image for every file, opened and hashed
"""

import argparse
import io
import json
import platform
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from masp.data.checking.check import Depth, check, open_for_check
from masp.data.checking.near import hasher
from masp.data.readers import settings_for
from masp.labels import LABEL_SETS

SHARES = {"train": 0.8, "val": 0.05, "test": 0.15}
OPTIONAL = {
    "scene": ["ice_skating_rink/outdoor", "beach", "living_room"],
    "object": [["Tree", "Food & drink"], ["Person"], []],
    "facial_expression": ["happy", "sad", "fear"],
    "human_action": ["reading (a book) ", "riding a horse"],
}


def write_files(root: Path, count: int, images: bool) -> None:
    """`count` annotation files with their lists; a picture beside each where asked for."""
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=118_000)
    options.add_argument("--images", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), given.files, given.images)
        begin, cpu = time.perf_counter(), time.process_time()
        opened = open_for_check(settings_for(folder))
        read = time.perf_counter()
        report = check([opened], Depth(images=given.images, hasher=hasher() if given.images else None))
        done, cpu = time.perf_counter(), time.process_time() - cpu
    (found,) = report.data_sets
    assert found.images == given.files, found
    figures = {
        "files": given.files,
        "reading_s": round(read - begin, 3),
        "checking_s": round(done - read, 3),
        "processor_s": round(cpu, 3),
        "files_per_second": round(given.files / (done - begin), 1),
        "images_opened": given.images,
        "largest_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "errors": report.errors,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
