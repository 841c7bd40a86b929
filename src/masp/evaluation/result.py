"""The result of one evaluation: every figure and what it depended on, as one JSON file beside the predictions.

`docs/reference/results.md` describes every field. Nothing here knows of models or loads one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from masp.core.atomic_io import digest, write_file
from masp.core.errors import DataError
from masp.data.records import read_json
from masp.evaluation.metrics import ClassFigures, Interval
from masp.evaluation.predictions import PREDICTIONS, LabelledPrediction, content_of, read_predictions, write_predictions

SUMMARY = "summary.json"
"""The result in its folder."""

FORMAT = 1

HASH = "predictions_sha256"
"""What a summary calls the hash of the predictions that it was made from; the first results had none."""

Mode = Literal["score", "generate"]


@dataclass(frozen=True)
class SkippedImage:
    """An image of the split that could not be read; `image` is the file, as seen from the data set's folder."""

    image: str
    reason: str


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence, for a reliability diagram.

    Attributes:
        low: lowest confidence of the bin; the highest is that of the next one.
        images: answers in it; an empty bin is listed, with 0 for both means.
        confidence: their mean confidence.
        accuracy: share of them that is right.
    """

    low: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationFloor:
    """The expected calibration error of a perfectly calibrated system that is as sure of as many images.

    Such a system is right as often as it says, but only in the long run. On a number of images chance alone leaves a
    gap in every bin, and the error adds their sizes up; so it is never 0, and the fewer images the larger it is.

    Attributes:
        value: mean over simulated draws, a share.
        deviation: standard deviation over them.
    """

    value: float
    deviation: float

    def percent(self) -> str:
        """Text such as `3.1 ± 0.7 %`."""
        return f"{100 * self.value:.1f} ± {100 * self.deviation:.1f} %"


@dataclass(frozen=True)
class RiskCoverage:
    """What is gained by answering only where the system is sure.

    Attributes:
        area: mean risk over all coverages (0 is best), with its bootstrap interval.
        coverage: shares of the images that are answered, the most confident first.
        risk: at each coverage, the share of those answers that is wrong.
    """

    area: Interval
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


@dataclass(frozen=True)
class Calibrated:
    """The same answers after temperature scaling: log-probabilities divided by one number, normalised again.

    Attributes:
        temperature: above 1 makes the system less sure.
        temperature_interval: what the images it was fitted on leave open; None at the end of the range, and in results
            of versions that did not know it.
        split: what it was fitted on, by least negative log-likelihood.
        images: of that split.
        at_limit: whether the fit ended at the end of the range that was searched.
        negative_log_likelihood: of this split after scaling, with bootstrap intervals, as the next two.
        brier: see `Chances`.
        calibration_error: see `Chances`.
        calibration_floor: see `Chances`; of the confidences after scaling.
        reliability: see `Chances`.
    """

    temperature: float
    temperature_interval: Interval | None = field(default=None, kw_only=True)
    split: str
    images: int
    at_limit: bool
    negative_log_likelihood: Interval
    brier: Interval
    calibration_error: Interval
    calibration_floor: CalibrationFloor | None = field(default=None, kw_only=True)
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class ExactMatch:
    """The paper's measure of generated text, beside `Evaluation.accuracy`, which forgives case and punctuation.

    Attributes:
        accuracy: share of images whose text is the true label, character for character but for blanks at its ends;
            of lettered options, the letter alone. With Wilson's interval.
        unparsed: texts that are no answer in this sense; they count as wrong.
    """

    accuracy: Interval
    unparsed: int


@dataclass(frozen=True)
class ProbabilisticMetrics:
    """Figures of the log-probabilities. Here an answer is the most probable label, its confidence that probability.

    Attributes:
        images: that have log-probabilities.
        top2: share whose true label is among the two most probable; None for fewer than three labels.
        negative_log_likelihood: mean of -log p(true label), in nats.
        brier: mean squared distance between the probabilities and the truth, 0 to 2.
        calibration_error: expected calibration error, 15 bins of equal width.
        calibration_floor: what of it chance alone would show; None in results of versions that did not know it.
        reliability: those bins.
        risk_coverage: answering only where the system is sure.
        calibrated: after temperature scaling; None where none was fitted.
    """

    images: int
    top2: Interval | None
    negative_log_likelihood: Interval
    brier: Interval
    calibration_error: Interval
    calibration_floor: CalibrationFloor | None = field(default=None, kw_only=True)
    reliability: tuple[Bin, ...]
    risk_coverage: RiskCoverage
    calibrated: Calibrated | None = None


@dataclass(frozen=True)
class Distribution:
    """How near the probabilities come to the votes of people, where the data set has votes.

    Votes for labels outside the set do not count; the others are scaled to sum to 1.

    Attributes:
        images: that have votes for a label of the set, and log-probabilities.
        kl: mean Kullback-Leibler divergence of the probabilities from the votes, in nats.
        js: mean Jensen-Shannon divergence, in nats, 0 to log 2.
        agreement: share whose most probable label has most votes.
    """

    images: int
    kl: Interval
    js: Interval
    agreement: Interval


@dataclass(frozen=True)
class Evaluation:
    """Figures of one system on one split. Intervals hold 95 %; they are the bootstrap's where nothing else is said.

    Attributes:
        system: its name.
        dataset: name of the data set.
        split: name of the split.
        mode: `score`: the most probable label counts; `generate`: the label that the text names.
        labels: what there was to choose from, in the order of the question.
        accuracy: with Wilson's interval.
        accuracy_bootstrap: the same, with the bootstrap's.
        macro_f1: mean F1 over the labels that occur.
        exact: the paper's measure of generated text; None where not every answer is one.
        majority: accuracy of always answering the most frequent label of this split, with Wilson's interval.
        classes: figures of each label.
        confusion: a row for each true label; the last column counts answers that name no label.
        chances: figures of the log-probabilities; None where there are none.
        distribution: distance from the votes of people; None where there are none.
        used: images that were measured.
        quarantined: images that could not be read and were not measured.
        unlabelled: images of the split that have no label and were not measured.
        unparsed: answers that name no label, which count as wrong.
        unanswered: of these, images that a predictions file does not name.
        answers: what was said about each image, in the order of the split; in a file of its own.
        provenance: everything the figures depended on.
        format: version of the format.
    """

    system: str
    dataset: str
    split: str
    mode: Mode
    labels: tuple[str, ...]
    accuracy: Interval
    accuracy_bootstrap: Interval
    macro_f1: Interval
    majority: Interval
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    chances: ProbabilisticMetrics | None
    distribution: Distribution | None
    used: int
    quarantined: tuple[SkippedImage, ...]
    unlabelled: int
    unparsed: int
    unanswered: int
    answers: tuple[LabelledPrediction, ...]
    provenance: Mapping[str, Any]
    format: int = FORMAT
    exact: ExactMatch | None = None

    def summary(self) -> dict[str, Any]:
        """Everything but the single answers, of which there is the hash of their file; ready for JSON."""
        content = asdict(replace(self, answers=()))
        del content["answers"]
        return {"format": content.pop("format"), **content, HASH: hashlib.sha256(content_of(self.answers)).hexdigest()}


def write_result(out: Path, found: Evaluation) -> None:
    """Writes `predictions.jsonl` (one answer per line), then `summary.json` (figures and provenance).

    A process that dies in between leaves new predictions beside an old summary. The summary holds their hash, so that
    `read_result` knows.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / PREDICTIONS, found.answers)
    write_file(out / SUMMARY, (json.dumps(found.summary(), indent=2, allow_nan=False) + "\n").encode())


def read_result(place: Path) -> Evaluation:
    """What `write_result` wrote, equal to what was measured.

    Args:
        place: the folder, or the `summary.json` in it. Without predictions beside it there are no `answers`.

    Raises:
        DataError: there is no result, it is damaged or of another format, or its predictions do not belong to it.
    """
    from pydantic import TypeAdapter, ValidationError

    file = place / SUMMARY if place.is_dir() else place
    content = read_json(file, largest=None)
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != FORMAT or isinstance(found, bool):
        newer = isinstance(found, int) and found > FORMAT
        todo = "Install a newer masp." if newer else "Name what `masp evaluate --out DIR` wrote."
        raise DataError(f"{file} has the format {found!r:.40}", f"{FORMAT}, the result of an evaluation", todo)
    beside = file.with_name(PREDICTIONS)
    answers = _answers_beside(file, content.get(HASH))
    try:
        result = TypeAdapter(Evaluation).validate_python({**content, "answers": answers})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file}: {where}: {first['msg']}", "a result", "Measure it again.") from None
    if answers and len(answers) != result.used:
        todo = "Measure it again."
        raise DataError(f"{beside} holds {len(answers)} answers", f"{result.used}, as {file.name} says", todo)
    return result


def _answers_beside(file: Path, known: object) -> tuple[LabelledPrediction, ...]:
    """The predictions beside a summary; none where they are not there.

    Raises:
        DataError: they cannot be read, or are not those that the summary was made from.
    """
    beside = file.with_name(PREDICTIONS)
    if not beside.is_file():
        return ()
    answers = read_predictions(beside)
    if known is not None and digest(beside) != known:
        raise DataError(
            f"{beside} and {file.name} belong to two runs, or one of them was changed",
            "the predictions that the summary was made from",
            "Measure it again.",
        )
    return answers
