"""The division of a data set that an adapter was trained with, so that nothing it has seen counts as a test."""

import logging
from dataclasses import replace
from pathlib import Path

from masp.adapters import DataRecord, read_info, resolve
from masp.core.errors import DataError
from masp.data.records import Dataset
from masp.data.splits import division_in, read_split

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
