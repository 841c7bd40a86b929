"""The division of a data set that an adapter was trained with, so that nothing it has seen counts as a test."""

import logging
from dataclasses import replace
from pathlib import Path

from masp.adapters import read_info, resolve
from masp.data.records import Dataset
from masp.data.splits import read_split
from masp.errors import DataError

SPLITS = "splits.json"
"""Beside an adapter in the folder of its run: which image stood in which split."""

log = logging.getLogger(__name__)


def as_trained(dataset: Dataset, adapter: Path, task: str | None = None) -> Dataset:
    """The data set in the division of the adapter's run, where that run divided this very data set itself.

    A published division is left alone, and so is a data set that the adapter was not trained on.

    Args:
        dataset: as it was opened.
        adapter: its folder, or that of its run.
        task: which of several tasks.

    Raises:
        AdapterError: there is no adapter.
        UsageError: no such task, or several and none was named.
    """
    records = read_info(adapter).for_task(task).data.values()
    known = {record.fingerprint for record in records}
    if dataset.split_by == "published" or dataset.fingerprint() in known:
        return dataset
    file = resolve(adapter).parent / SPLITS
    if file.is_file():
        try:
            divided = replace(dataset, splits=read_split(file, dataset))
        except DataError:  # the run's images are not these
            divided = dataset
        if divided.fingerprint() in known:
            log.info("using the division of the run, %s", file)
            return replace(divided, split_by="run")
    if dataset.name in {record.name for record in records}:
        log.warning(
            "the adapter was trained on %s, but divided in another way: this split may hold images it was trained on",
            dataset.name,
        )
    return dataset
