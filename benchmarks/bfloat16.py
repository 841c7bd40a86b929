"""What a backbone in bfloat16 costs in accuracy: stage 1 of the demo in both formats, and the scores of one adapter.

Stage 1 is trained with the demo's settings on the demo's images, once in each format and with each seed, and read in
the format that it was trained in. The shipped adapter scores the same images in both formats; where the backbone
computes in bfloat16, logits, losses and everything trained are float32.

    python benchmarks/bfloat16.py WORK_FOLDER --seeds 0 1 2 --aspects human_action

Aspects learn alone what they learn among six, as no module gets a gradient from another's pairs. A batch of one aspect
has a sixth of the demo's pairs, some more than the demo's batches hold of an aspect that not every image shows. A run
that is finished is not trained again, so a call that was stopped goes on where it was.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from machine import machine

from masp.adapters import library_versions, load_adapter
from masp.backbones.base import Backbone
from masp.backbones.loading import bfloat16_units, load_backbone
from masp.core.aspects import ASPECTS
from masp.core.prompts import load_questions
from masp.core.settings import AspectTraining
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import BadFiles, Dataset, Record
from masp.demo import pictures
from masp.demo.pictures import Plan, demo_config
from masp.evaluation.explanation_metrics import aspect_quality
from masp.evaluation.predict_split import Batching, visual_batches
from masp.model.explain import leave_one_out
from masp.model.masp_model import MaspModel
from masp.model.scoring import score
from masp.predictor import Masp
from masp.training.feature_cache import VisualMemory
from masp.training.stage1 import train_aspects

RESULT = Path(__file__).parent / "results" / "bfloat16.json"
FORMATS = ("float32", "bfloat16")


def stage1(
    run: Path, dataset: Dataset, backbone: Backbone, settings: AspectTraining, memory: VisualMemory
) -> dict[str, float]:
    """Share of exactly right answers per aspect after stage 1 on this backbone, on the split val."""
    config = demo_config()
    if not (run / "adapter" / "adapter.json").is_file():
        train_aspects(config.model_copy(update={"aspects": settings}), dataset, backbone, run, memory)
    found = load_adapter(run / "adapter", backbone)
    model = MaspModel(backbone, found.info.method, found.aspects)
    quality = aspect_quality(model, dataset.split("val"), load_questions(config.questions))
    return {one.aspect: one.exact.value for one in quality}


def scores(records: Sequence[Record], backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (images, labels) of the shipped adapter, and the effects of its aspects on the best label."""
    masp = Masp.from_pretrained(None, backbone, concepts=False)
    task, log_p, effects = masp.task, [], []
    for _, visual in visual_batches(backbone, records, Batching(), BadFiles(total=len(records))):
        own = score(masp.model, visual, task.question, task.labels, task.use)
        without = leave_one_out(masp.model, visual, task.question, task.labels, task.use, own)
        log_p.append(own)
        effects.append(without)
    return torch.cat(log_p), torch.cat(effects)


def compared(records: Sequence[Record], backbones: dict[str, Backbone]) -> dict[str, float]:
    """How far scores and effects in bfloat16 are from those in float32."""
    (exact, effects), (found, rough) = (scores(records, backbones[name]) for name in FORMATS)
    best = exact.argmax(1)
    rows = torch.arange(len(best))
    own, other = effects[rows, :, best], rough[rows, :, best]
    away = (exact - found).abs()
    return {
        "images": len(records),
        "mean_difference": float(away.mean()),
        "largest_difference": float(away.max()),
        "other_label": int((best != found.argmax(1)).sum()),
        "other_deciding_aspect": int((own.argmax(1) != other.argmax(1)).sum()),
        "effects": own.numel(),
        "effects_of_the_other_sign": int((own.sign() != other.sign()).sum()),
    }


def settings_of(seed: int, steps: int, aspects: Sequence[str]) -> AspectTraining:
    """The demo's, with as many pairs in a batch as these aspects have of its batches."""
    usual = demo_config().aspects
    size = round(usual.batch_size * len(aspects) / len(ASPECTS))
    changes = {"seed": seed, "max_steps": steps, "aspects": tuple(aspects), "batch_size": size}
    return usual.model_copy(update=changes)


def measure(work: Path, seeds: Sequence[int], steps: int, aspects: Sequence[str], images: int) -> dict[str, Any]:
    """Everything, ready for JSON."""
    plan = Plan()
    if not pictures.is_drawn(work / "data", plan):
        pictures.draw_dataset(work / "data", plan, lambda _: None)
    dataset = open_dataset(work / "data", layout="emoset")
    backbones = {name: load_backbone("embedded", dtype=name, device="cpu") for name in FORMATS}
    found: dict[str, list[dict[str, float]]] = {}
    for name, backbone in backbones.items():
        memory = VisualMemory()
        found[name] = [
            stage1(work / f"{name}-seed{seed}", dataset, backbone, settings_of(seed, steps, aspects), memory)
            for seed in seeds
        ]
    apart = compared(dataset.split("test")[:images], backbones)
    rows = [
        [aspect, *(_cell([one[aspect] for one in found[name]]) for name in FORMATS)] for aspect in found["float32"][0]
    ]
    return {
        "command": f"python benchmarks/bfloat16.py WORK_FOLDER --seeds {' '.join(map(str, seeds))} "
        f"--steps {steps} --aspects {' '.join(aspects)}",
        "title": "Stage 1 in float32 and in bfloat16",
        "note": f"The embedded backbone, settings and images of `masp demo`, {steps} steps; exactly right answers on "
        f"{len(dataset.split('val'))} images, mean and each seed, in %. Of the shipped adapter's log-probabilities "
        f"on {images} images, bfloat16 moves one by {apart['mean_difference']:.3f} on average and by "
        f"{apart['largest_difference']:.3f} at most; another aspect decides in {apart['other_deciding_aspect']}, and "
        f"{apart['effects_of_the_other_sign']} of {apart['effects']:,} effects have the other sign.",
        "table": {"head": ["aspect", *FORMATS], "rows": rows},
        "seeds": list(seeds),
        "aspects": found,
        "scores": apart,
        "machine": machine(threads=torch.get_num_threads(), bfloat16_units=bfloat16_units(torch.device("cpu"))),
        "versions": library_versions(),
    }


def _cell(values: Sequence[float]) -> str:
    return f"{100 * mean(values):.1f} ({' · '.join(f'{100 * value:.1f}' for value in values)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=demo_config().aspects.max_steps)
    parser.add_argument("--aspects", nargs="+", choices=ASPECTS, default=list(ASPECTS))
    parser.add_argument("--images", type=int, default=240, help="test images that the adapter scores")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    content = measure(args.work, args.seeds, args.steps, args.aspects, args.images)
    for row in (content["table"]["head"], *content["table"]["rows"]):
        print("  ".join(f"{cell:<32}" for cell in row))
    print(content["note"])
    args.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
