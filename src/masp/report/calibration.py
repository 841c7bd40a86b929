"""How far a system's confidence can be trusted: reliability, and risk over coverage."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from masp.evaluation.result import CalibrationFloor
from masp.report import drawings
from masp.report.figures import CurvePlot, PooledBin, mean_curve, over_seeds, pooled
from masp.report.formatting import grouped, share
from masp.report.load_results import SystemResults


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
