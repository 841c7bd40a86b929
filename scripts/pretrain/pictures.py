"""Images for pre-training the embedded backbone, drawn once and kept in flat files.

Only the splits `pretrain` and `collage` are drawn here: no image of train, validation or test is ever seen.

    python scripts/pretrain/pictures.py FOLDER --split pretrain --count 36000
"""

import argparse
import json
from pathlib import Path

import numpy as np

from masp.data.emoji.dataset import scenes
from masp.data.emoji.render import CELLS, SIDE

SEED = 0


def files(folder: Path, split: str) -> tuple[Path, Path, Path]:
    """Where the pixels, the cell maps and the cues of a split lie."""
    return folder / f"{split}.pixels.npy", folder / f"{split}.cells.npy", folder / f"{split}.cues.jsonl"


def write(folder: Path, split: str, count: int) -> None:
    """Draw `count` images: pixels (count, 168, 168, 3) uint8, cells (count, 6, 6) int16, cues as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels_file, cells_file, cues_file = files(folder, split)
    pixels = np.lib.format.open_memmap(pixels_file, "w+", np.uint8, (count, SIDE, SIDE, 3))
    cells = np.lib.format.open_memmap(cells_file, "w+", np.int16, (count, CELLS, CELLS))
    with cues_file.open("w") as lines:
        for index, made in enumerate(scenes(split, SEED, count)):
            drawing = made.drawing
            pixels[index], cells[index] = np.asarray(drawing.image), drawing.cells
            cues = drawing.cues
            row = [cues.scene, cues.objects, cues.expression, cues.action, cues.brightness, cues.colorfulness]
            lines.write(json.dumps(row) + "\n")
    pixels.flush()
    cells.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=("pretrain", "collage"), required=True)
    parser.add_argument("--count", type=int, required=True)
    args = parser.parse_args()
    write(args.folder, args.split, args.count)
