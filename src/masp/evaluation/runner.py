"""Measuring one system on one labelled split: every image once, predictions and what they depended on in files."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from masp.adapters import DataRecord, ResultRecord, library_versions, portable, read_info, resolve
from masp.backbones.base import Backbone
from masp.baselines.base import System
from masp.baselines.prompted import Prompted, adapter_facts
from masp.core.errors import DataError
from masp.data.records import Dataset
from masp.data.splits import division_in, read_split
from masp.evaluation.compute_metrics import Calibration, ResultContext, measured, votes_of
from masp.evaluation.facts import data_facts, dated, machine_facts, run_of
from masp.evaluation.predict_split import Batching, ask, remove_journals
from masp.evaluation.predictions import LabelledPrediction, write_predictions
from masp.evaluation.result import Evaluation, Mode, write_result
from masp.predictor import Masp
from masp.training.distributed import launched


def surroundings(backbone: Backbone, dataset: Dataset | None = None, split: str | None = None) -> dict[str, Any]:
    """What everything that is done on a backbone depends on: weights, data, versions, machine."""
    return {
        "versions": library_versions(),
        "backbone": backbone_facts(backbone),
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
    """All that the answers of a system on a split depend on."""
    said = dict(system.config())
    adapter = said.pop("adapter", None)
    return {
        "system": said,
        "adapter": adapter,
        **surroundings(system.backbone, dataset, split),
        "question": said.get("question"),
        "labels": list(system.labels),
        "seed": said["seed"] if "seed" in said else _seed(adapter),
        "batch_size": batching.size_on(system.backbone),
        "longest_side": batching.longest_side,
        "rounding": batching.rounding,
    }


def _seed(adapter: Mapping[str, Any] | None) -> int | None:
    """The seed of an adapter's last stage; None where nobody knows it."""
    seeds = {} if adapter is None else adapter["seeds"]
    return seeds.get("prompt", seeds.get("aspects"))


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """Which backbone, in which number format, on which device."""
    return {
        "name": portable(backbone.name),
        "revision": backbone.revision,
        "family": backbone.family,
        "fingerprint": backbone.fingerprint(),
        "hashes": dict(backbone.hashes()),
        "dtype": backbone.weight_dtype,
        "device": str(backbone.device),
        "image_transform": backbone.image_transform,
    }


_LEARNED = ("train", "val")  # val decides which state of a run is kept, so that it is no test either

log = logging.getLogger(__name__)


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
    """Whether a stage learned from images that are further from training here; yes where nobody knows.

    Images are known by their places. These say nothing where both data sets have some that the other lacks.
    """
    division = division_in(folder, record.fingerprint)
    if division is None:
        return True
    then = {place: _distance(split) for split, places in division.places.items() for place in places}
    now = {dataset.place(one.path): _distance(split) for split, records in dataset.splits.items() for one in records}
    known = now.keys() <= then.keys() or then.keys() <= now.keys()
    return not known or any(then.get(place, distance) < distance for place, distance in now.items())


def _distance(split: str) -> int:
    """How far a split is from training: train 0, val 1, any other 2."""
    return _LEARNED.index(split) if split in _LEARNED else len(_LEARNED)


__all__ = ["CALIBRATION", "Evaluation", "LabelledPrediction", "Mode", "evaluate", "provenance", "result_of"]

CALIBRATION = "val"
"""The split that a temperature is fitted on."""


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
        processes = launched(system.backbone.device, system.backbone.sharded)
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
