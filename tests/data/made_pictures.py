"""Small images and data sets made up for the tests."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masp.core.errors import DataError
from masp.data.readers.open_dataset import open_dataset

MIKELS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")


def noise(width: int = 7, height: int = 5, seed: int = 0, channels: int = 3) -> Image.Image:
    """An image of random bytes, another for every seed."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def heic(image: Image.Image, *others: Image.Image, exif: Image.Exif | None = None, **options: object) -> bytes:
    """Images as a HEIC file, the first of them its primary one; skips the test without pillow-heif."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pip install 'masp[heic]'")
    collection = pillow_heif.from_pillow(image)
    for other in others:
        collection.add_from_pillow(other)
    if exif is not None:
        collection.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    collection.save(buffer, **options)
    return buffer.getvalue()


def long_jpeg(width: int, height: int, image: Image.Image | None = None) -> bytes:
    """A JPEG of `height` rows, a multiple of 16, made of one strip again and again: a large one in no time."""
    strip = Image.new("RGB", (width, 16), (200, 30, 60)) if image is None else image.resize((width, 16))
    content = encoded(strip, "JPEG", restart_marker_rows=1)
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(content[scan + 2 : scan + 4])
    header = bytearray(content[:start])
    header[frame + 5 : frame + 7] = height.to_bytes(2)
    rows = (content[start:-2] + bytes([0xFF, 0xD0 + row % 8]) for row in range(height // 16 - 1))
    return bytes(header) + b"".join(rows) + content[start:]


def put(path: Path, seed: int = 0) -> Path:
    """An image at `path`; its content depends on the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(seed=seed)))
    return path


def put_json(path: Path, content: object) -> Path:
    """A JSON file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def tree(root: Path, counts: Mapping[str, int], first: int = 0) -> Path:
    """`root/<label>/<number>.png`, every image another one."""
    seed = first
    for label, count in counts.items():
        for number in range(count):
            put(root / label / f"{number}.png", seed)
            seed += 1
    return root


def emoset(
    root: Path,
    rows: Mapping[str, Sequence[tuple[str, Mapping[str, object]]]],
    order: Sequence[str] = MIKELS,
    with_ids: bool = True,
) -> Path:
    """EmoSet's published layout: split → (label, annotation) for each image."""
    put_json(root / "info.json", {"emotion": {"label2idx": {label: place for place, label in enumerate(order)}}})
    seed = 0
    for split, entries in rows.items():
        listed: list[list[object]] = []
        for label, annotation in entries:
            name = f"{label}_{seed:05d}"
            picture, note = f"image/{label}/{name}.jpg", f"annotation/{label}/{name}.json"
            put(root / picture, seed)
            put_json(root / note, {"image_id": name, "emotion": label, **annotation})
            listed.append([order.index(label), *([name] if with_ids else []), picture, note])
            seed += 1
        put_json(root / f"{split}.json", listed)
    return root


EMOTION6_HEADER = (
    "[image_filename]\t[valence]\t[arousal]\t[prob. anger]\t[prob. disgust]\t[prob. fear]\t[prob. joy]"
    "\t[prob. sadness]\t[prob. surprise]\t[prob. neutral]"
)


def emotion6(root: Path, rows: Sequence[str]) -> Path:
    """Emotion6's published layout: rows such as "joy/1.jpg 5 4 0 0 0 1 0 0 0"; each one's image is made."""
    table = [EMOTION6_HEADER, *["\t".join(row.split()) for row in rows]]
    for seed, row in enumerate(rows):
        put(root / "images" / row.split()[0], seed)
    (root / "ground_truth.txt").write_text("\n".join(table) + "\n", encoding="utf-8")
    return root


ROWS: Mapping[str, Sequence[tuple[str, Mapping[str, object]]]] = {
    "train": [
        (
            "fear",
            {
                "brightness": 0.0,
                "colorfulness": 0.6,
                "scene": "ice_skating_rink/outdoor",
                "object": ["Tree", "Food & drink"],
            },
        ),
        ("awe", {"facial_expression": "happy", "human_action": "reading (a book) ", "object": []}),
        ("fear", {}),
    ],
    "val": [("awe", {"brightness": 1.0, "scene": None})],
    "test": [("fear", {}), ("amusement", {"brightness": 1})],
}
"""A small EmoSet."""

VOTES = [
    "anger/1.jpg 2.5 3.8 0.133333 0.7 0 0.0666667 0.1 0 0",
    "anger/2.jpg 2.5 3.8 0.4 0.4 0 0 0 0 0.2",
    "joy/1.jpg 8 4.5 0 0 0 0.3 0 0.3 0.4",
    "joy/2.jpg 8 4.5 0.2 0.2 0 0.1 0 0 0.5",
]
"""A small Emotion6."""


def complaint(path: Path, layout: str = "auto") -> str:
    """Why a data set is refused."""
    with pytest.raises(DataError) as caught:
        open_dataset(path, layout)
    return str(caught.value)
