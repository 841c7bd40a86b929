"""The page that compares systems: results in, one self-contained HTML page out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.core.errors import UsageError
from masp.report import calibration as certainty
from masp.report import calibration as labelwise
from masp.report import error_analysis as mistakes
from masp.report import leaderboard as standings
from masp.report import plots
from masp.report import plots as drawings
from masp.report.error_analysis import ErrorPageOptions
from masp.report.html import Headline, fill
from masp.report.leaderboard import Column, Gain, LeaderboardRow, Pair
from masp.report.load_results import Comparison, ResultSource, Rows, seed_of, trials
from masp.report.schema import Ablation, grouped, points, share

KEPT = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Shares of the images at which the table reads the risk."""


@dataclass(frozen=True)
class GainsView:
    """One way to ask what each aspect adds, drawn."""

    name: str
    meaning: str
    gains: tuple[Gain, ...]
    drawing: str


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
    gains: tuple[GainsView, ...]
    reliability: tuple[certainty.ReliabilityView, ...]
    gaps: tuple[str, ...]
    coverage: tuple[certainty.CoverageView, ...]
    coverage_drawing: str
    confusions: tuple[labelwise.ConfusionView, ...]
    classes: tuple[labelwise.ClassView, ...]
    distributions: tuple[labelwise.DistributionView, ...]
    mistakes: mistakes.MistakesView
    kept: tuple[float, ...] = KEPT
    distances: tuple[str, ...] = labelwise.DISTANCES

    def heading(self, chapter: str) -> str:
        """A chapter's name; where there are several trials, with the name of this one."""
        return f"{chapter}: {self.name}" if self.several else chapter


def view(number: int, trial: Comparison, asked: ErrorPageOptions, several: bool) -> TrialView:
    """A trial as the page shows it; `number` makes its anchors unique.

    Raises:
        UsageError: the reference that was asked for is not there.
    """
    base = standings.reference(trial, asked.against)
    columns, rows = standings.rows(trial)
    majority = max(run.majority.value for run in trial.runs)
    sure = [system for system in trial.systems if all(run.chances for run in system.runs)]
    curves = tuple(certainty.coverage(system) for system in sure)
    places = [system.place for system in sure]
    return TrialView(
        anchor=f"t{number}",
        name=f"{trial.dataset}, split {trial.split}",
        several=several,
        what=_what(trial),
        notes=standings.disagreements(trial),
        seeded=any(len(system.runs) > 1 for system in trial.systems),
        columns=columns,
        rows=rows,
        majority=majority,
        reference=base.name,
        pairs=standings.pairs(trial, base),
        accuracy_drawing=drawings.accuracy_dots([(s.name, standings.over_images(s)) for s in trial.systems], majority),
        gains=tuple(_gains(one) for one in standings.gains(trial)),
        reliability=tuple(certainty.reliability(system) for system in sure),
        gaps=certainty.gaps(trial.systems),
        coverage=curves,
        coverage_drawing=drawings.coverage_curves(list(zip(places, (one.curve for one in curves), strict=True))),
        confusions=tuple(labelwise.confusion(trial, system) for system in trial.systems),
        classes=labelwise.classes(trial),
        distributions=labelwise.distributions(trial),
        mistakes=mistakes.shown(number, trial, asked),
    )


def _what(trial: Comparison) -> str:
    """One sentence: how many images, and what there was to choose from."""
    counts = sorted({run.used for run in trial.runs})
    images = grouped(counts[0]) if len(counts) == 1 else f"{grouped(counts[0])} to {grouped(counts[-1])}"
    choice = ", ".join(trial.labels)
    systems = "One system" if len(trial.systems) == 1 else f"{len(trial.systems)} systems"
    return f"{systems} on {images} images of the split “{trial.split}” of {trial.dataset}, with the choice of {choice}."


def _gains(found: standings.Gains) -> GainsView:
    drawing = drawings.gain_bars([(gain.aspect, gain.points) for gain in found.gains])
    return GainsView(found.name, found.meaning, found.gains, drawing)


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
    found = trials(sources)
    views = [view(number, trial, asked, len(found) > 1) for number, trial in enumerate(found, start=1)]
    rows = [_ablation_view(number, table) for number, table in enumerate(tables, start=1)]
    names = ", ".join(dict.fromkeys(trial.dataset for trial in found))
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
    found = []
    for one in views[:4]:
        top = max(one.rows, key=lambda row: row.figures["accuracy"].value if row.figures["accuracy"] else 0.0)
        figure = top.figures["accuracy"]
        assert figure is not None
        where = f" on {one.name}" if len(views) > 1 else f", of {grouped(top.images)} images"
        found.append(Headline(f"{share(figure.value)} %", f"right: {top.name}{where}"))
        if len(views) > 1:
            continue
        pair = next((pair for pair in one.pairs if pair.name == top.name and pair.points), None)
        if pair is not None and pair.points is not None:
            low, high = points(pair.points.low), points(pair.points.high)
            found.append(
                Headline(points(pair.points.value), f"points against {one.reference}, 95 % interval {low} to {high}")
            )
        found.append(Headline(f"{share(one.majority)} %", "always the most frequent label"))
    return found


def _chapters(views: Sequence[TrialView], rows: Sequence[AblationView]) -> list[tuple[str, str]]:
    """Anchors and names of the sections that are there; of several trials only where each begins."""
    found: list[tuple[str, str]] = []
    for one in views:
        if len(views) > 1:
            found.append((f"{one.anchor}-systems", one.name))
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
        found += [(f"{one.anchor}-{anchor}", name) for anchor, name, present in every if present]
    found += [(one.anchor, one.title) for one in rows]
    return [*found, ("not", "What a label is not"), ("provenance", "How this was made")]


def _ablation_view(number: int, table: Rows) -> AblationView:
    what = f"{grouped(table.data.pictures)} test images, the same for every row. Intervals hold 95 %."
    drawing = plots.ablation_bars(table.data).decode()
    return AblationView(f"rows{number}", "What each part adds", what, table.data, drawing)


def _source(source: ResultSource) -> SourceView:
    found = source.found
    seed = seed_of(found)
    words = f"{found.system} on {found.dataset}, split {found.split}, {grouped(found.used)} images"
    words += f", seed {seed}" if seed is not None else ""
    return SourceView(_known_as(source.place), words, _facts(found.provenance))


def _table_source(table: Rows) -> SourceView:
    return SourceView(_known_as(table.place), f"a table of {len(table.data.rows)} rows", _facts(table.provenance))


def _known_as(place: str) -> str:
    """A place without what it says of this machine: the last two names of an absolute path."""
    path = Path(place)
    return "/".join(path.parts[-2:]) if path.is_absolute() and len(path.parts) > 3 else place


def _facts(content: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Provenance as rows: the names of nested tables joined by blanks, lists in one line."""
    found = list(_flat(content, ""))
    more = len(found) - MOST_FACTS
    return tuple(found[:MOST_FACTS]) + ((("…", f"{more} more facts in the file"),) if more > 0 else ())


def _flat(content: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{name} {key}".strip())
    elif isinstance(content, list | tuple):
        yield name, ", ".join(str(one) for one in content) or "none"
    elif content is not None:
        yield name, str(content)
