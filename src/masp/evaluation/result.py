"""The result of one evaluation: every figure, what was said about every image, and what both depended on, as files.

`docs/reference/results.md` describes every field. Nothing here knows of models or loads one.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from masp.core.atomic_io import digest, fingerprint, write_file
from masp.core.errors import DataError, shown
from masp.core.runtime import processor
from masp.data.records import Dataset, read_json
from masp.evaluation.metrics import ClassFigures, Interval

SUMMARY = "summary.json"
"""The result in its folder."""

PREDICTIONS = "predictions.jsonl"
"""Beside it: what was said about every image."""

CALIBRATION = "val"
"""The split that a temperature is fitted on."""

FORMAT = 1

HASH = "predictions_sha256"
"""What a summary calls the hash of the predictions that it was made from; the first results had none."""

LOWEST = -708.0
"""Log-probability, in nats, that stands for a probability of 0; JSON has no minus infinity."""

_LONGEST_LINE = 1_048_576

Mode = Literal["score", "generate"]


@dataclass(frozen=True)
class LabelledPrediction:
    """One image, its label and what a system said.

    Attributes:
        image: the file, as seen from the data set's folder.
        truth: its label.
        predicted: the most probable label, or the one that the generated text names; None if it names none.
        log_probabilities: of every label, in nats, normalised over the labels; None where the system gives none.
        answer: the generated text; None where there is none.
        exact: whether that text is the answer asked for, character for character; None where there is none, or it was
            written by a version that did not look.
    """

    image: str
    truth: str
    predicted: str | None
    log_probabilities: Mapping[str, float] | None = None
    answer: str | None = None
    exact: bool | None = None

    @property
    def counted(self) -> str | None:
        """The label that counts in the paper's measure: of generated text, an exact answer only."""
        return None if self.exact is False else self.predicted

    @property
    def probabilities(self) -> Mapping[str, float] | None:
        """Of every label; they sum to 1. None where the system gives none."""
        logs = self.log_probabilities
        return None if logs is None else {label: math.exp(value) for label, value in logs.items()}


@dataclass(frozen=True)
class SkippedImage:
    """An image of the split that could not be read; `image` is the file, as seen from the data set's folder."""

    image: str
    reason: str


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence, for a reliability diagram."""

    low: float  # lowest confidence of the bin; the highest is that of the next one
    images: int  # an empty bin is listed, with 0 for both means
    confidence: float  # mean
    accuracy: float  # share that is right


@dataclass(frozen=True)
class CalibrationFloor:
    """The expected calibration error of a perfectly calibrated system that is as sure of as many images.

    Such a system is right as often as it says, but only in the long run. On a number of images chance alone leaves a
    gap in every bin, and the error adds their sizes up; so it is never 0, and the fewer images the larger it is.
    """

    value: float  # mean over simulated draws, a share
    deviation: float  # standard deviation over them

    def percent(self) -> str:
        """Text such as `3.1 ± 0.7 %`."""
        return f"{100 * self.value:.1f} ± {100 * self.deviation:.1f} %"


@dataclass(frozen=True)
class RiskCoverage:
    """What is gained by answering only where the system is sure."""

    area: Interval  # mean risk over all coverages, 0 is best
    coverage: tuple[float, ...]  # shares of the images that are answered, the most confident first
    risk: tuple[float, ...]  # at each coverage, the share of those answers that is wrong


@dataclass(frozen=True)
class Calibrated:
    """The same answers after temperature scaling: log-probabilities divided by one number, normalised again."""

    temperature: float  # above 1 makes the system less sure
    # None at the end of the range, and in results of versions that did not know it
    temperature_interval: Interval | None = field(default=None, kw_only=True)
    split: str  # what it was fitted on, by least negative log-likelihood
    images: int  # of that split
    at_limit: bool  # the fit ended at the end of the range that was searched
    negative_log_likelihood: Interval  # these and the next as in `ProbabilisticMetrics`
    brier: Interval
    calibration_error: Interval
    calibration_floor: CalibrationFloor | None = field(default=None, kw_only=True)
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class ExactMatch:
    """The paper's measure of generated text, beside `Evaluation.accuracy`, which forgives case and punctuation.

    An answer is right where the text is the true label, character for character but for blanks at its ends; of lettered
    options, the letter alone.
    """

    accuracy: Interval  # Wilson's interval
    unparsed: int  # texts that are no answer in this sense; they count as wrong


@dataclass(frozen=True)
class ProbabilisticMetrics:
    """Figures of the log-probabilities. Here an answer is the most probable label, its confidence that probability."""

    images: int  # that have log-probabilities
    top2: Interval | None  # true label among the two most probable; None for fewer than three labels
    negative_log_likelihood: Interval  # mean of -log p(true label), in nats
    brier: Interval  # mean squared distance between the probabilities and the truth, 0 to 2
    calibration_error: Interval  # expected calibration error, 15 bins of equal width
    calibration_floor: CalibrationFloor | None = field(default=None, kw_only=True)  # None in older results
    reliability: tuple[Bin, ...]
    risk_coverage: RiskCoverage
    calibrated: Calibrated | None = None  # None where no temperature was fitted


@dataclass(frozen=True)
class Distribution:
    """How near the probabilities come to the votes of people, where the data set has votes.

    Votes for labels outside the set do not count; the others are scaled to sum to 1.
    """

    images: int  # that have votes for a label of the set, and log-probabilities
    kl: Interval  # mean Kullback-Leibler divergence of the probabilities from the votes, in nats
    js: Interval  # mean Jensen-Shannon divergence, in nats, 0 to log 2
    agreement: Interval  # share whose most probable label has most votes


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


def write_result(out: Path, evaluation: Evaluation) -> None:
    """Writes `predictions.jsonl` (one answer per line), then `summary.json` (figures and provenance).

    A process that dies in between leaves new predictions beside an old summary. The summary holds their hash, so that
    `read_result` knows.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / PREDICTIONS, evaluation.answers)
    write_file(out / SUMMARY, (json.dumps(evaluation.summary(), indent=2, allow_nan=False) + "\n").encode())


def read_result(path: Path) -> Evaluation:
    """What `write_result` wrote, equal to what was measured.

    Args:
        path: the folder, or the `summary.json` in it. Without predictions beside it there are no `answers`.

    Raises:
        DataError: there is no result, it is damaged or of another format, or its predictions do not belong to it.
    """
    from pydantic import TypeAdapter, ValidationError

    file = path / SUMMARY if path.is_dir() else path
    content = read_json(file, largest=None)
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or version != FORMAT or isinstance(version, bool):
        newer = isinstance(version, int) and version > FORMAT
        todo = "Install a newer masp." if newer else "Name what `masp evaluate --out DIR` wrote."
        raise DataError(f"{file} has the format {version!r:.40}", f"{FORMAT}, the result of an evaluation", todo)
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


def write_predictions(file: Path, answers: Iterable[LabelledPrediction]) -> None:
    """Writes a line for every answer, in their order: the same answers give the same bytes.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    write_file(file, content_of(answers))


def content_of(answers: Iterable[LabelledPrediction]) -> bytes:
    """All that `write_predictions` writes."""
    return "".join(line_of(answer) for answer in answers).encode()


def line_of(answer: LabelledPrediction) -> str:
    """An answer as a line of the file; a value that was not determined is left out."""
    content = asdict(answer)
    if answer.exact is None:
        del content["exact"]
    return json.dumps(content, allow_nan=False) + "\n"


def read_predictions(file: Path) -> tuple[LabelledPrediction, ...]:
    """What `write_predictions` wrote, value for value.

    Raises:
        DataError: the file cannot be read, or was written by something else (then `read_foreign` may read it).
    """
    answers = []
    for number, content in json_lines(file):
        known = content.keys() - {"exact"} == {"image", "truth", "predicted", "log_probabilities", "answer"}
        if not known or not isinstance(content["image"], str) or not isinstance(content["truth"], str):
            expected = "image and truth as text, beside predicted, log_probabilities and answer"
            raise DataError(f"{file}, line {number} holds {', '.join(content)}", expected, "Measure it again.")
        answers.append(LabelledPrediction(**content))
    return tuple(answers)


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every line that is not blank."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{file}, line {number} has over {_LONGEST_LINE:,} characters", "one image a line")
                if line.strip():
                    yield number, _object(line, f"{file}, line {number}")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "", "Check the path and the rights.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text in UTF-8", "JSON lines", "See docs/reference/results.md.") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON ({error})", "a JSON object per line", "See docs/reference/results.md."
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{where} is {shown(content)}", "a JSON object", "See docs/reference/results.md.")
    return content


def data_facts(dataset: Dataset, split: str | None) -> dict[str, Any]:
    """Which data, divided how."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "layout": dataset.layout,
        "split": split,
        "split_by": dataset.split_by,
    }


def machine_facts(accelerator: str | None) -> dict[str, Any]:
    """Processor, cores, accelerator and platform."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "accelerator": accelerator,
        "platform": platform.platform(),
    }


def when(seconds: float) -> dict[str, Any]:
    """Time of day, UTC, and the seconds that were spent on the images."""
    return {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 3)}


def dated(known: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """All that answers depend on as a result holds it: with its hash, the time, and the seconds that they took."""
    return {"run": run_of(known), **known, **when(seconds)}


def run_of(known: Mapping[str, Any]) -> str:
    """SHA-256 of all that answers depend on. What a backbone is called is not among it: its weights are."""
    backbone = {key: value for key, value in (known.get("backbone") or {}).items() if key != "name"}
    return fingerprint({**known, "backbone": backbone})
