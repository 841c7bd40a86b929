"""Predictions of any other system, measured by the same protocol; no model is loaded."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from masp.core.atomic_io import digest
from masp.core.errors import DataError, UsageError, did_you_mean, shown
from masp.core.labels import parse, spelled
from masp.data.records import Dataset, Record
from masp.evaluation.compute_metrics import Calibration, ResultContext, measured, votes_of
from masp.evaluation.result import (
    CALIBRATION,
    LOWEST,
    Evaluation,
    LabelledPrediction,
    data_facts,
    json_lines,
    when,
    write_result,
)

_SLACK = 0.02  # probabilities that another system rounded
_EXACT = 1e-6
log = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True)
class ExternalLine:
    """One line of a file that may come from anywhere."""

    line: int  # its number
    image: str  # as the file names it
    predicted: str | None  # see `Answered`
    log_probabilities: Mapping[str, float] | None  # see `Answered`
    answer: str | None  # see `Answered`; beside a label that was read elsewhere it may be any text
    truth: str | None  # the label; None where the line does not name it
    from_text: bool  # whether `predicted` is what the answer names, and nothing else in the line decided it


def evaluate_predictions(
    file: Path,
    dataset: Dataset,
    split: str = "test",
    *,
    name: str | None = None,
    allow_missing: bool = False,
    calibrate: bool = False,
    out: Path | None = None,
) -> Evaluation:
    """Measures the predictions in a file on a split; with `out`, writes a result into that folder.

    Args:
        file: a JSON object per image; see `docs/reference/results.md`.
        dataset: has the split.
        split: name of the split.
        name: of the system in results; None: the file's name.
        allow_missing: an image without a prediction counts as an answer that names no label.
        calibrate: fit a temperature on the split val, where the file has log-probabilities for all of it.
        out: folder of the result.

    Raises:
        DataError: a file that cannot be used, or an image that it does not name.
        UsageError: the result would take the place of the predictions.
        OSError: the result cannot be written.
    """
    if out is not None and file.resolve().parent == out.resolve():
        raise UsageError(f"--out {out} is the folder of {file.name}", "another folder", "Name another --out.")
    records = [record for record in dataset.split(split) if record.label is not None]
    if not records:
        raise DataError(f"no image of the split '{split}' has a label", "labelled images", "Check the data set.")
    rows = _by_image(file, read_foreign(file, dataset.labels), dataset)
    _check_truth(file, rows, dataset)
    answers, missing = _answers(rows, records, dataset)
    if missing and not allow_missing:
        listed = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        todo = "Add them, or count them as wrong with --allow-missing."
        raise DataError(f"{file} does not name {len(missing)} of {len(records)} images ({listed})", "all", todo)
    # read as text where the text named every label, not where it only stands beside
    named = [rows[path] for record in records if (path := dataset.relative_path(record.path)) in rows]
    result = measured(
        ResultContext(
            system=name or file.stem,
            dataset=dataset.name,
            split=split,
            mode="generate" if named and all(row.from_text for row in named) else "score",
            labels=dataset.labels,
            provenance=_provenance(file, dataset, split),
            unlabelled=len(dataset.split(split)) - len(records),
            unanswered=len(missing),
        ),
        answers,
        votes_of(dataset, split),
        _calibration(rows, dataset) if calibrate and split != CALIBRATION else None,
    )
    if out is not None:
        write_result(out, result)
    return result


def _by_image(file: Path, rows: Sequence[ExternalLine], dataset: Dataset) -> dict[str, ExternalLine]:
    """The rows by the images of the data set that they are about.

    Raises:
        DataError: an image that the data set does not have, or one under two names.
    """
    known = {dataset.relative_path(record.path) for record in dataset.records}
    result: dict[str, ExternalLine] = {}
    for row in rows:
        path = _relative_path(row.image, dataset)
        if path not in known:
            raise _unknown(f"{file}, line {row.line}", row.image, known)
        if path in result:
            got = f"{file}, line {row.line}: {row.image} is the image of line {result[path].line}"
            raise DataError(got, "every image once")
        result[path] = row
    return result


def _unknown(where: str, image: str, known: set[str]) -> DataError:
    """The error for an image that the data set does not have."""
    name = PurePosixPath(image.replace("\\", "/")).name
    near = min((path for path in known if PurePosixPath(path).name == name), default=None)
    todo = f"Did you mean '{near}'?" if near else ""
    return DataError(f"{where}: the data set has no image {image}", f"files such as {min(known)}", todo)


def _relative_path(image: str, dataset: Dataset) -> str:
    """An image as the data set names it: "/" between folders, no "./" before it, seen from the data set's folder."""
    path = PurePosixPath(image.replace("\\", "/"))
    for root in (dataset.root, dataset.root.resolve()):
        if path.is_relative_to(root.as_posix()):
            return path.relative_to(root.as_posix()).as_posix()
    return path.as_posix()


def _check_truth(file: Path, rows: Mapping[str, ExternalLine], dataset: Dataset) -> None:
    """Makes sure that the file was made for these labels.

    Raises:
        DataError: it names another label as the true one.
    """
    labels = {dataset.relative_path(record.path): record.label for record in dataset.records}
    for path, row in rows.items():
        if row.truth is not None and row.truth != labels[path]:
            got = f"{file}, line {row.line}: the truth of {path} is {row.truth}"
            raise DataError(got, f"{labels[path]}, as the data set says", "Leave `truth` out, or check the data set.")


def _answers(
    rows: Mapping[str, ExternalLine], records: Sequence[Record], dataset: Dataset
) -> tuple[list[LabelledPrediction], list[str]]:
    """An answer for every record, and the images that have none."""
    answers, missing = [], []
    for record in records:
        path = dataset.relative_path(record.path)
        row = rows.get(path)
        if row is None:
            missing.append(path)
            answers.append(LabelledPrediction(path, record.label or "", None))
        else:
            exact = None if row.answer is None or not row.from_text else row.answer.strip() == row.predicted
            prediction = (row.predicted, row.log_probabilities, row.answer)
            answers.append(LabelledPrediction(path, record.label or "", *prediction, exact))
    return answers, missing


def _calibration(rows: Mapping[str, ExternalLine], dataset: Dataset) -> Calibration | None:
    """What the file says about the validation split; None where it does not say all of it."""
    records = [record for record in dataset.splits.get(CALIBRATION, ()) if record.label is not None]
    answers, missing = _answers(rows, records, dataset)
    if not answers or missing or any(row.log_probabilities is None for row in answers):
        log.info("no temperature is fitted: there are no log-probabilities for all of the split %s", CALIBRATION)
        return None
    return Calibration(CALIBRATION, tuple(answers))


def _provenance(file: Path, dataset: Dataset, split: str) -> dict[str, object]:
    from masp import __version__

    return {
        "predictions": {"name": file.name, "sha256": digest(file)},
        "data": data_facts(dataset, split),
        "labels": list(dataset.labels),
        "versions": {"masp": __version__},
        **when(0.0),
    }


def read_foreign(file: Path, labels: Sequence[str]) -> tuple[ExternalLine, ...]:
    """The predictions of any system, in the spelling of a label set.

    A line needs `image`, and one of `predicted`, `log_probabilities`, `probabilities` and `answer`. Where `predicted`
    is absent it is the most probable label, or the one that the answer names. A label may be written otherwise ("sad"
    for "sadness"). Probabilities may be rounded: within 2 % of 1 they are normalised.

    Raises:
        DataError: a line that cannot be used, an image that occurs twice, or a label outside the set.
    """
    rows: list[ExternalLine] = []
    seen: dict[str, int] = {}
    for number, content in json_lines(file):
        row = _foreign(f"{file}, line {number}", number, content, labels)
        if row.image in seen:
            raise DataError(
                f"{file}, line {number}: {row.image} was in line {seen[row.image]} already", "every image once"
            )
        seen[row.image] = number
        rows.append(row)
    if not rows:
        raise DataError(f"{file} holds no predictions", "a JSON object per line", "See docs/reference/results.md.")
    return tuple(rows)


def _foreign(where: str, number: int, content: dict[str, Any], labels: Sequence[str]) -> ExternalLine:
    image, answer = content.get("image"), content.get("answer")
    if not isinstance(image, str) or not image:
        raise DataError(f"{where}: the image is {shown(image)}", "its file, as seen from the data set's folder")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"{where}: the answer is {shown(answer)}", "text, or null")
    logs = _logs(content, where, labels)
    if "predicted" in content:
        predicted = _label(content["predicted"], "predicted", where, labels)
    elif logs is not None:
        predicted = max(logs, key=lambda label: logs[label])
    elif answer is not None:
        predicted = parse(answer, labels)
    else:
        expected = "one of predicted, log_probabilities, probabilities and answer"
        raise DataError(f"{where} says nothing about {image}", expected, "See docs/reference/results.md.")
    from_text = logs is None and answer is not None and predicted == parse(answer, labels)
    targets = _label(content.get("truth"), "truth", where, labels)
    return ExternalLine(number, image, predicted, logs, answer, targets, from_text)


def _label(name: object, key: str, where: str, labels: Sequence[str]) -> str | None:
    if name is None:
        return None
    result = spelled(name, labels) if isinstance(name, str) else None
    if result is None:
        todo = did_you_mean(name, labels) if isinstance(name, str) else ""
        raise DataError(f"{where}: {key} is {shown(name)}", f"one of {', '.join(labels)}, or null", todo)
    return result


def _logs(content: dict[str, Any], where: str, labels: Sequence[str]) -> dict[str, float] | None:
    """The log-probabilities of a line, whichever of the two keys it has, in the order of the labels."""
    given = {key: content[key] for key in ("log_probabilities", "probabilities") if content.get(key) is not None}
    if not given:
        return None
    if len(given) > 1:
        raise DataError(f"{where} has both log_probabilities and probabilities", "one of them")
    key, table = next(iter(given.items()))
    if not isinstance(table, dict):
        raise DataError(f"{where}: {key} is {shown(table)}", "a number for every label")
    logs: dict[str, float] = {}
    for name, value in table.items():
        label = _label(name, f"a label of {key}", where, labels)
        if label is None or label in logs:
            raise DataError(f"{where}: {key} names {shown(name)} twice", "every label once")
        logs[label] = _log(value, f"{where}: {key} of {label}", key == "probabilities")
    missing = [label for label in labels if label not in logs]
    if missing:
        raise DataError(f"{where}: {key} lacks {', '.join(missing)}", "a number for every label")
    total = sum(map(math.exp, logs.values()))
    if abs(total - 1) > _SLACK:
        raise DataError(f"{where}: the probabilities sum to {total:.3g}", "1", "Normalise them over the labels.")
    shift = math.log(total) if abs(total - 1) > _EXACT else 0.0
    return {label: max(LOWEST, logs[label] - shift) for label in labels}


def _log(value: object, what: str, plain: bool) -> float:
    """A number of the file as a logarithm; `plain` if it is none yet."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf if value > 0 else -math.inf
    if plain and 0 <= number <= 1 + _SLACK:
        return math.log(number) if number > 0 else LOWEST
    if not plain and number <= _SLACK:  # minus infinity too
        return max(LOWEST, number)
    expected = "a probability from 0 to 1" if plain else "a logarithm of a probability, 0 or less"
    raise DataError(f"{what} is {shown(value)}", expected)
