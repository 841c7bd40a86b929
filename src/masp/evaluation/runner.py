"""Measuring one system on one labelled split: every image once, predictions and what they depended on in files."""

import logging
from pathlib import Path

from masp.adapters import ResultRecord
from masp.baselines.base import System
from masp.baselines.prompted import Prompted
from masp.data.records import Dataset
from masp.evaluation.batches import Batching
from masp.evaluation.compute_metrics import Calibration, ResultContext, measured, votes_of
from masp.evaluation.facts import dated, run_of
from masp.evaluation.predict_split import ask
from masp.evaluation.predictions import LabelledPrediction, write_predictions
from masp.evaluation.provenance import of_system, provenance
from masp.evaluation.result import Evaluation, Mode, write_result
from masp.evaluation.resume_log import remove_journals
from masp.predictor import Masp
from masp.training.distributed import launched

__all__ = ["CALIBRATION", "Evaluation", "LabelledPrediction", "Mode", "evaluate", "provenance", "result_of"]

CALIBRATION = "val"
"""The split that a temperature is fitted on."""

log = logging.getLogger(__name__)


def evaluate(
    system: System | Masp,
    dataset: Dataset,
    split: str = "test",
    mode: Mode = "score",
    batching: Batching | None = None,
    out: Path | None = None,
    calibrate: bool = False,
) -> Evaluation:
    """Measures a system on a split; with `out`, writes `predictions.jsonl` and `summary.json` into that folder.

    Several processes, started by a launcher, share the images; each returns all figures, and the first one writes.
    With `out` what was said is on the disk after every batch. The same call after an interruption, of whatever kind,
    goes on there and writes the same predictions.

    Args:
        system: is asked; a `Masp` is as good as a system.
        dataset: has the split.
        split: name of the split.
        mode: how the answer of a `Masp` is read; other systems read their own.
        batching: how images are read.
        out: folder of the result.
        calibrate: also ask about the split val, and fit a temperature on it, where the system gives log-probabilities.

    Raises:
        DataError: no such split, no labels in it, or too many unreadable images.
        UsageError: a label that the system does not know, or another process that writes the same into `out`.
        OSError: the results cannot be written.
    """
    system, batching = _system(system, mode, batching)
    known = of_system(system, dataset, split, batching)
    keep = None if out is None else (out, run_of(known))
    heard = ask(system, dataset, split, batching, keep)
    calibration = None
    if calibrate and split != CALIBRATION and any(a.log_probabilities is not None for a in heard.answers):
        run = run_of({**known, "data": {**known["data"], "split": CALIBRATION}})
        calibration = _calibration(system, dataset, batching, None if out is None else (out, run))
    found = measured(
        ResultContext(
            system=name_of(system),
            dataset=dataset.name,
            split=split,
            mode="generate" if all(a.answer is not None for a in heard.answers) else "score",
            labels=tuple(system.labels),
            provenance=dated(known, heard.seconds),
            quarantined=heard.left_out,
            unlabelled=heard.unlabelled,
        ),
        heard.answers,
        votes_of(dataset, split),
        calibration,
    )
    if out is not None:
        processes = launched(system.backbone.device)
        with processes.guarded():
            processes.on_main(lambda: _write(out, found, calibration))
    return found


def result_of(found: Evaluation) -> ResultRecord:
    """What an adapter records of an evaluation."""
    return ResultRecord(
        dataset=found.dataset,
        fingerprint=found.provenance["data"]["fingerprint"],
        split=found.split,
        mode=found.mode,
        images=found.used,
        accuracy=found.accuracy.value,
        low=found.accuracy.low,
        high=found.accuracy.high,
        macro_f1=found.macro_f1.value,
    )


def name_of(system: System) -> str:
    """What a system is called in results."""
    return str(system.config().get("system", type(system).__name__))


def _system(system: System | Masp, mode: Mode, batching: Batching | None) -> tuple[System, Batching]:
    if isinstance(system, Masp):
        usual = Batching(longest_side=system.task.longest_side, rounding=system.task.rounding)
        return Prompted(system, mode), batching or usual
    return system, batching or Batching()


def _calibration(
    system: System, dataset: Dataset, batching: Batching, keep: tuple[Path, str] | None
) -> Calibration | None:
    """What the system says about the validation split, where the data set has one with labels."""
    if not any(record.label is not None for record in dataset.splits.get(CALIBRATION, ())):
        log.info("%s has no labelled split %s, so that no temperature is fitted", dataset.name, CALIBRATION)
        return None
    return Calibration(CALIBRATION, ask(system, dataset, CALIBRATION, batching, keep).answers)


def _write(out: Path, found: Evaluation, calibration: Calibration | None) -> None:
    """The result first, then away with what was kept for the case of an interruption."""
    beside = out / f"predictions.{CALIBRATION}.jsonl"
    if calibration is not None:
        write_predictions(beside, calibration.answers)
    write_result(out, found)
    if calibration is None:
        beside.unlink(missing_ok=True)
    remove_journals(out)
