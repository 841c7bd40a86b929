"""Measuring one model on one labelled split: every image once, predictions and what they depended on in files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from masp.adapters import ResultRecord, library_versions, portable, tensors_sha256
from masp.answers import generate, score
from masp.data.quarantine import Quarantine, Rejected
from masp.data.records import Dataset, Record
from masp.evaluation import metrics
from masp.evaluation.batches import Batching, labelled
from masp.evaluation.metrics import ClassFigures, Interval
from masp.evaluation.processes import answered
from masp.labels import parse
from masp.predictor import Masp, longest_answer
from masp.storage import write_file
from masp.training.processes import launched
from masp.types import VisualTokens

Mode = Literal["score", "generate"]


@dataclass(frozen=True)
class Answered:
    """One image, its label and what the model said.

    Attributes:
        image: the file, as seen from the data set's folder.
        truth: its label.
        predicted: the most probable label, or the one that the generated text names; None if it names none.
        probabilities: of every label; None in mode `generate`.
        answer: the generated text; None in mode `score`.
    """

    image: str
    truth: str
    predicted: str | None
    probabilities: Mapping[str, float] | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one split.

    Attributes:
        dataset: name of the data set.
        split: name of the split.
        mode: how the answer was read.
        labels: what there was to choose from.
        accuracy: with its 95 % interval.
        macro_f1: mean F1 over the labels that occur.
        majority: accuracy of always answering the most frequent label of this split.
        calibration_error: expected calibration error; None in mode `generate`.
        negative_log_likelihood: mean over the images, in nats; None in mode `generate`.
        confusion: a row for each true label; the last column counts answers that name no label.
        classes: figures of each label.
        used: images that were measured.
        quarantined: images that could not be read, as seen from the data set's folder.
        unlabelled: images of the split that have no label and were not measured.
        unparsed: answers that name no label, which count as wrong.
        answers: what was said about each image, in the order of the split.
        provenance: everything the figures depended on.
    """

    dataset: str
    split: str
    mode: Mode
    labels: tuple[str, ...]
    accuracy: Interval
    macro_f1: float
    majority: Interval
    calibration_error: float | None
    negative_log_likelihood: float | None
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassFigures, ...]
    used: int
    quarantined: tuple[Rejected, ...]
    unlabelled: int
    unparsed: int
    answers: tuple[Answered, ...]
    provenance: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Everything but the single answers, ready for JSON."""
        content = asdict(self)
        del content["answers"]
        content["quarantined"] = [{"image": str(bad.path), "reason": bad.reason} for bad in self.quarantined]
        return content


def evaluate(
    masp: Masp,
    dataset: Dataset,
    split: str = "test",
    mode: Mode = "score",
    batching: Batching | None = None,
    out: Path | None = None,
) -> Evaluation:
    """Measures a model on a split; with `out`, writes `predictions.jsonl` and `summary.json` into that folder.

    Several processes, started by a launcher, share the images; each returns all figures, and the first one writes.

    Raises:
        DataError: no such split, no labels in it, or too many unreadable images.
        UsageError: a label that the model does not know.
        OSError: the results cannot be written.
    """
    batching = batching or Batching(longest_side=masp.task.longest_side)
    processes = launched(masp.backbone.device, masp.backbone.sharded)
    say = _scored if mode == "score" else _generated

    def answer(batch: list[Record], visual: VisualTokens) -> list[Answered]:
        return say(masp, [dataset.place(record.path) for record in batch], batch, visual)

    with processes.guarded():
        records = dataset.split(split)
        known = labelled(records, masp.labels)
        account = Quarantine(total=len(known))
        answers = answered(masp.backbone, known, batching, account, answer, processes)
        found = _figures(masp, dataset, split, mode, answers, account, len(records) - len(known), batching)
        if out is not None:
            processes.first(lambda: write_evaluation(out, found))
        return found


def write_evaluation(out: Path, found: Evaluation) -> None:
    """Writes `predictions.jsonl` (one answer per line) and `summary.json` (figures and provenance).

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(answer)) + "\n" for answer in found.answers)
    write_file(out / "predictions.jsonl", lines.encode())
    write_file(out / "summary.json", (json.dumps(found.summary(), indent=2) + "\n").encode())


def result_of(found: Evaluation) -> ResultRecord:
    """What an adapter records of an evaluation."""
    return ResultRecord(
        dataset=found.dataset,
        fingerprint=found.provenance["data"]["fingerprint"],
        split=found.split,
        mode=found.mode,
        images=found.used,
        accuracy=found.accuracy.value,
        low=found.accuracy.low,
        high=found.accuracy.high,
        macro_f1=found.macro_f1,
    )


def provenance(masp: Masp, dataset: Dataset | None = None, split: str | None = None) -> dict[str, Any]:
    """What a measurement depends on: versions, backbone, adapter, data, question. It names no place on this machine."""
    backbone, info = masp.backbone, masp.info
    data = None
    if dataset is not None:
        data = {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint(),
            "layout": dataset.layout,
            "split": split,
            "split_by": dataset.split_by,
        }
    return {
        "versions": library_versions(),
        "backbone": {
            "name": portable(backbone.name),
            "revision": backbone.revision,
            "family": backbone.family,
            "fingerprint": backbone.fingerprint(),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "device": str(backbone.device),
        },
        "adapter": {
            "name": portable(masp.adapter),
            "task": masp.task_name,
            "tensors_sha256": tensors_sha256(masp.model.state_dict()),
            "method": masp.model.method.model_dump(mode="json"),
            "aspects": list(masp.task.use.aspects),
            "seeds": dict(info.seeds) if info else {},
            "data": {stage: record.model_dump(mode="json") for stage, record in info.data.items()} if info else {},
        },
        "data": data,
        "question": masp.task.question,
        "longest_side": masp.task.longest_side,
        "threads": torch.get_num_threads(),
    }


def _scored(masp: Masp, images: Sequence[str], batch: Sequence[Record], visual: VisualTokens) -> list[Answered]:
    shares = score(masp.model, visual, masp.task.question, masp.labels, masp.task.use).exp().tolist()
    answers = []
    for image, record, row in zip(images, batch, shares, strict=True):
        predicted = masp.labels[max(range(len(row)), key=row.__getitem__)]
        table = dict(zip(masp.labels, row, strict=True))
        answers.append(Answered(image, record.label or "", predicted, table))
    return answers


def _generated(masp: Masp, images: Sequence[str], batch: Sequence[Record], visual: VisualTokens) -> list[Answered]:
    limit = longest_answer(masp.backbone, masp.labels)
    texts = generate(masp.model, visual, masp.task.question, masp.task.use, limit)
    return [
        Answered(image, record.label or "", parse(text, masp.labels), None, text)
        for image, record, text in zip(images, batch, texts, strict=True)
    ]


def _figures(
    masp: Masp,
    dataset: Dataset,
    split: str,
    mode: Mode,
    answers: Sequence[Answered],
    account: Quarantine,
    unlabelled: int,
    batching: Batching,
) -> Evaluation:
    truth, predicted = [a.truth for a in answers], [a.predicted for a in answers]
    tables = [a.probabilities for a in answers if a.probabilities is not None]
    sure = [max(table.values()) for table in tables]
    right = [a.truth == a.predicted for a in answers]
    return Evaluation(
        dataset=dataset.name,
        split=split,
        mode=mode,
        labels=masp.labels,
        accuracy=metrics.accuracy(truth, predicted),
        macro_f1=metrics.macro_f1(truth, predicted, masp.labels),
        majority=metrics.majority_accuracy(truth),
        calibration_error=metrics.calibration_error(sure, right) if tables else None,
        negative_log_likelihood=metrics.negative_log_likelihood(tables, truth) if tables else None,
        confusion=tuple(map(tuple, metrics.confusion(truth, predicted, masp.labels))),
        classes=tuple(metrics.per_class(truth, predicted, masp.labels)),
        used=account.used,
        quarantined=tuple(replace(bad, path=Path(dataset.place(bad.path))) for bad in account.rejected),
        unlabelled=unlabelled,
        unparsed=sum(label is None for label in predicted),
        answers=tuple(answers),
        provenance=provenance(masp, dataset, split) | {"batch_size": batching.batch_size},
    )
