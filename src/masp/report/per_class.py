"""A system label by label: confusion, the figures of each label, and the distance from the votes of people."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from masp.evaluation.metrics import ClassFigures
from masp.evaluation.result import Distribution
from masp.report import leaderboard as standings
from masp.report.formatting import share
from masp.report.load_results import Comparison, SystemResults
from masp.report.study import Cell

DISTANCES = ("KL, nats", "JS, nats", "same first choice, %")


@dataclass(frozen=True)
class ConfusionRow:
    """A true label: how its images were called, and its own figures; `total` counts answers, of all seeds."""

    name: str
    total: int
    images: int
    cells: tuple[Cell, ...]
    figures: ClassFigures


@dataclass(frozen=True)
class ConfusionView:
    """The confusion of one system."""

    name: str
    words: str
    answers: int
    columns: tuple[str, ...]
    rows: tuple[ConfusionRow, ...]
    open: bool


@dataclass(frozen=True)
class ClassView:
    """A label: its images, and its F1 for every system."""

    name: str
    images: int
    f1: tuple[float, ...]


@dataclass(frozen=True)
class DistributionView:
    """How far one system is from the votes of people, in the order of `DISTANCES`."""

    name: str
    distances: tuple[str, ...]
    images: int


def _counts(system: SystemResults) -> list[list[int]]:
    """Confusion over all seeds, in the order of the first one's labels."""
    labels = system.runs[0].labels
    table = [[0] * (len(labels) + 1) for _ in labels]
    for run in system.runs:
        order = [run.labels.index(label) for label in labels]
        for row, source in enumerate(order):
            for column, place in enumerate([*order, len(labels)]):
                table[row][column] += run.confusion[source][place]
    return table


def _figures(label: str, table: Sequence[Sequence[int]], place: int) -> ClassFigures:
    """Precision, recall and F1 of a label from counts."""
    hits, support, called = table[place][place], sum(table[place]), sum(row[place] for row in table)
    precision, recall = hits / called if called else 0.0, hits / support if support else 0.0
    return ClassFigures(label, precision, recall, 2 * hits / (support + called) if support + called else 0.0, support)


def confusion(trial: Comparison, system: SystemResults) -> ConfusionView:
    """The confusion of a system over all its seeds; the best system's is open."""
    table, labels = _counts(system), system.runs[0].labels
    columns = (*labels, "none of them") if any(row[-1] for row in table) else labels
    rows = []
    for place, (label, row) in enumerate(zip(labels, table, strict=True)):
        total = sum(row)
        cells = tuple(Cell(n, n / max(total, 1), i == place) for i, n in enumerate(row[: len(columns)]))
        rows.append(ConfusionRow(label, total, total // len(system.runs), cells, _figures(label, table, place)))
    words = f"{share(standings.accuracy(system))} % right"
    answers = sum(map(sum, table))
    return ConfusionView(system.name, words, answers, columns, tuple(rows), system is standings.best(trial))


def classes(trial: Comparison) -> tuple[ClassView, ...]:
    """Every label with its F1 for each system."""
    tables = [(system.runs[0].labels, _counts(system)) for system in trial.systems]
    found = []
    for label in trial.labels:
        figures = [_figures(label, table, labels.index(label)) for labels, table in tables]
        images = max(one.support // len(s.runs) for one, s in zip(figures, trial.systems, strict=True))
        found.append(ClassView(label, images, tuple(one.f1 for one in figures)))
    return tuple(found)


def distributions(trial: Comparison) -> tuple[DistributionView, ...]:
    """The systems whose every seed was held against votes, with the means of their seeds."""
    found = []
    for system in trial.systems:
        known = [run.distribution for run in system.runs if run.distribution]
        if len(known) == len(system.runs):
            found.append(DistributionView(system.name, _distances(known), known[0].images))
    return tuple(found)


def _distances(known: Sequence[Distribution]) -> tuple[str, ...]:
    kl, js = (statistics.fmean(values) for values in zip(*((one.kl.value, one.js.value) for one in known), strict=True))
    return f"{kl:.3f}", f"{js:.3f}", share(statistics.fmean(one.agreement.value for one in known))
