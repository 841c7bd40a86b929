"""One trial as its part of the page shows it: every number in place, every missing part said."""

from dataclasses import dataclass

from masp.report import calibration as certainty
from masp.report import drawings
from masp.report import error_analysis as mistakes
from masp.report import leaderboard as standings
from masp.report import per_class as labelwise
from masp.report.error_analysis import ErrorPageOptions
from masp.report.formatting import grouped
from masp.report.leaderboard import Column, Gain, LeaderboardRow, Pair
from masp.report.load_results import Comparison

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
