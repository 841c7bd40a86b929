"""Keep the tower's features of all photographs on disk, so that training needs the language model only.

python scripts/photo/features.py PHOTOGRAPHS --out FOLDER [--parts emotion6,fi,captions,caltech101,imagenet,...]

Each part becomes NAME.json (the images in order) with NAME.last.npy (9 x 9 x 1280, fp16), NAME.stages.npy (mean and
deviation of the seven stages, 2 x 856, fp16) and NAME.scores.npy (ImageNet's thousand classes, fp16). A part that is
broken off goes on where it stopped.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from tower import STAGES, Tower, pixels

PARTS = ("emotion6", "caltech101", "imagenet", "captions", "fi", "stanford40", "intel", "fer2013")
MIXED = ("stanford40", "intel", "fer2013")
BATCH, FLUSHED, WORKERS = 16, 320, 2


def images(root: Path, part: str) -> list[str]:
    """The images of a part, as paths below `root`; large parts in an order in which any beginning is a fair sample."""
    folder = root / "aspects" / part if (root / "aspects" / part).is_dir() else root / part
    found = sorted(str(file.relative_to(root)) for file in folder.rglob("*.jpg"))
    return sorted(found, key=lambda name: crc32(name.encode())) if part in MIXED else found


def arrays(out: Path, part: str, count: int) -> list[np.memmap]:
    """The three arrays of a part, made where they are not there yet."""
    shapes = {"last": (count, 9, 9, 1280), "stages": (count, 2, sum(STAGES)), "scores": (count, 1000)}
    found = []
    for name, shape in shapes.items():
        file = out / f"{part}.{name}.npy"
        mode = "r+" if file.exists() else "w+"
        found.append(open_memmap(file, mode, np.float16, None if mode == "r+" else shape))
    return found


def extract(root: Path, out: Path, part: str, tower: Tower) -> None:
    """Features of a part, from where the last run stopped."""
    names = images(root, part)
    if not names:
        raise SystemExit(f"no images of {part} in {root}")
    (out / f"{part}.json").write_text(json.dumps(names))
    kept, mark = arrays(out, part, len(names)), out / f"{part}.done"
    done = int(mark.read_text()) if mark.exists() else 0
    start = time.monotonic()

    def compute(begin: int) -> None:
        some = names[begin : begin + BATCH]
        results = tower(np.stack([pixels(Image.open(root / name)) for name in some]))
        for array, result in zip(kept, results, strict=True):
            array[begin : begin + len(some)] = result.numpy().astype(np.float16)

    with ThreadPoolExecutor(WORKERS) as pool:  # batches side by side: threads inside one wait for each other too often
        for begin in range(done, len(names), FLUSHED):
            list(pool.map(compute, range(begin, min(begin + FLUSHED, len(names)), BATCH)))
            for array in kept:
                array.flush()
            mark.write_text(str(min(begin + FLUSHED, len(names))))
    print(f"{part}: {len(names)} images, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    model = Tower()
    for one in args.parts.split(","):
        extract(args.photographs, args.out, one, model)
