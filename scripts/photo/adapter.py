"""Write the adapter that ships for photographs: six aspects in bfloat16, and a concept bottleneck with residual for
each task, learned from all images at hand (15 % of them first choose the strength of its penalty and the temperature).

python scripts/photo/adapter.py WORK --aspects ADAPTER --words ANNOTATED --task emotion6=DIR eight=DIR polarity=DIR

The order of the tasks is that of the adapter; the first is in use where none is named.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.model_selection import train_test_split

from masp.adapters import combine, load_adapter, save_adapter
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.baselines.base import TrainingData
from masp.baselines.concept_bottleneck import ConceptBottleneck, ConceptBottleneckSettings
from masp.baselines.learning import make_annotated_data, make_training_data
from masp.data.readers.open_dataset import open_dataset
from masp.model.masp_model import MaspModel

VALIDATION = 0.15
SETTINGS = ConceptBottleneckSettings(  # as in benchmarks/photographs.py
    residual=True,
    token_scale=0.3,
    refit=True,
    strengths=(1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2),
    absent=("facial_expression",),
)
SOURCES = Path(__file__).with_name("adapter_card.md")


def rounded(backbone: Backbone, aspects: Path, out: Path) -> Path:
    """The aspects with every number as bfloat16 has it, so that what is learned on them fits what ships."""
    adapter = load_adapter(aspects, backbone)
    assert adapter.aspects is not None
    for one in adapter.aspects.parameters():
        one.data = one.data.bfloat16().float()
    save_adapter(out, adapter.info, adapter.aspects)
    return out


def learn(backbone: Backbone, aspects: Path, words: TrainingData, data: Path, work: Path) -> Path:
    """The adapter of one task, in a folder of its own below `work`."""
    adapter, whole = load_adapter(aspects, backbone), open_dataset(data)
    every = tuple(record for records in whole.splits.values() for record in records)
    read = make_training_data(backbone, replace(whole, splits={"train": every}), whole.labels, work)
    train, val = train_test_split(
        read.train, test_size=VALIDATION, stratify=[one.label for one in read.train], random_state=0
    )
    info = adapter.info.model_copy(update={"license": "apache-2.0"})
    model = MaspModel(backbone, info.method, adapter.aspects, None, info.asked())
    system = ConceptBottleneck(model, whole.labels, None, SETTINGS, info, words)
    system.fit(replace(read, train=tuple(train), val=tuple(val)))
    return work / "adapter"


def main(args: argparse.Namespace) -> None:
    """Learn every task, put them together, and write what ships."""
    backbone = load_backbone("photo")
    aspects = rounded(backbone, args.aspects, args.work / "aspects")
    words = make_annotated_data(backbone, open_dataset(args.words), args.work / "words")
    parts = []
    for task in args.task:
        name, _, data = task.partition("=")
        parts.append(f"{name}={learn(backbone, aspects, words, Path(data), args.work / name)}")
    combine(args.work / "all", parts)
    adapter = load_adapter(args.work / "all", backbone)
    save_adapter(args.out, adapter.info, adapter.aspects, aspects_dtype=torch.bfloat16, bottlenecks=adapter.bottlenecks)
    card = args.out / "README.md"
    card.write_text(card.read_text() + "\n" + SOURCES.read_text())
    print(f"{sum(file.stat().st_size for file in args.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--aspects", type=Path, required=True)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--task", nargs="+", required=True, metavar="NAME=DIR")
    home = Path(__file__).parents[2] / "src" / "masp" / "backbones" / "photo_adapter"
    parser.add_argument("--out", type=Path, default=home)
    main(parser.parse_args())
