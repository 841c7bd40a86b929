"""Does a concept bottleneck know why? Its largest effect on the label against the true cause, beside leave-one-out.

An adapter of the embedded default says which aspect decided by leaving each of them out, or by their exact Shapley
values. A bottleneck on the same aspects and the same soft prompt says it by adding up, for every aspect, what its words
add to the label. Only the made world knows which is right. All images are drawn for this file, so the shipped test
split takes no part.

    python benchmarks/cue_causes.py WORK_FOLDER --out benchmarks/results/cue_causes.json
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine

from masp.adapters import library_versions
from masp.baselines.base import Example, Item, TrainingData
from masp.baselines.concept_bottleneck import ConceptBottleneck
from masp.baselines.prompted import prompted
from masp.core.aspects import ASPECTS, level
from masp.core.types import VisualTokens
from masp.data.emoji.dataset import annotation, scenes
from masp.evaluation import metrics
from masp.model.explain import ATTRIBUTIONS, Attribution
from masp.predictor import Masp

SEED = 9  # of the images
TOGETHER = 64
NAMES: dict[str, Attribution] = {"each aspect left out": "leave_one_out", "Shapley values": "shapley"}


@dataclass(frozen=True)
class Pictures:
    """Images of one split as the backbone sees them, with their annotations."""

    visual: VisualTokens
    notes: list[dict[str, Any]]

    def lessons(self, first: int) -> tuple[Example, ...]:
        """What a system learns from them; their numbers begin at `first`."""
        return tuple(Example(first + at, note["emotion"], told(note)) for at, note in enumerate(self.notes))


class Held:
    """The visual tokens of several splits in memory, one behind the other; see `masp.baselines.base.Images`."""

    def __init__(self, parts: Sequence[Pictures]) -> None:
        self.tokens = VisualTokens.stack([part.visual for part in parts])

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """Some of them."""
        return self.tokens.select(images)

    def stream(
        self, items: Iterable[Item], images: Callable[[Item], Sequence[int]]
    ) -> Iterator[tuple[Item, VisualTokens | None]]:
        """One batch after the other."""
        return ((item, self.visual(images(item)) if images(item) else None) for item in items)


def told(note: dict[str, Any]) -> dict[str, str]:
    """The annotated cues of an image as a data set gives them to a system."""
    found = {}
    for aspect in ASPECTS:
        value = note.get(aspect)
        if isinstance(value, float):
            found[aspect] = level(value)
        elif value:
            found[aspect] = ", ".join(value) if isinstance(value, list) else str(value)
    return found


@torch.no_grad()
def draw(masp: Masp, split: str, count: int) -> Pictures:
    """Draw images and turn them into visual tokens."""
    backbone, parts, notes, batch = masp.backbone, [], [], []
    for number, made in enumerate(scenes(split, SEED, count)):
        notes.append(annotation(made, ""))
        batch.append(made.drawing.image)
        if len(batch) == TOGETHER or number == count - 1:
            parts.append(backbone.visual_tokens(backbone.preprocess(batch)))
            batch = []
    return Pictures(VisualTokens.stack(parts), notes)


def by_attribution(masp: Masp, visual: VisualTokens, attribution: Attribution) -> list[tuple[str, str]]:
    """What the adapter names for each image, and the aspect with the largest effect on that label."""
    task, said = masp.task, prompted(masp).predict(visual)
    names = masp.model.active_aspects(task.use)
    effects = ATTRIBUTIONS[attribution](masp.model, visual, task.question, task.labels, task.use)
    found = []
    for row, one in zip(effects, said, strict=True):
        assert one.predicted is not None
        column = row[:, task.labels.index(one.predicted)]
        found.append((one.predicted, names[int(column.argmax())]))
    return found


def by_adding_up(head: ConceptBottleneck, visual: VisualTokens) -> list[tuple[str, str]]:
    """What a concept bottleneck names for each image, and the aspect whose words add most to that label."""
    found = []
    for one, words in zip(head.predict(visual), head.concept_effects(visual), strict=True):
        assert one.predicted is not None
        added = dict.fromkeys(ASPECTS, 0.0)
        for word in words:
            added[word.aspect] += word.effects.get(one.predicted, 0.0)
        found.append((one.predicted, max(added, key=added.__getitem__)))
    return found


def judged(found: Sequence[tuple[str, str]], notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, and how often the aspect that is named is the true cause, among correct predictions."""
    named = list(zip(found, notes, strict=True))
    right = [(aspect, note["emoji"]["cause"]) for (label, aspect), note in named if label == note["emotion"]]
    share = metrics.share(sum(aspect == cause for aspect, cause in right), len(right))
    guess = max(Counter(cause for _, cause in right).values()) / len(right)
    accuracy = metrics.share(len(right), len(notes))
    return {"accuracy": accuracy.value, "cause": [share.value, share.low, share.high], "guess": guess}


def measure(masp: Masp, work: Path, sizes: tuple[int, int, int], out: Path) -> None:
    """Learn two bottlenecks, ask them and the adapter, write the result file."""
    started = time.perf_counter()
    train, val, test = (draw(masp, split, size) for split, size in zip(("train", "val", "test"), sizes, strict=True))
    images = Held([train, val])
    systems = {"words alone": None, "words and the soft prompt's scores": prompted(masp)}
    found = {}
    groups = [range(start, min(start + TOGETHER, sizes[2])) for start in range(0, sizes[2], TOGETHER)]
    batches = [test.visual.select(list(group)) for group in groups]
    for name, attribution in NAMES.items():
        found[f"MASP, {name}"] = [one for batch in batches for one in by_attribution(masp, batch, attribution)]
    for name, over in systems.items():
        head = ConceptBottleneck(masp.model, masp.labels, over)
        folder = work / name.replace(" ", "-")
        head.fit(TrainingData(images, train.lessons(0), val.lessons(sizes[0]), folder, 0, f"emoji {SEED} {sizes}"))
        found[f"concept bottleneck, {name}"] = [one for batch in batches for one in by_adding_up(head, batch)]
    figures = {name: judged(answers, test.notes) for name, answers in found.items()}
    write(out, sizes, figures, time.perf_counter() - started)


def write(out: Path, sizes: tuple[int, int, int], figures: dict[str, dict[str, Any]], took: float) -> None:
    """The result file, with a table for people."""
    rows = []
    for name, one in figures.items():
        share, low, high = (100 * value for value in one["cause"])
        rows.append([name, f"{100 * one['accuracy']:.1f}", f"{share:.1f} [{low:.1f}, {high:.1f}]"])
        rows[-1].append(f"{100 * one['guess']:.1f}")
    head = ["system", "accuracy, %", "true cause named, % of correct predictions", "always the commonest cause, %"]
    content = {
        "command": f"python benchmarks/cue_causes.py WORK_FOLDER --sizes {' '.join(map(str, sizes))}",
        "title": "Which cue decided: a concept bottleneck beside leaving aspects out, on the embedded default",
        "note": f"{sizes[2]:,} images, drawn for this; the heads learned from {sizes[0]:,} others.",
        "table": {"head": head, "rows": rows},
        "figures": figures,
        "machine": machine(threads=torch.get_num_threads()),
        "versions": library_versions(),
        "seconds": round(took),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", type=int, nargs=3, default=[5000, 500, 2000], help="train, val, test")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cue_causes.json")
    parser.add_argument("--adapter", help="instead of the shipped one")
    parser.add_argument("--backbone", help="that it was trained on")
    args = parser.parse_args()
    backbone = args.backbone or (None if args.adapter else "embedded")
    prompted_alone = Masp.from_pretrained(args.adapter, backbone, concepts=False, raw=True)
    measure(prompted_alone, args.work, tuple(args.sizes), args.out)
