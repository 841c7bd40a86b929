"""Measuring what any other system said, by the same protocol; no model is loaded."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from masp.core.atomic_io import digest
from masp.core.errors import DataError, UsageError
from masp.data.records import Dataset, Record
from masp.evaluation.compute_metrics import Calibration, ResultContext, measured, votes_of
from masp.evaluation.facts import data_facts, when
from masp.evaluation.predictions import ExternalLine, LabelledPrediction, read_foreign
from masp.evaluation.result import Evaluation, Mode, write_result

log = logging.getLogger(__name__)

CALIBRATION = "val"
_SHOWN = 5


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
    found = measured(
        ResultContext(
            system=name or file.stem,
            dataset=dataset.name,
            split=split,
            mode=_mode(rows, records, dataset),
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
        write_result(out, found)
    return found


def _by_image(file: Path, rows: Sequence[ExternalLine], dataset: Dataset) -> dict[str, ExternalLine]:
    """The rows by the images of the data set that they are about.

    Raises:
        DataError: an image that the data set does not have, or one under two names.
    """
    known = {dataset.place(record.path) for record in dataset.records}
    found: dict[str, ExternalLine] = {}
    for row in rows:
        place = _place(row.image, dataset)
        if place not in known:
            raise _unknown(f"{file}, line {row.line}", row.image, known)
        if place in found:
            got = f"{file}, line {row.line}: {row.image} is the image of line {found[place].line}"
            raise DataError(got, "every image once")
        found[place] = row
    return found


def _unknown(where: str, image: str, known: set[str]) -> DataError:
    """The error for an image that the data set does not have."""
    name = PurePosixPath(image.replace("\\", "/")).name
    near = min((place for place in known if PurePosixPath(place).name == name), default=None)
    todo = f"Did you mean '{near}'?" if near else ""
    return DataError(f"{where}: the data set has no image {image}", f"files such as {min(known)}", todo)


def _place(image: str, dataset: Dataset) -> str:
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
    labels = {dataset.place(record.path): record.label for record in dataset.records}
    for place, row in rows.items():
        if row.truth is not None and row.truth != labels[place]:
            got = f"{file}, line {row.line}: the truth of {place} is {row.truth}"
            raise DataError(got, f"{labels[place]}, as the data set says", "Leave `truth` out, or check the data set.")


def _answers(
    rows: Mapping[str, ExternalLine], records: Sequence[Record], dataset: Dataset
) -> tuple[list[LabelledPrediction], list[str]]:
    """An answer for every record, and the images that have none."""
    answers, missing = [], []
    for record in records:
        place = dataset.place(record.path)
        row = rows.get(place)
        if row is None:
            missing.append(place)
            answers.append(LabelledPrediction(place, record.label or "", None))
        else:
            exact = None if row.answer is None or not row.from_text else row.answer.strip() == row.predicted
            said = (row.predicted, row.log_probabilities, row.answer)
            answers.append(LabelledPrediction(place, record.label or "", *said, exact))
    return answers, missing


def _mode(rows: Mapping[str, ExternalLine], records: Sequence[Record], dataset: Dataset) -> Mode:
    """How the labels were read: `generate` where the text named every one of them, not where it only stands beside."""
    named = [rows[place] for record in records if (place := dataset.place(record.path)) in rows]
    return "generate" if named and all(row.from_text for row in named) else "score"


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
