"""The steps of the demo as a person sees them go by, and what it measures: Table 2, aspects, explanations."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from masp.baselines.prompted import TABLE2, prompted, table2_systems
from masp.core.atomic_io import write_file
from masp.core.runtime import Bar
from masp.data.records import BadFiles, Record, Rejected
from masp.demo.pictures import Plan
from masp.evaluation import metrics
from masp.evaluation.explanation_metrics import (
    AspectQuality,
    BayesAccuracy,
    Explanations,
    aspect_quality,
    ceiling,
    measure_explanations,
)
from masp.evaluation.metrics import Interval
from masp.evaluation.predict_split import Batching, labelled, visual_batches
from masp.predictor import Masp
from masp.report.schema import Difference, Step, duration

AGAINST = ("V", "V+S")
"""Rows of Table 2 that the later ones are compared with."""

CONCEPTS = "concepts"
"""The row of a concept bottleneck, which is not in the paper."""

MEANINGS = TABLE2 | {CONCEPTS: "no prompt: the words that the aspects show, added up (concept bottleneck)"}


@dataclass(frozen=True)
class Table2Row:
    """One row: accuracy with its 95 % interval, and the predicted label of every image."""

    name: str
    meaning: str
    accuracy: Interval
    macro_f1: float
    calibration_error: float
    predicted: tuple[str, ...]


@dataclass(frozen=True)
class Table2:
    """The table.

    Attributes:
        rows: in the order of the paper; behind them a concept bottleneck, where there is one.
        differences: each later row minus V and minus V+S, named "A - B".
        truth: the label of every image, in the order of the predictions.
        images: their files.
        majority: accuracy of always answering the most frequent label.
        random_seed: seed of the untrained soft prompt, and of the bootstrap.
        quarantined: images that could not be read.
    """

    rows: tuple[Table2Row, ...]
    differences: tuple[Difference, ...]
    truth: tuple[str, ...]
    images: tuple[str, ...]
    majority: Interval
    random_seed: int
    quarantined: tuple[Rejected, ...]

    def row(self, name: str) -> Table2Row:
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
    full: Masp,
    without_aspects: Masp,
    records: Sequence[Record],
    seed: int = 0,
    batching: Batching | None = None,
    concepts: Masp | None = None,
) -> Table2:
    """Measures the five rows on the same images, whose visual tokens are computed once.

    Args:
        full: aspects, and the soft prompt trained with them.
        without_aspects: the soft prompt trained without aspects, on the same backbone object.
        records: labelled images.
        seed: of the untrained soft prompt and of the bootstrap.
        batching: how images are read.
        concepts: a concept bottleneck on the same aspects, for a row of its own.

    Raises:
        UsageError: the two do not belong together or lack a part, or a label that they do not know.
        DataError: no labels, or too many unreadable images.
    """
    systems = table2_systems(full, without_aspects, seed)
    systems |= {} if concepts is None else {CONCEPTS: prompted(concepts)}
    batching = batching or Batching(longest_side=full.task.longest_side, rounding=full.task.rounding)
    known = labelled(records, full.labels)
    account, used = BadFiles(total=len(known)), list[Record]()
    answers: dict[str, list[tuple[str, float]]] = {name: [] for name in systems}
    for batch, visual in visual_batches(full.backbone, known, batching, account):
        used += batch
        for name, system in systems.items():
            tables = [one.log_probabilities or {} for one in system.predict(visual)]
            answers[name] += [max(table.items(), key=lambda pair: pair[1]) for table in tables]
    truth = [record.label or "" for record in used]
    rows = tuple(_row(name, answers[name], truth, full.labels) for name in systems)
    differences = tuple(
        Difference(f"{row.name} - {base}", metrics.compare(truth, rows[start].predicted, row.predicted, seed))
        for base in AGAINST
        for start in [list(systems).index(base)]
        for row in rows[start + 1 :]
    )
    images, majority = tuple(str(record.path) for record in used), metrics.majority_accuracy(truth)
    return Table2(rows, differences, tuple(truth), images, majority, seed, tuple(account.rejected))


def _row(name: str, answers: Sequence[tuple[str, float]], truth: Sequence[str], labels: Sequence[str]) -> Table2Row:
    predicted = tuple(label for label, _ in answers)
    right = [label == true for label, true in zip(predicted, truth, strict=True)]
    error = metrics.calibration_error(np.exp([log_p for _, log_p in answers]).tolist(), right)
    figures = metrics.accuracy(truth, predicted), metrics.macro_f1(truth, predicted, labels), error
    return Table2Row(name, MEANINGS[name], *figures, predicted)


def write_table(out: Path, table: Table2, provenance: dict[str, Any]) -> None:
    """Writes `table2.json` (figures and provenance) and `table2.jsonl` (every row's label for each image).

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    labels, names = zip(*(row.predicted for row in table.rows), strict=True), [row.name for row in table.rows]
    lines = [
        {"image": image, "truth": truth, **dict(zip(names, said, strict=True))}
        for image, truth, said in zip(table.images, table.truth, labels, strict=True)
    ]
    write_file(out / "table2.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    summary = table.summary() | {"provenance": provenance}
    write_file(out / "table2.json", (json.dumps(summary, indent=2) + "\n").encode())


BEFORE = "done before"
"""Note of a step that this run did not do again."""


class Steps:
    """Counts, times and announces. What a step took is kept in a file, for a later run that need not do it again.

    Args:
        total: how many steps there will be.
        file: where the times are kept.
        console: where steps are announced; None for standard error.
    """

    def __init__(self, total: int, file: Path, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.total, self.file = total, file
        self.done: list[Step] = []
        self.before = _times(file)

    def ready(self, name: str) -> None:
        """Ticks off a step whose result is there already; it counts with the time it once took."""
        self.done.append(Step(name, self.before.get(name, 0.0), BEFORE))
        self._say(name, "", "there already")

    def left_out(self, name: str, why: str) -> None:
        """A step that cannot be done here; the demo goes on without it."""
        self.done.append(Step(name, 0.0, why))
        self._say(name, "", why)

    @contextmanager
    def step(self, name: str, note: str = "") -> Iterator[None]:
        """One step: announced before, ticked off with its time after. `note` says how much work it is."""
        number = f"{len(self.done) + 1}/{self.total}"
        if self.console.is_terminal:
            self.console.print(Text.assemble((f"  {number} ", "dim"), name, " … ", (note, "dim")), end="\r")
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.done.append(Step(name, seconds, note))
        self._keep(name, seconds)
        self._say(name, duration(seconds), note)

    def seconds(self) -> float:
        """What this run's own steps took."""
        return sum((step.seconds for step in self.done if step.note != BEFORE), start=0.0)

    def _say(self, name: str, time_taken: str, note: str) -> None:
        number = f"{len(self.done)}/{self.total} "
        line = Text.assemble(("✓ ", "green"), (number, "dim"), f"{name:<32}", f"{time_taken:>12}  ", (note, "dim"))
        self.console.print(line)

    def _keep(self, name: str, seconds: float) -> None:
        self.before = {**self.before, name: round(seconds, 2)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.file, (json.dumps(self.before, indent=2) + "\n").encode())


def _times(file: Path) -> dict[str, float]:
    """Seconds by step as an earlier run kept them; none where the file is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextmanager
def quiet() -> Iterator[None]:
    """Our own log without its details, which the steps tell already; a debugging log stays as it is."""
    log = logging.getLogger("masp")
    before = log.level
    if before != logging.DEBUG:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


@dataclass(frozen=True)
class DemoMeasurements:
    """The figures of the demo.

    Attributes:
        table: the five rows of Table 2.
        ceiling: the best that anyone could reach on the same images.
        quality: what stage 1 reads.
        read: images that `quality` was measured on.
        explanations: whether effects and heatmaps are true.
        explained: images that `explanations` was measured on.
        concepts: whether the effects of the concept bottleneck's words are true; None where there is none.
    """

    table: Table2
    ceiling: BayesAccuracy
    quality: tuple[AspectQuality, ...]
    read: int
    explanations: Explanations
    explained: int
    concepts: Explanations | None = None

    def summary(self) -> dict[str, Any]:
        """Figures without single predictions, ready for JSON."""
        return {
            "table2": self.table.summary(),
            "ceiling": asdict(self.ceiling),
            "aspects": {"pictures": self.read, "quality": [asdict(one) for one in self.quality]},
            "explanations": {"pictures": self.explained, **asdict(self.explanations)},
            "concepts": None if self.concepts is None else {"pictures": self.explained, **asdict(self.concepts)},
        }


def measure(
    full: Masp, plain: Masp, records: Sequence[Record], plan: Plan, steps: Steps, concepts: Masp | None = None
) -> DemoMeasurements:
    """Measures aspects with their prompt (`full`) and the prompt trained without aspects (`plain`) on test images.

    Args:
        full: V+A+S.
        plain: V+S.
        records: the test images.
        plan: how many of them.
        steps: where it is told.
        concepts: a concept bottleneck on the same aspects.

    Raises:
        DataError: a record carries no truth, or too many images cannot be read.
    """
    read, explained = records[: plan.read], records[: plan.explained]
    rows = len(TABLE2) + (concepts is not None)
    with steps.step("Table 2 measured", f"{rows} rows × {len(records):,} images"), Bar("Table 2", len(records)) as bar:
        table = table2(full, plain, records, plan.seed, Batching(progress=bar.advance), concepts)
    with steps.step("Aspects put into words", f"{len(read):,} images"), Bar("aspects", len(read)) as bar:
        quality = aspect_quality(full.model, read, full.task.questions, Batching(progress=bar.advance))
    with steps.step("Explanations checked", f"{len(explained):,} images"):
        explanations = _explanations(full, explained)
        worded = None if concepts is None else _explanations(concepts, explained)
    return DemoMeasurements(table, ceiling(records), quality, len(read), explanations, len(explained), worded)


def _explanations(masp: Masp, records: Sequence[Record]) -> Explanations:
    with Bar("explanations", len(records)) as bar:
        return measure_explanations(masp, records, Batching(progress=bar.advance))
