"""How many photographs the embedded backbone's detector catches, and how many emoji scenes it marks by mistake.

Of the images below each FOLDER so many are taken that all folders together give `--images`, evenly apart in the order
of their paths. Emoji scenes are drawn afresh with a seed of their own, also as files that went through JPEG and other
sizes. Only figures are written: no name and no pixel of an image.

    python benchmarks/out_of_domain.py FOLDER… --images 1500 --beside FOLDER…
"""

import argparse
import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from PIL import Image

from masp.adapters import library_versions
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.data.emoji.dataset import scenes
from masp.data.file_listing import images_from
from masp.data.images import open_image
from masp.evaluation.metrics import Interval, share

HOME = Path(__file__).parent
SEED = 1
"""Of the fresh emoji scenes; the detector was fitted on those of seed 0."""
FORMATS = ("float32", "bfloat16")
BATCH = 32
SIDE = 168
GOALS = {"emoji_scenes_marked": 0.01, "photographs_caught": 0.99}

Change = Callable[[Image.Image], Image.Image]


def as_jpeg(quality: int, side: int = SIDE) -> Change:
    """A scene as a file that somebody saved: resized, and through JPEG."""

    def changed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return changed


SCENES: dict[str, tuple[str, Change]] = {
    "emoji_scenes": ("test", lambda image: image),
    "emoji_scenes_shifted": ("shifted", lambda image: image),
    "emoji_scenes_jpeg_75": ("val", as_jpeg(75)),
    "emoji_scenes_three_times_as_large": ("val", as_jpeg(90, 3 * SIDE)),
    "emoji_scenes_half_as_large": ("val", as_jpeg(90, SIDE // 2)),
}
"""Name → the split whose images are drawn, and what happens to each."""


def odd_images() -> dict[str, Image.Image]:
    """Images that are neither: plain ones, noise, gradients, a page of text, a window with a chart."""
    dice = np.random.default_rng(0)
    page = np.full((200, 160, 3), 255, np.uint8)
    page[20:180:9, 15:145:2] = 30
    window = np.full((180, 240, 3), 240, np.uint8)
    window[:18] = (60, 90, 160)
    window[40:160, 30:220] = 255
    for bar in range(6):
        window[150 - 15 * bar : 150, 45 + 28 * bar : 60 + 28 * bar] = (60, 90, 160)
    ramp = np.linspace(0, 255, SIDE, dtype=np.uint8)[:, None, None]
    found = {"white": np.full((SIDE, SIDE, 3), 255, np.uint8), "black": np.zeros((SIDE, SIDE, 3), np.uint8)}
    found |= {"red": found["black"] + np.array([200, 30, 30], np.uint8), "page_of_text": page, "window": window}
    found |= {"noise": dice.integers(0, 256, (SIDE, SIDE, 3), np.uint8), "gradient": np.tile(ramp, (1, SIDE, 3))}
    return {name: Image.fromarray(pixels) for name, pixels in found.items()}


def chosen(folders: Sequence[Path], count: int) -> dict[str, list[Path]]:
    """Images of each folder, evenly apart in the order of their paths, `count` in all where there are as many."""
    found = {
        folder.name: list(images_from([str(folder)], io.StringIO(), lambda line, error: None)) for folder in folders
    }
    left, taken = count, {}
    for place, (name, paths) in enumerate(sorted(found.items(), key=lambda item: len(item[1]))):
        number = min(len(paths), left // (len(found) - place))
        taken[name] = [paths[len(paths) * index // number] for index in range(number)]
        left -= number
    return taken


def outside(backbones: Sequence[Backbone], images: Iterable[Image.Image]) -> list[tuple[bool, ...]]:
    """For each image whether it is marked, by each backbone."""
    stream, found = iter(images), []
    while batch := list(islice(stream, BATCH)):
        pixels = backbones[0].preprocess(batch)
        judged = [backbone.domain(backbone.visual_tokens(pixels)) for backbone in backbones]
        found += zip(*([not one.inside for one in found or ()] for found in judged), strict=True)
    return found


def opened(paths: Iterable[Path]) -> Iterator[Image.Image]:
    """The images of these files."""
    return (open_image(path) for path in paths)


def drawn(split: str, count: int, change: Change) -> Iterator[Image.Image]:
    """Fresh scenes of a split."""
    return (change(made.drawing.image) for made in scenes(split, SEED, count))


def milliseconds(backbone: Backbone) -> dict[str, float]:
    """Time of one image in a batch, the least of seven tries: the vision tower, and the detector behind it."""
    pixels = backbone.preprocess([made.drawing.image for made in scenes("test", SEED, BATCH)])
    visual, taken = backbone.visual_tokens(pixels), defaultdict[str, list[float]](list)
    for _ in range(7):
        for name, job in (
            ("vision_tower", lambda: backbone.visual_tokens(pixels)),
            ("detector", lambda: backbone.domain(visual)),
        ):
            started = time.perf_counter()
            job()
            taken[name].append(time.perf_counter() - started)
    return {name: round(1000 * min(values) / BATCH, 3) for name, values in taken.items()}


def measure(folders: Sequence[Path], beside: Sequence[Path], count: int, fresh: int) -> dict[str, Any]:
    """All figures, as the result file holds them."""
    backbones = [load_backbone("embedded", dtype=dtype, device="cpu") for dtype in FORMATS]

    def figures(marked: Sequence[tuple[bool, ...]]) -> dict[str, Any]:
        by_format = {dtype: sum(one[place] for one in marked) for place, dtype in enumerate(FORMATS)}
        return {"images": len(marked)} | {dtype: asdict(share(hits, len(marked))) for dtype, hits in by_format.items()}

    marked = {name: outside(backbones, opened(paths)) for name, paths in chosen(folders, count).items()}
    apart = {name: outside(backbones, opened(paths)) for name, paths in chosen(beside, count).items()}
    made = {name: outside(backbones, drawn(split, fresh, change)) for name, (split, change) in SCENES.items()}
    odd = odd_images()
    return {
        "command": f"python benchmarks/out_of_domain.py FOLDER… --images {count} --scenes {fresh}",
        "goals": GOALS,
        "photographs_caught": figures([one for part in marked.values() for one in part]),
        "photographs_caught_by_folder": {name: figures(part) for name, part in marked.items()},
        "beside": {name: figures(part) for name, part in apart.items()},
        "scenes_marked": {name: figures(part) for name, part in made.items()},
        "odd_images_marked": dict(zip(odd, (list(one) for one in outside(backbones, odd.values())), strict=True)),
        "milliseconds_per_image": milliseconds(backbones[0]),
        "machine": machine(),
        "versions": library_versions(),
    }


def with_table(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the table that the documents show."""
    goals = {"photographs": f"≥ {100 * GOALS['photographs_caught']:.0f} %"}
    goals |= {"emoji scenes": f"≤ {100 * GOALS['emoji_scenes_marked']:.0f} %"}
    found = {"photographs": result["photographs_caught"]}
    found |= {f"photographs, {name}": one for name, one in result["photographs_caught_by_folder"].items()}
    found |= {f"beside them, {name}": one for name, one in result["beside"].items()}
    found |= {name.replace("_", " "): one for name, one in result["scenes_marked"].items()}
    rows = [
        (name, f"{one['images']:,}", *(Interval(**one[dtype]).percent() for dtype in FORMATS), goals.get(name, ""))
        for name, one in found.items()
    ]
    taken = result["milliseconds_per_image"]
    odd = result["odd_images_marked"]
    marked = sum(all(one) for one in odd.values())
    note = (
        f"Of {len(odd)} images that are neither ({', '.join(odd).replace('_', ' ')}) {marked} are marked. The vision "
        f"tower takes {taken['vision_tower']:.1f} ms an image, the detector behind it {taken['detector']:.2f} ms."
    )
    head = ["marked as no emoji scenes", "images", *FORMATS, "goal"]
    title = "The embedded backbone's detector: what it marks, with 95 % intervals"
    return result | {"title": title, "table": {"head": head, "rows": rows}, "note": note}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], metavar="FOLDER", help="measured, not counted in")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=HOME / "results" / "out_of_domain.json")
    args = parser.parse_args()
    result = with_table(measure(args.folders, args.beside, args.images, args.scenes))
    args.out.write_text(json.dumps(result, indent=1) + "\n")
