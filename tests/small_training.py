"""A small data set of noise images in memory's reach, and settings that train on it in a second."""

from pathlib import Path

from masp.core.aspects import ASPECTS
from masp.core.config import RunConfig, load_config
from masp.data.records import Dataset, Record
from tiny import picture

LABELS = ("joy", "fear", "disgust")
ANSWERS = {"scene": ("beach", "city"), "object": ("cat, dog", "cup"), "brightness": ("low", "very high")}


def write_dataset(root: Path, train: int = 13, val: int = 5) -> Dataset:
    """Images of two sizes; every aspect is annotated on some of them."""
    root.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for number in range(train + val):
        path = root / f"{number:03}.png"
        if not path.exists():
            picture(84, 56 if number % 3 else 112, seed=number).save(path)
        kind = number % 2
        known = {name: ANSWERS.get(name, ("happy", "sad"))[kind] for name in ASPECTS if (number + len(name)) % 3}
        records.append(Record(path, LABELS[number % 3], known))
    splits = {"train": tuple(records[:train]), "val": tuple(records[train:])}
    return Dataset("noise", root, LABELS, splits, "folder")


def config(*changes: str) -> RunConfig:
    """Few steps, many checkpoints."""
    fixed = ["method.prompt_length=3", "data.workers=1", "data.path=unused"]
    for stage in ("aspects", "prompt"):
        fixed += [
            f"{stage}.{line}" for line in ("batch_size=5", "epochs=2", "checkpoint_every=2", "learning_rate=0.01")
        ]
    return load_config(None, [*fixed, *changes])
