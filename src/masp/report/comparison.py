"""The page that compares systems: results in, one self-contained HTML page out.

First how far a system's confidence can be trusted, and the system label by label; then the page.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from masp.core.errors import UsageError
from masp.evaluation.metrics import ClassFigures
from masp.evaluation.result import CalibrationFloor, Distribution
from masp.report import error_analysis, leaderboard, plots
from masp.report.error_analysis import ErrorPageOptions
from masp.report.html import Cell, Headline, confusion_table, fill
from masp.report.leaderboard import Column, Gains, LeaderboardRow, Pair
from masp.report.load_results import (
    Comparison,
    CurvePlot,
    PooledBin,
    ResultSource,
    Rows,
    SystemResults,
    mean_curve,
    over_seeds,
    pooled,
    seed_of,
    trials,
)
from masp.report.schema import Ablation, grouped, points, share


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
    result = []
    for system in systems:
        chances = [run.chances for run in system.runs if run.chances]
        if len(chances) < len(system.runs):
            result.append(
                f"{system.name}: no probabilities in this file, so there is no reliability diagram, no risk–coverage "
                "curve, and nobody knows which of its mistakes it was surest of."
            )
        elif not all(one.calibrated for one in chances):
            result.append(f"{system.name}: no temperature was fitted, so nothing is known of it after scaling.")
    return tuple(result)


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
    drawing = plots.reliability_diagram(bins, scaled)
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
    return CoverageView(system.name, chances[0].images, curve, *plots.line_key(system.place))


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
            for column, column_index in enumerate([*order, len(labels)]):
                table[row][column] += run.confusion[source][column_index]
    return table


def _figures(label: str, table: Sequence[Sequence[int]], index: int) -> ClassFigures:
    """Precision, recall and F1 of a label from counts."""
    hits, support, called = table[index][index], sum(table[index]), sum(row[index] for row in table)
    precision, recall = hits / called if called else 0.0, hits / support if support else 0.0
    return ClassFigures(label, precision, recall, 2 * hits / (support + called) if support + called else 0.0, support)


def confusion(trial: Comparison, system: SystemResults) -> ConfusionView:
    """The confusion of a system over all its seeds; the best system's is open."""
    table, labels = _counts(system), system.runs[0].labels
    columns, shown = confusion_table(labels, table)
    rows = []
    for index, (label, cells) in enumerate(shown):
        total = sum(table[index])
        rows.append(ConfusionRow(label, total, total // len(system.runs), cells, _figures(label, table, index)))
    words = f"{share(leaderboard.accuracy(system))} % right"
    answers = sum(map(sum, table))
    return ConfusionView(system.name, words, answers, columns, tuple(rows), system is leaderboard.best(trial))


def classes(trial: Comparison) -> tuple[ClassView, ...]:
    """Every label with its F1 for each system."""
    tables = [(system.runs[0].labels, _counts(system)) for system in trial.systems]
    result = []
    for label in trial.labels:
        figures = [_figures(label, table, labels.index(label)) for labels, table in tables]
        images = max(one.support // len(s.runs) for one, s in zip(figures, trial.systems, strict=True))
        result.append(ClassView(label, images, tuple(one.f1 for one in figures)))
    return tuple(result)


def distributions(trial: Comparison) -> tuple[DistributionView, ...]:
    """The systems whose every seed was held against votes, with the means of their seeds."""
    result = []
    for system in trial.systems:
        known = [run.distribution for run in system.runs if run.distribution]
        if len(known) == len(system.runs):
            result.append(DistributionView(system.name, _distances(known), known[0].images))
    return tuple(result)


def _distances(known: Sequence[Distribution]) -> tuple[str, ...]:
    kl, js = (statistics.fmean(values) for values in zip(*((one.kl.value, one.js.value) for one in known), strict=True))
    return f"{kl:.3f}", f"{js:.3f}", share(statistics.fmean(one.agreement.value for one in known))


KEPT = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Shares of the images at which the table reads the risk."""


@dataclass(frozen=True)
class TrialView:
    """Everything that the page shows of one trial."""

    anchor: str
    name: str
    several: bool
    what: str
    notes: tuple[str, ...]
    seeded: bool
    columns: tuple[Column, ...]
    rows: tuple[LeaderboardRow, ...]
    majority: float
    reference: str
    pairs: tuple[Pair, ...]
    accuracy_drawing: str
    gains: tuple[tuple[Gains, str], ...]
    reliability: tuple[ReliabilityView, ...]
    gaps: tuple[str, ...]
    coverage: tuple[CoverageView, ...]
    coverage_drawing: str
    confusions: tuple[ConfusionView, ...]
    classes: tuple[ClassView, ...]
    distributions: tuple[DistributionView, ...]
    mistakes: error_analysis.MistakesView
    kept: tuple[float, ...] = KEPT
    distances: tuple[str, ...] = DISTANCES

    def heading(self, chapter: str) -> str:
        """A chapter's name; where there are several trials, with the name of this one."""
        return f"{chapter}: {self.name}" if self.several else chapter


def view(number: int, trial: Comparison, asked: ErrorPageOptions, several: bool) -> TrialView:
    """A trial as the page shows it; `number` makes its anchors unique.

    Raises:
        UsageError: the reference that was asked for is not there.
    """
    base = leaderboard.reference(trial, asked.against)
    columns, rows = leaderboard.rows(trial)
    majority = max(run.majority.value for run in trial.runs)
    sure = [system for system in trial.systems if all(run.chances for run in system.runs)]
    curves = tuple(coverage(system) for system in sure)
    indices = [system.place for system in sure]
    return TrialView(
        anchor=f"t{number}",
        name=f"{trial.dataset}, split {trial.split}",
        several=several,
        what=_what(trial),
        notes=leaderboard.disagreements(trial),
        seeded=any(len(system.runs) > 1 for system in trial.systems),
        columns=columns,
        rows=rows,
        majority=majority,
        reference=base.name,
        pairs=leaderboard.pairs(trial, base),
        accuracy_drawing=plots.accuracy_dots([(s.name, leaderboard.over_images(s)) for s in trial.systems], majority),
        gains=tuple((one, _gain_bars(one)) for one in leaderboard.gains(trial)),
        reliability=tuple(reliability(system) for system in sure),
        gaps=gaps(trial.systems),
        coverage=curves,
        coverage_drawing=plots.coverage_curves(list(zip(indices, (one.curve for one in curves), strict=True))),
        confusions=tuple(confusion(trial, system) for system in trial.systems),
        classes=classes(trial),
        distributions=distributions(trial),
        mistakes=error_analysis.shown(number, trial, asked),
    )


def _what(trial: Comparison) -> str:
    """One sentence: how many images, and what there was to choose from."""
    counts = sorted({run.used for run in trial.runs})
    images = grouped(counts[0]) if len(counts) == 1 else f"{grouped(counts[0])} to {grouped(counts[-1])}"
    choice = ", ".join(trial.labels)
    systems = "One system" if len(trial.systems) == 1 else f"{len(trial.systems)} systems"
    return f"{systems} on {images} images of the split “{trial.split}” of {trial.dataset}, with the choice of {choice}."


def _gain_bars(gains: Gains) -> str:
    return plots.gain_bars([(gain.aspect, gain.points) for gain in gains.gains])


MOST_FACTS = 120
"""Rows of what a result depended on; a file that says more is cut."""


@dataclass(frozen=True)
class AblationView:
    """A table of rows, drawn."""

    anchor: str
    title: str
    what: str
    data: Ablation
    drawing: str


@dataclass(frozen=True)
class SourceView:
    """A file that the page was made from, and what it depended on."""

    name: str
    words: str
    facts: tuple[tuple[str, str], ...]


def comparison(
    sources: Sequence[ResultSource], tables: Sequence[Rows], asked: ErrorPageOptions, title: str | None = None
) -> str:
    """The page as text.

    Args:
        sources: results of evaluations.
        tables: tables of rows, such as Table 2.
        asked: what is wanted of the page.
        title: its head; None: made from the data sets.

    Raises:
        UsageError: nothing to show, or a name among `asked` that no system has.
    """
    if not sources and not tables:
        raise UsageError("no result was named", "at least one", "Name what `masp evaluate --out DIR` wrote.")
    comparisons = trials(sources)
    views = [view(number, trial, asked, len(comparisons) > 1) for number, trial in enumerate(comparisons, start=1)]
    rows = [_ablation_view(number, table) for number, table in enumerate(tables, start=1)]
    names = ", ".join(dict.fromkeys(trial.dataset for trial in comparisons))
    return fill(
        "comparison.html.j2",
        title=title or (f"Emotions of images: {names}" if names else "What each part adds"),
        summary=" ".join(one.what for one in views) if len(views) == 1 else _summary(views),
        headlines=_headlines(views),
        chapters=_chapters(views, rows),
        trials=views,
        ablations=rows,
        sources=[_source(source) for source in sources] + [_table_source(table) for table in tables],
    )


def _summary(views: Sequence[TrialView]) -> str:
    names = "; ".join(one.name for one in views)
    return f"{len(views)} data sets or splits: {names}." if views else "One table of rows, without single results."


def _headlines(views: Sequence[TrialView]) -> list[Headline]:
    """The few numbers that a reader should take away: of one trial the best, the reference and their difference."""
    result = []
    for one in views[:4]:
        top = max(one.rows, key=lambda row: row.figures["accuracy"].value if row.figures["accuracy"] else 0.0)
        figure = top.figures["accuracy"]
        assert figure is not None
        where = f" on {one.name}" if len(views) > 1 else f", of {grouped(top.images)} images"
        result.append(Headline(f"{share(figure.value)} %", f"right: {top.name}{where}"))
        if len(views) > 1:
            continue
        pair = next((pair for pair in one.pairs if pair.name == top.name and pair.points), None)
        if pair is not None and pair.points is not None:
            low, high = points(pair.points.low), points(pair.points.high)
            result.append(
                Headline(points(pair.points.value), f"points against {one.reference}, 95 % interval {low} to {high}")
            )
        result.append(Headline(f"{share(one.majority)} %", "always the most frequent label"))
    return result


def _chapters(views: Sequence[TrialView], rows: Sequence[AblationView]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that are there; of several trials only where each begins."""
    chapters: list[tuple[str, str]] = []
    for one in views:
        if len(views) > 1:
            chapters.append((f"{one.anchor}-systems", one.name))
            continue
        every: Sequence[tuple[str, str, object]] = (
            ("systems", "All systems", True),
            ("aspects", "Aspects", one.gains),
            ("calibration", "Confidence", True),
            ("coverage", "Declining", one.coverage),
            ("labels", "Label by label", True),
            ("votes", "Votes of people", one.distributions),
            ("mistakes", "Worst mistakes", True),
        )
        chapters += [(f"{one.anchor}-{anchor}", name) for anchor, name, present in every if present]
    chapters += [(one.anchor, one.title) for one in rows]
    return [*chapters, ("not", "What a label is not"), ("provenance", "How this was made")]


def _ablation_view(number: int, table: Rows) -> AblationView:
    what = f"{grouped(table.data.images)} test images, the same for every row. Intervals hold 95 %."
    drawing = plots.ablation_bars(table.data).decode()
    return AblationView(f"rows{number}", "What each part adds", what, table.data, drawing)


def _source(source: ResultSource) -> SourceView:
    evaluation = source.found
    seed = seed_of(evaluation)
    words = f"{evaluation.system} on {evaluation.dataset}, split {evaluation.split}, {grouped(evaluation.used)} images"
    words += f", seed {seed}" if seed is not None else ""
    return SourceView(_known_as(source.place), words, _facts(evaluation.provenance))


def _table_source(table: Rows) -> SourceView:
    return SourceView(_known_as(table.place), f"a table of {len(table.data.rows)} rows", _facts(table.provenance))


def _known_as(place: str) -> str:
    """A place without what it says of this machine: the last two names of an absolute path."""
    path = Path(place)
    return "/".join(path.parts[-2:]) if path.is_absolute() and len(path.parts) > 3 else place


def _facts(content: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Provenance as rows: the names of nested tables joined by blanks, lists in one line."""
    result = list(_flat(content, ""))
    more = len(result) - MOST_FACTS
    return tuple(result[:MOST_FACTS]) + ((("…", f"{more} more facts in the file"),) if more > 0 else ())


def _flat(content: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{name} {key}".strip())
    elif isinstance(content, list | tuple):
        yield name, ", ".join(str(one) for one in content) or "none"
    elif content is not None:
        yield name, str(content)
