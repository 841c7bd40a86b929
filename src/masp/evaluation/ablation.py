"""The five rows of Table 2: what the aspects and the soft prompt add, each alone and together."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from masp.core.atomic_io import write_file
from masp.core.config import PromptInit
from masp.core.errors import UsageError
from masp.data.bad_files import BadFiles, Rejected
from masp.data.records import Record
from masp.evaluation import metrics
from masp.evaluation.metrics import Interval, PairedComparison
from masp.evaluation.predict_split import Batching, labelled, visual_batches
from masp.model.masp_model import ActiveParts, MaspModel, init_soft_prompt
from masp.model.scoring import score
from masp.predictor import Masp

ROWS = {
    "V": "the backbone alone, zero-shot",
    "V+A": "with aspect tokens",
    "V+S": "with a soft prompt trained without aspects",
    "V+A+rS": "with aspect tokens and an untrained soft prompt",
    "V+A+S": "with aspect tokens and the soft prompt trained with them",
}
"""Short name and meaning of each row, in the order of the table."""

AGAINST = ("V", "V+S")
"""Rows that the others are compared with."""


@dataclass(frozen=True)
class AblationResult:
    """One row: accuracy with its 95 % interval, and the predicted label of every image."""

    name: str
    meaning: str
    accuracy: Interval
    macro_f1: float
    calibration_error: float
    predicted: tuple[str, ...]


@dataclass(frozen=True)
class AblationDifference:
    """`name` reads "A - B": how much more of the same images A gets right than B."""

    name: str
    paired: PairedComparison


@dataclass(frozen=True)
class Table2:
    """The table.

    Attributes:
        rows: in the order of `ROWS`.
        differences: each later row minus V and minus V+S.
        truth: the label of every image, in the order of the predictions.
        images: their files.
        majority: accuracy of always answering the most frequent label.
        random_seed: seed of the untrained soft prompt, and of the bootstrap.
        quarantined: images that could not be read.
    """

    rows: tuple[AblationResult, ...]
    differences: tuple[AblationDifference, ...]
    truth: tuple[str, ...]
    images: tuple[str, ...]
    majority: Interval
    random_seed: int
    quarantined: tuple[Rejected, ...]

    def row(self, name: str) -> AblationResult:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def summary(self) -> dict[str, Any]:
        """The figures without the single predictions, ready for JSON."""
        rows = [{key: value for key, value in asdict(row).items() if key != "predicted"} for row in self.rows]
        return {
            "rows": rows,
            "differences": [asdict(difference) for difference in self.differences],
            "majority": asdict(self.majority),
            "images": len(self.images),
            "random_seed": self.random_seed,
            "quarantined": [{"image": str(bad.path), "reason": bad.reason} for bad in self.quarantined],
        }


def table2(
    full: Masp, without_aspects: Masp, records: Sequence[Record], seed: int = 0, batching: Batching | None = None
) -> Table2:
    """Measures the five rows on the same images, whose visual tokens are computed once.

    Args:
        full: aspects, and the soft prompt trained with them.
        without_aspects: the soft prompt trained without aspects, on the same backbone object.
        records: labelled images.
        seed: of the untrained soft prompt and of the bootstrap.
        batching: how images are read.

    Raises:
        UsageError: the two do not belong together or lack a part, or a label that they do not know.
        DataError: no labels, or too many unreadable images.
    """
    _check_pair(full, without_aspects)
    models = _models(full, without_aspects, seed)
    batching = batching or Batching(longest_side=full.task.longest_side, rounding=full.task.rounding)
    known = labelled(records, full.labels)
    account = BadFiles(total=len(known))
    used: list[Record] = []
    shares: dict[str, list[list[float]]] = {name: [] for name in ROWS}
    for batch, visual in visual_batches(full.backbone, known, batching, account):
        used += batch
        for name, (model, use) in models.items():
            shares[name] += score(model, visual, full.task.question, full.labels, use).exp().tolist()
    truth = [record.label or "" for record in used]
    rows = tuple(_row(name, shares[name], truth, full.labels) for name in ROWS)
    images = tuple(str(record.path) for record in used)
    majority = metrics.majority_accuracy(truth)
    differences = _differences(rows, truth, seed)
    return Table2(rows, differences, tuple(truth), images, majority, seed, tuple(account.rejected))


def write_table(out: Path, table: Table2, provenance: dict[str, Any]) -> None:
    """Writes `table2.json` (figures and provenance) and `table2.jsonl` (every row's label for each image).

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    labels = zip(*(row.predicted for row in table.rows), strict=True)
    lines = [
        {"image": image, "truth": truth, **dict(zip(ROWS, said, strict=True))}
        for image, truth, said in zip(table.images, table.truth, labels, strict=True)
    ]
    write_file(out / "table2.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    summary = table.summary() | {"provenance": provenance}
    write_file(out / "table2.json", (json.dumps(summary, indent=2) + "\n").encode())


def _check_pair(full: Masp, without_aspects: Masp) -> None:
    problem = None
    if full.model.aspects is None or full.model.prompt is None:
        problem = "the first adapter lacks aspects or a soft prompt"
    elif without_aspects.model.prompt is None or without_aspects.task.use.aspects:
        problem = "the second adapter is not a soft prompt trained without aspects"
    elif without_aspects.backbone.fingerprint() != full.backbone.fingerprint():
        problem = "the two adapters belong to different backbones"
    elif without_aspects.backbone.hashes() != full.backbone.hashes():
        problem = "the two backbones have other processor settings, chat templates or tokenizers"
    elif (without_aspects.labels, without_aspects.task.question) != (full.labels, full.task.question):
        problem = "the two adapters choose from different labels or ask different questions"
    if problem:
        raise UsageError(problem, "V+A+S and V+S, trained on the same data set", "Train both on it.")


def _models(full: Masp, without_aspects: Masp, seed: int) -> dict[str, tuple[MaspModel, ActiveParts]]:
    """For each row the model and the parts of it that take part."""
    backbone, aspects, trained = full.backbone, full.model.aspects, full.model.prompt
    assert trained is not None
    untrained = init_soft_prompt(PromptInit(), trained.length, backbone, torch.Generator().manual_seed(seed))
    random = MaspModel(backbone, full.model.method, aspects, untrained, full.model.questions)
    names = full.task.use.aspects
    return {
        "V": (full.model, ActiveParts((), prompt=False)),
        "V+A": (full.model, ActiveParts(names, prompt=False)),
        "V+S": (without_aspects.model, ActiveParts(())),
        "V+A+rS": (random, ActiveParts(names)),
        "V+A+S": (full.model, ActiveParts(names)),
    }


def _row(name: str, shares: Sequence[Sequence[float]], truth: Sequence[str], labels: Sequence[str]) -> AblationResult:
    predicted = tuple(labels[max(range(len(row)), key=row.__getitem__)] for row in shares)
    right = [label == true for label, true in zip(predicted, truth, strict=True)]
    return AblationResult(
        name,
        ROWS[name],
        metrics.accuracy(truth, predicted),
        metrics.macro_f1(truth, predicted, labels),
        metrics.calibration_error([max(row) for row in shares], right),
        predicted,
    )


def _differences(rows: Sequence[AblationResult], truth: Sequence[str], seed: int) -> tuple[AblationDifference, ...]:
    found = []
    for base in AGAINST:
        start = list(ROWS).index(base)
        found += [
            AblationDifference(
                f"{row.name} - {base}", metrics.compare(truth, rows[start].predicted, row.predicted, seed)
            )
            for row in rows[start + 1 :]
        ]
    return tuple(found)
