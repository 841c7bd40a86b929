"""What the photo backbone reads from photographs: each aspect by itself, and emotions, every image of a data set once.

Four systems on one backbone, in five folds. Settings that a system chooses, and its temperature, come from a part of
the training images of each fold, never from the fold itself; what learns is then fitted to all training images of the
fold.

    python benchmarks/photographs.py WORK --aspects ADAPTER --words ANNOTATED
    python benchmarks/photographs.py WORK --data Emotion6=DIR FI=DIR --votes Emotion6=DIR --aspects ADAPTER \\
        --words ANNOTATED
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split

from masp.adapters import library_versions, load_adapter, read_info
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.baselines.base import Example, System, TrainingData
from masp.baselines.concept_bottleneck import ConceptBottleneck, ConceptBottleneckSettings
from masp.baselines.learning import make_annotated_data, make_training_data
from masp.baselines.probe import Probe, ProbeSettings
from masp.baselines.prompted import zero_shot_system
from masp.core.aspects import ASPECTS
from masp.core.config import DataConfig
from masp.core.prompts import load_questions
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset
from masp.evaluation.explanation_metrics import aspect_quality
from masp.evaluation.metrics import (
    Interval,
    calibration_error,
    fit_temperature,
    macro_f1,
    majority_accuracy,
    scaled,
    share,
)
from masp.evaluation.predict_split import Batching
from masp.model.masp_model import MaspModel
from masp.training.stage1 import annotated_records

HOME = Path(__file__).parent
FOLDS, VALIDATION, BATCH = 5, 0.15, 32  # folds, share of a fold's training images, images at a time
SETTINGS = ConceptBottleneckSettings(  # as in scripts/photo/adapter.py
    residual=True,
    token_scale=0.3,
    refit=True,
    strengths=(1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2),
    absent=("facial_expression",),
)
ZERO, PROBE, WORDS, RESIDUAL = "V (zero-shot)", "probe", "concept bottleneck", "concept bottleneck with residual"


@dataclass(frozen=True)
class Figures:
    """One system on all images of a data set."""

    accuracy: dict[str, float]
    macro_f1: float
    calibration_error: float
    calibration_error_scaled: float
    auroc: float  # of the confidence, for right against wrong answers
    folds: list[float]  # accuracy of each


@dataclass
class Bench:
    """What all measurements share: the backbone, the aspects and, for systems that learn words, annotated images."""

    backbone: Backbone
    aspects: Path
    words: TrainingData | None = None  # needed by the systems, not by `aspects_alone`

    def model(self) -> MaspModel:
        """The aspects on the backbone, without a soft prompt."""
        adapter = load_adapter(self.aspects, self.backbone)
        return MaspModel(self.backbone, adapter.info.method, adapter.aspects, None, adapter.info.asked())

    def system(self, name: str, labels: tuple[str, ...]) -> System:
        """One that has not learned yet."""
        if name == ZERO:
            return zero_shot_system(self.backbone, labels)
        if name == PROBE:
            return Probe(self.backbone, labels)
        settings = replace(SETTINGS, residual=name == RESIDUAL)
        return ConceptBottleneck(self.model(), labels, None, settings, annotated=self.words)


def everything(backbone: Backbone, config: DataConfig, work: Path) -> tuple[TrainingData, tuple[str, ...], str]:
    """All labelled images of a data set as images to learn from, its labels and its fingerprint."""
    whole = open_dataset(config)
    data = replace(whole, splits={"train": tuple(one for records in whole.splits.values() for one in records)})
    return make_training_data(backbone, data, whole.labels, work), whole.labels, whole.fingerprint()


def logs_of(system: System, data: TrainingData, examples: Sequence[Example]) -> np.ndarray:
    """Log-probabilities of the labels for each example."""
    rows = []
    for start in range(0, len(examples), BATCH):
        visual = data.images.visual([one.image for one in examples[start : start + BATCH]])
        for one in system.predict(visual):
            assert one.log_probabilities is not None
            rows.append([one.log_probabilities[label] for label in system.labels])
    return np.array(rows)


def fit(bench: Bench, name: str, labels: tuple[str, ...], data: TrainingData, work: Path) -> tuple[System, float]:
    """A system fitted to train and val with what val chose, and the temperature that val gave before."""
    system = bench.system(name, labels)
    system.fit(replace(data, out=work))
    if isinstance(system, ConceptBottleneck):  # it has done both; the bench wants its answers undivided
        assert system.learned is not None
        return system, float(system.learned.state["labels"].pop("temperature"))
    assert isinstance(system, Probe)
    assert system.learned is not None
    targets = np.array([labels.index(one.label) for one in data.val])
    temperature = fit_temperature(logs_of(system, data, data.val), targets)
    again = Probe(bench.backbone, labels, ProbeSettings(without_val=system.learned.state["C"]))
    again.fit(replace(data, train=data.train + data.val, val=(), out=work / "again"))
    return again, temperature


def measured(bench: Bench, name: str, data: TrainingData, labels: tuple[str, ...], work: Path) -> Figures:
    """All folds of one system."""
    every = list(data.train)
    targets = np.array([labels.index(one.label) for one in every])
    logs, scaled_logs, accuracies = np.zeros((len(every), len(labels))), np.zeros((len(every), len(labels))), []
    cached = logs_of(bench.system(name, labels), data, every) if name == ZERO else None
    work = work / name
    for fold, (rest, test) in enumerate(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(every, targets)):
        train, val = train_test_split(rest, test_size=VALIDATION, stratify=targets[rest], random_state=fold)
        if cached is not None:
            logs[test], temperature = cached[test], fit_temperature(cached[val], targets[val])
        else:
            own = replace(data, train=tuple(every[i] for i in train), val=tuple(every[i] for i in val))
            learned, temperature = fit(bench, name, labels, own, work / f"fold{fold}")
            logs[test] = logs_of(learned, data, [every[index] for index in test])
        scaled_logs[test] = scaled(logs[test], temperature)
        accuracies.append(float((logs[test].argmax(1) == targets[test]).mean()))
        print(f"{name}, fold {fold}: {100 * accuracies[-1]:.1f} %", flush=True)
    best = logs.argmax(1)
    hits = best == targets
    raw, scaled_error = (calibration_error(np.exp(one.max(1)), hits) for one in (logs, scaled_logs))
    return Figures(
        asdict(share(int(hits.sum()), len(hits))),
        macro_f1([labels[index] for index in targets], [labels[index] for index in best], labels),
        raw,
        scaled_error,
        float(roc_auc_score(hits, scaled_logs.max(1))),
        accuracies,
    )


def cells(name: str, result: dict[str, Any]) -> list[list[str]]:
    """Rows of the table for people."""
    rows = []
    for system, one in result["systems"].items():
        accuracy = Interval(**one["accuracy"]).percent()
        figures = [f"{100 * one['macro_f1']:.1f} %", f"{one['calibration_error']:.3f}"]
        figures += [f"{one['calibration_error_scaled']:.3f}", f"{one['auroc']:.2f}"]
        rows.append([f"{name}, {result['images']:,} images, {result['labels']} labels", system, accuracy, *figures])
    return rows


def aspects_alone(bench: Bench, annotated: Dataset, most: int) -> dict[str, Any]:
    """What each aspect's tokens say by themselves on the split val, and what the backbone answers with no adapter.

    Args:
        bench: backbone and aspects.
        annotated: images with annotated aspects.
        most: images of each aspect at most, spread over the split.
    """
    records = annotated_records(annotated.split("val"), ASPECTS, most)
    result = aspect_quality(bench.model(), records, load_questions(), Batching(BATCH))
    rows = [[one.aspect, str(one.images), one.exact.percent(), one.backbone_exact.percent()] for one in result]
    return {
        "command": "python benchmarks/photographs.py WORK --aspects ADAPTER --words DIR",
        "title": "Photographs, what each aspect reads",
        "note": f"Up to {most} images of the split val for each aspect; answers are generated, and right where they "
        "are the annotation, apart from case and punctuation at the ends. The backbone sees all visual tokens and no "
        "adapter; it is asked the same open question without the list of words, so another name for the same thing "
        "counts as wrong.",
        "table": {"head": ["Aspect", "Images", "From its tokens", "The backbone by itself"], "rows": rows},
        "aspects": {one.aspect: asdict(one) for one in result},
    }


def write(out: Path, bench: Bench, annotated: Dataset, content: dict[str, Any]) -> None:
    """A result with what it was made with."""
    about = {
        "aspects_sha256": dict(read_info(bench.aspects).aspects_sha256),
        "annotated": annotated.fingerprint(),
        "machine": machine(dtype=bench.backbone.weight_dtype),
        "versions": library_versions(),
    }
    out.write_text(json.dumps(content | about, indent=1) + "\n")


def folds_content(result: dict[str, Any]) -> dict[str, Any]:
    """What the result file of the folds says."""
    return {
        "command": "python benchmarks/photographs.py WORK --data Emotion6=DIR FI=DIR --votes Emotion6=DIR "
        "--aspects ADAPTER --words DIR",
        "title": "Photographs, five folds over all images at hand",
        "note": "FI is a public sample of it. The label of Emotion6 is the folder, a search word, as in the paper; of "
        "its top vote the class with most votes. Calibration error before and after the temperature of each fold. "
        "Which features the residual reads, and token_scale, were chosen on these same images.",
        "table": {
            "head": ["Data", "System", "Accuracy", "Macro F1", "Calibration error", "scaled", "AUROC of confidence"],
            "rows": [row for name, one in result.items() for row in cells(name, one)],
        },
        "data": result,
    }


def main(args: argparse.Namespace) -> None:
    """Measure the systems on every data set that is named, or where none is, the aspects by themselves."""
    backbone, annotated = load_backbone("photo"), open_dataset(args.words)
    bench = Bench(backbone, args.aspects)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.data or args.votes):
        return write(args.out / "photo_aspects.json", bench, annotated, aspects_alone(bench, annotated, args.most))
    bench.words = make_annotated_data(backbone, annotated, args.work / "words")
    result: dict[str, Any] = {}
    folders, votes = (dict(one.split("=", 1) for one in named) for named in (args.data, args.votes))
    configs = {name: DataConfig(path=Path(folder)) for name, folder in folders.items()}
    for name, folder in votes.items():
        configs[f"{name}, top vote"] = DataConfig(path=Path(folder), label_from="majority")
    for title, config in configs.items():
        data, labels, fingerprint = everything(backbone, config, args.work / title)
        systems = {one: asdict(measured(bench, one, data, labels, args.work / title)) for one in args.systems}
        largest = majority_accuracy([one.label for one in data.train]).value
        about = {"images": len(data.train), "labels": len(labels), "fingerprint": fingerprint, "majority": largest}
        result[title] = about | {"systems": systems}
    return write(args.out / "photographs.json", bench, annotated, folds_content(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=DIR", help="default: the aspects by themselves")
    parser.add_argument("--votes", nargs="+", default=[], metavar="NAME=DIR", help="labels from the votes of Emotion6")
    parser.add_argument("--aspects", type=Path, required=True, help="aspects adapter")
    parser.add_argument("--words", type=Path, required=True, help="data set with annotated aspects")
    parser.add_argument("--systems", nargs="+", default=[PROBE, WORDS, RESIDUAL, ZERO])
    parser.add_argument("--most", type=int, default=300, help="validation images of each aspect")
    parser.add_argument("--out", type=Path, default=HOME / "results", help="folder of the result files")
    main(parser.parse_args())
