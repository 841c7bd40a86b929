"""Measuring one system on one labelled split: every image once, predictions and what they depended on in files."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from masp.adapters import DataRecord, ResultRecord, library_versions, portable, read_info, resolve
from masp.backbones.base import Backbone
from masp.baselines.base import System
from masp.baselines.prompted import adapter_facts, prompted
from masp.core.errors import DataError
from masp.data.records import Dataset
from masp.data.splits import division_in, read_split
from masp.evaluation.compute_metrics import Calibration, ResultContext, measured, votes_of
from masp.evaluation.predict_split import ENDING, Batching, SplitPredictions, predict_split
from masp.evaluation.result import (
    CALIBRATION,
    Evaluation,
    LabelledPrediction,
    Mode,
    data_facts,
    dated,
    machine_facts,
    run_of,
    write_predictions,
    write_result,
)
from masp.predictor import Masp
from masp.training.distributed import launched

__all__ = ["CALIBRATION", "Evaluation", "LabelledPrediction", "Mode", "evaluate", "provenance", "result_of"]

_LEARNED = ("train", "val")  # val decides which state of a run is kept, so that it is no test either

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
    if isinstance(system, Masp):
        batching = batching or Batching(longest_side=system.task.longest_side, rounding=system.task.rounding)
        system = prompted(system, mode)
    batching = batching or Batching()
    known = of_system(system, dataset, split, batching)
    predictions = predict_split(system, dataset, split, batching, None if out is None else (out, run_of(known)))
    held: SplitPredictions | None = None
    if calibrate and split != CALIBRATION and any(one.log_probabilities is not None for one in predictions.answers):
        if any(record.label is not None for record in dataset.splits.get(CALIBRATION, ())):
            run = run_of({**known, "data": {**known["data"], "split": CALIBRATION}})
            held = predict_split(system, dataset, CALIBRATION, batching, None if out is None else (out, run))
        else:
            log.info("%s has no labelled split %s, so that no temperature is fitted", dataset.name, CALIBRATION)
    answers = None if held is None else held.answers
    result = evaluation_of(
        name_of(system), system.labels, dataset, split, predictions, dated(known, predictions.seconds), answers
    )
    if out is not None:
        processes = launched(system.backbone.device)
        with processes.guarded():
            processes.on_main(lambda: _write(out, result, answers))
    return result


def evaluation_of(
    name: str,
    labels: Sequence[str],
    dataset: Dataset,
    split: str,
    predictions: SplitPredictions,
    provenance: Mapping[str, Any],
    held: Sequence[LabelledPrediction] | None = None,
) -> Evaluation:
    """Every figure of what a system said about a split.

    Args:
        name: of the system, in results.
        labels: what it chose from.
        dataset: has the split.
        split: name of the split.
        predictions: what it said; at least one answer.
        provenance: what that depended on.
        held: what it said about the split val, to fit a temperature on; None: none is fitted.
    """
    mode: Mode = "generate" if all(one.answer is not None for one in predictions.answers) else "score"
    about = ResultContext(
        name, dataset.name, split, mode, tuple(labels), provenance, predictions.left_out, predictions.unlabelled
    )
    calibration = None if held is None else Calibration(CALIBRATION, tuple(held))
    return measured(about, predictions.answers, votes_of(dataset, split), calibration)


def _write(out: Path, evaluation: Evaluation, held: Sequence[LabelledPrediction] | None) -> None:
    """Writes the result, then removes the logs that interrupted runs would go on from, those of other runs included."""
    beside = out / f"predictions.{CALIBRATION}.jsonl"
    if held is not None:
        write_predictions(beside, held)
    write_result(out, evaluation)
    if held is None:
        beside.unlink(missing_ok=True)
    for path in out.glob(f"{'[0-9a-f]' * 12}{ENDING}"):
        path.unlink(missing_ok=True)


def result_of(evaluation: Evaluation) -> ResultRecord:
    """What an adapter records of an evaluation."""
    return ResultRecord(
        dataset=evaluation.dataset,
        fingerprint=evaluation.provenance["data"]["fingerprint"],
        split=evaluation.split,
        mode=evaluation.mode,
        images=evaluation.used,
        accuracy=evaluation.accuracy.value,
        low=evaluation.accuracy.low,
        high=evaluation.accuracy.high,
        macro_f1=evaluation.macro_f1.value,
    )


def name_of(system: System) -> str:
    """What a system is called in results."""
    return str(system.config().get("system", type(system).__name__))


# --- what the answers depend on -------------------------------------------------------------------------------------


def surroundings(backbone: Backbone, dataset: Dataset | None = None, split: str | None = None) -> dict[str, Any]:
    """What everything that is done on a backbone depends on: weights, data, versions, machine."""
    return {
        "versions": library_versions(),
        "backbone": {
            "name": portable(backbone.name),
            "revision": backbone.revision,
            "family": backbone.family,
            "fingerprint": backbone.fingerprint(),
            "hashes": dict(backbone.hashes()),
            "dtype": backbone.weight_dtype,
            "device": str(backbone.device),
            "image_transform": backbone.image_transform,
        },
        "data": None if dataset is None else data_facts(dataset, split),
        "threads": torch.get_num_threads(),
        "machine": machine_facts(torch.cuda.get_device_name() if torch.cuda.is_available() else None),
    }


def provenance(masp: Masp, dataset: Dataset | None = None, split: str | None = None) -> dict[str, Any]:
    """What a measurement depends on: versions, backbone, adapter, data, question. It names no place on this machine."""
    task = masp.task
    size = {"longest_side": task.longest_side, "rounding": task.rounding}
    own = {"adapter": adapter_facts(masp), "question": task.question, **size}
    return {**surroundings(masp.backbone, dataset, split), **own}


def of_system(system: System, dataset: Dataset, split: str, batching: Batching) -> dict[str, Any]:
    """All that the answers of a system on a split depend on; the seed is that of the last stage, where it is known."""
    config = dict(system.config())
    adapter = config.pop("adapter", None)
    seeds = {} if adapter is None else adapter["seeds"]
    return {
        "system": config,
        "adapter": adapter,
        **surroundings(system.backbone, dataset, split),
        "question": config.get("question"),
        "labels": list(system.labels),
        "seed": config["seed"] if "seed" in config else seeds.get("prompt", seeds.get("aspects")),
        "batch_size": batching.size_on(system.backbone),
        "longest_side": batching.longest_side,
        "rounding": batching.rounding,
    }


# --- the division that an adapter was trained with, so that nothing it has seen counts as a test --------------------


def as_trained(dataset: Dataset, adapter: Path, task: str | None = None) -> Dataset:
    """The data set in the division of the adapter's run, where the run divided this very data set otherwise.

    What counts is the last stage that was trained. Where its division cannot be known, and where the aspects learned
    from images that are a test here, there is a warning.

    Args:
        dataset: as it was opened.
        adapter: its folder, or that of its run.
        task: which of several tasks.

    Raises:
        AdapterError: there is no adapter.
        UsageError: no such task, or several and none was named.
    """
    data = read_info(adapter).for_task(task).data
    last = data.get("prompt", data.get("aspects"))
    if last is None:
        return dataset
    folder = resolve(adapter).parent
    divided = _divided(dataset, last, folder)
    here = divided.fingerprint()
    names = {dataset.name, last.name} if last.fingerprint == here else {dataset.name}
    strange = [one for one in data.values() if one.name in names and one.fingerprint != here]
    if last in strange:
        log.warning(
            "the adapter was trained on %s, but divided in another way: this split may hold images it was trained on",
            last.name,
        )
    elif any(_learned_more(divided, record, folder) for record in strange):
        log.warning(
            "the aspects of the adapter were trained on %s, but divided in another way: this split may hold images "
            "that they were trained on",
            strange[0].name,
        )
    return divided


def _divided(dataset: Dataset, record: DataRecord, folder: Path) -> Dataset:
    """The data set as the run divided it; as it is where it is like that, or where the run knows other images."""
    if dataset.fingerprint() == record.fingerprint:
        return dataset
    division = division_in(folder, record.fingerprint)
    if division is None:
        return dataset
    try:
        divided = replace(dataset, splits=read_split(division.file, dataset), split_by="run")
    except DataError:  # the run's images are not these
        return dataset
    if divided.fingerprint() != record.fingerprint:
        return dataset
    log.info("using the division of the run, %s", division.file)
    return divided


def _learned_more(dataset: Dataset, record: DataRecord, folder: Path) -> bool:
    """Whether a stage learned from images that are further from training here; yes where that is unknown.

    Images are known by their places. These say nothing where both data sets have some that the other lacks.
    """
    division = division_in(folder, record.fingerprint)
    if division is None:
        return True
    then = {path: _distance(split) for split, paths in division.places.items() for path in paths}
    now = {
        dataset.relative_path(one.path): _distance(split)
        for split, records in dataset.splits.items()
        for one in records
    }
    known = now.keys() <= then.keys() or then.keys() <= now.keys()
    return not known or any(then.get(path, distance) < distance for path, distance in now.items())


def _distance(split: str) -> int:
    """How far a split is from training: train 0, val 1, any other 2."""
    return _LEARNED.index(split) if split in _LEARNED else len(_LEARNED)
