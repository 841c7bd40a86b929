"""How far a system's confidence can be trusted, and the system label by label."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from masp.evaluation.metrics import ClassFigures
from masp.evaluation.result import CalibrationFloor, Distribution
from masp.report import leaderboard as standings
from masp.report import plots as drawings
from masp.report.html import Cell
from masp.report.load_results import Comparison, CurvePlot, PooledBin, SystemResults, mean_curve, over_seeds, pooled
from masp.report.schema import grouped, share


@dataclass(frozen=True)
class ReliabilityView:
    """The reliability diagram of one system: drawn, in words, and its bins for the table."""

    name: str
    words: str
    caption: str
    drawing: str
    bins: tuple[PooledBin, ...]
    scaled: bool


@dataclass(frozen=True)
class CoverageView:
    """Risk over coverage of one system, and how its line looks."""

    name: str
    images: int
    curve: CurvePlot
    variable: str
    dashes: str


def gaps(systems: Sequence[SystemResults]) -> tuple[str, ...]:
    """What is not known of which system, in sentences."""
    found = []
    for system in systems:
        chances = [run.chances for run in system.runs if run.chances]
        if len(chances) < len(system.runs):
            found.append(
                f"{system.name}: no probabilities in this file, so there is no reliability diagram, no risk–coverage "
                "curve, and nobody knows which of its mistakes it was surest of."
            )
        elif not all(one.calibrated for one in chances):
            found.append(f"{system.name}: no temperature was fitted, so nothing is known of it after scaling.")
    return tuple(found)


def reliability(system: SystemResults) -> ReliabilityView:
    """The diagram of a system whose every seed has probabilities; the bins of all seeds together."""
    chances = [run.chances for run in system.runs if run.chances]
    bins = pooled([one.reliability for one in chances])
    fitted = [one.calibrated for one in chances if one.calibrated]
    scaled = pooled([one.reliability for one in fitted]) if len(fitted) == len(chances) else ()
    error = over_seeds([one.calibration_error for one in chances])
    assert error is not None
    images, seeds = sum(one.images for one in chances), len(chances)
    counted = f"{grouped(images)} images" if seeds == 1 else f"{grouped(images)} answers of {seeds} seeds"
    words = f"Expected calibration error {share(error.value)} %"
    floors = [_floor([one.calibration_floor for one in chances])]
    if scaled:
        after = sum(one.calibration_error.value for one in fitted) / len(fitted)
        factor = " · ".join(f"{one.temperature:.2f}" for one in fitted)
        words += f", after scaling with temperature {factor} (fitted on {fitted[0].split}) {share(after)} %"
        floors.append(_floor([one.calibration_floor for one in fitted]))
    if all(floors):
        count = chances[0].images
        each = f"{grouped(count)} image{'s' * (count != 1)}"
        words += f". A perfectly calibrated system with these confidences and {each} would show {floors[0]}"
        words += f", after scaling {floors[1]}" if scaled else ""
    drawing = drawings.reliability_diagram(bins, scaled)
    return ReliabilityView(system.name, f"{words}.", f"{counted}. {words}.", drawing, bins, bool(scaled))


def _floor(floors: Sequence[CalibrationFloor | None]) -> str:
    """The mean over the seeds of what chance alone would show of one seed; empty where a seed does not say it."""
    known = [one for one in floors if one is not None]
    if not known or len(known) < len(floors):
        return ""
    return CalibrationFloor(fmean(one.value for one in known), fmean(one.deviation for one in known)).percent()


def coverage(system: SystemResults) -> CoverageView:
    """The curve of a system whose every seed has probabilities: the mean of the seeds."""
    chances = [run.chances for run in system.runs if run.chances]
    curve = mean_curve([one.risk_coverage for one in chances])
    return CoverageView(system.name, chances[0].images, curve, *drawings.line_key(system.place))


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
