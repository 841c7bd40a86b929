"""Results beside each other: two systems on the same images, and one system over several training seeds."""

from collections.abc import Callable, Mapping, Sequence

from masp.core.errors import DataError, UsageError
from masp.evaluation.metrics import PairedComparison, compare
from masp.evaluation.result import CalibrationFloor, Evaluation
from masp.evaluation.seed_stats import SeedStats, spread_of

Figure = Callable[[Evaluation], float | None]

FIGURES: Mapping[str, Figure] = {
    "accuracy": lambda one: one.accuracy.value,
    "macro_f1": lambda one: one.macro_f1.value,
    "top2": lambda one: one.chances.top2.value if one.chances and one.chances.top2 else None,
    "negative_log_likelihood": lambda one: one.chances.negative_log_likelihood.value if one.chances else None,
    "brier": lambda one: one.chances.brier.value if one.chances else None,
    "calibration_error": lambda one: one.chances.calibration_error.value if one.chances else None,
    "calibration_floor": lambda one: _value(one.chances.calibration_floor) if one.chances else None,
    "calibration_error_scaled": lambda one: (
        one.chances.calibrated.calibration_error.value if one.chances and one.chances.calibrated else None
    ),
    "calibration_floor_scaled": lambda one: (
        _value(one.chances.calibrated.calibration_floor) if one.chances and one.chances.calibrated else None
    ),
    "risk_coverage_area": lambda one: one.chances.risk_coverage.area.value if one.chances else None,
    "kl": lambda one: one.distribution.kl.value if one.distribution else None,
    "js": lambda one: one.distribution.js.value if one.distribution else None,
}
"""What results are compared by, where they have it."""


def compare_results(first: Evaluation, second: Evaluation) -> PairedComparison:
    """Accuracy of `second` minus that of `first`, image by image: bootstrap interval and McNemar's exact p.

    Raises:
        DataError: a result without its predictions, or two that are not of the same images with the same labels.
    """
    theirs = {answer.image: answer for answer in second.answers}
    pairs = [(answer, theirs[answer.image]) for answer in first.answers if answer.image in theirs]
    names = f"{first.system} and {second.system}"
    if not first.answers or not theirs:
        bare = second if first.answers else first
        raise DataError(f"the result of {bare.system} has no predictions beside it", "predictions.jsonl")
    if len(pairs) < max(len(first.answers), len(theirs)):
        got = f"the results of {names} share {len(pairs)} of {len(first.answers)} and {len(theirs)} images"
        raise DataError(got, "the same images", "Measure both on the same split of the same data set.")
    strange = next((one.image for one, other in pairs if one.truth != other.truth), None)
    if strange is not None:
        raise DataError(f"{strange} has different labels in the results of {names}", "the same data set")
    truth = [one.truth for one, _ in pairs]
    return compare(truth, [one.predicted for one, _ in pairs], [other.predicted for _, other in pairs])


def over_seeds(results: Sequence[Evaluation]) -> dict[str, SeedStats]:
    """Mean and standard deviation of every figure that all of the results have.

    Raises:
        UsageError: there are no results.
        DataError: they are not of the same images with the same labels.
    """
    if not results:
        raise UsageError("there are no results", "at least one")
    first, *others = results
    for other in others:
        if _measured_on(other) != _measured_on(first):
            got = f"results on {first.dataset}, split {first.split}, and on {other.dataset}, split {other.split}"
            raise DataError(got, "the same images and labels", "Measure all on the same split of the same data set.")
    found = {}
    for name, figure in FIGURES.items():
        values = [value for value in map(figure, results) if value is not None]
        if len(values) == len(results):
            found[name] = spread_of(values)
    return found


def _value(floor: CalibrationFloor | None) -> float | None:
    return None if floor is None else floor.value


def _measured_on(one: Evaluation) -> tuple[object, ...]:
    data = one.provenance.get("data") or {}
    return one.split, data.get("fingerprint"), frozenset(one.labels), one.used
