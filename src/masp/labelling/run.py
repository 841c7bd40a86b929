"""Runs over a manifest on Ray Data: what is missing is labelled; status; one data set out of the parts."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import fs, parquet

from masp.adapters import library_versions
from masp.core.atomic_io import lock
from masp.core.errors import DataError, OutageError, UsageError
from masp.labelling.labeller import COUNTS, LABELS, Job, Labeller, part_path
from masp.labelling.manifest import Manifest, StorePath, check_shard, read_chunk, read_manifest, shard_name
from masp.training.run_dir import differences

RUN, LOCK = "run.json", "run.lock"
HERE = (None, "local")
"""Addresses of a Ray that is started on this machine."""
AT_ONCE = 100_000
"""Chunks of one Ray job; several follow each other, so that the driver's memory has a bound."""
RETRIES = 2  # of a chunk whose actor died
GIVE_UP = 10
"""Chunks that fail one after the other before a run ends; fewer are left for the next run while the others go on."""

Tell = Callable[[dict[str, int]], object]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        images: of the manifest.
        counts: rows of each status that are written.
        chunks: chunks that are written, of `all_chunks`.
        all_chunks: chunks of the manifest.
        rate: images per second between the first and the last file; None with fewer than two.
    """

    images: int
    counts: dict[str, int]
    chunks: int
    all_chunks: int
    rate: float | None

    @property
    def done(self) -> int:
        """Rows that are written."""
        return sum(self.counts.values())

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None where there is no rate yet."""
        return (self.images - self.done) / self.rate if self.rate else None


def missing(folder: str, manifest: Manifest) -> Iterator[tuple[int, int]]:
    """The chunks without a file, as (shard, chunk)."""
    for shard in range(len(manifest.shards)):
        place = StorePath.of(folder) / LABELS / shard_name(shard)
        there = {info.base_name for info in place.listing()}
        for chunk in range(manifest.chunks(shard)):
            if part_path(folder, shard, chunk).path.rpartition("/")[2] not in there:
                yield shard, chunk


def run(job: Job, address: str | None = None, actors: int | None = None, tell: Tell = lambda counts: None) -> Status:
    """Label what is missing, on a Ray cluster or on one that is started here.

    Args:
        job: what is done.
        address: of a cluster ("ray://…", "auto"); None: this machine.
        actors: models at a time; None: one for each GPU, or one.
        tell: hears the counts of each chunk that is finished.

    Raises:
        UsageError: another run is at work here; one with another adapter, manifest or settings began here; no Ray.
        DataError: the manifest is missing or has changed.
        OutageError: chunks are left because their images could not be reached.
    """
    ray = _ray()
    manifest = read_manifest(job.folder)
    with _alone(job.folder):
        _check_identity(job)
        todo = missing(job.folder, manifest)
        if address in HERE and job.threads is None:  # Ray would give a process as many as the CPUs it asks for, one
            models = actors or max(torch.cuda.device_count(), 1)
            job = replace(job, threads=max(torch.get_num_threads() // models, 1))
        with _connected(ray, address):
            while part := [one for _, one in zip(range(AT_ONCE), todo, strict=False)]:
                for shard in sorted({shard for shard, _ in part}):
                    check_shard(job.folder, manifest, shard)
                _label(ray, job, part, actors, tell)
    return status(job.folder)


def _label(ray: Any, job: Job, part: list[tuple[int, int]], actors: int | None, tell: Tell) -> None:
    """One Ray job: each chunk is a block, so that it is a unit of scheduling and of retrying."""
    rows = [{"shard": shard, "chunk": chunk} for shard, chunk in part]
    gpus = int(ray.cluster_resources().get("GPU", 0)) if job.device != "cpu" else 0
    size = min(actors or max(gpus, 1), len(part))
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Labeller,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        max_task_retries=RETRIES,
    )
    gather(dataset.iter_rows(), tell)


def gather(rows: Iterable[Mapping[str, Any]], tell: Tell) -> None:
    """Tell the counts of the chunks that are labelled, as they come.

    Raises:
        OutageError: some met an outage; raised at the end, or once `GIVE_UP` of them follow each other.
    """
    left, streak, first = 0, 0, ""
    for row in rows:
        if not row["outage"]:
            streak = 0
            tell(json.loads(row["counts"]))
            continue
        left, streak, first = left + 1, streak + 1, first or row["outage"]
        if streak == GIVE_UP:
            break
    if left:
        todo = "Give the same command again when what holds them answers; what is labelled stays."
        raise OutageError(f"{left:,} chunks were left, the first as {first}", "", todo)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError(
            "labelling many images needs Ray, which is not installed", "", 'pip install "masp[ray]"'
        ) from None
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster. Here at least four CPUs, which are counted and not reserved: Ray's own need some."""
    given: dict[str, Any] = {"log_to_driver": False}
    if address in HERE:
        given |= {"num_cpus": max(4, os.cpu_count() or 1), "include_dashboard": False}
    else:
        given |= {"address": address}
    ray.init(**given)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Make sure that no other run is at work in a folder here; object stores have no locks.

    Raises:
        UsageError: another one is.
    """
    place = StorePath.of(folder) / LOCK
    if not place.local:
        yield
        return
    with Path(place.path).open("a") as file:
        if not lock(file.fileno()):
            raise UsageError(f"another run labels {folder} now", "one at a time", "Wait for it.")
        yield


def _check_identity(job: Job) -> None:
    """Begin a run, or make sure that the one that began here said the same.

    Raises:
        UsageError: it had another adapter, manifest or other settings.
    """
    with Labeller(job) as labeller:
        identity = labeller.identity
    place = StorePath.of(job.folder) / RUN
    try:
        before = json.loads(place.read())["identity"]
    except FileNotFoundError:
        place.write((json.dumps({"identity": identity, "versions": library_versions()}, indent=1) + "\n").encode())
        return
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{place.path} cannot be read ({error})", "what masp label run wrote") from None
    if other := differences(before, identity):
        todo = "Label into a new folder, or with what this one was begun with."
        raise UsageError(f"the labels in {job.folder} were begun with another {', '.join(other)}", "the same", todo)


def status(folder: str) -> Status:
    """How far a run is, from the footers of its files.

    Raises:
        DataError: no manifest there.
    """
    manifest = read_manifest(folder)
    counts, times = Counter[str](), []
    chunks = 0
    for shard in range(len(manifest.shards)):
        for info in (StorePath.of(folder) / LABELS / shard_name(shard)).listing():
            counts.update(_counts(StorePath.of(folder), info))
            times.append((info.mtime_ns or 0) / 1e9)
            chunks += 1
    span = max(times) - min(times) if times else 0.0
    done = sum(counts.values())
    rate = done * (chunks - 1) / chunks / span if chunks > 1 and span > 0 else None  # the first file opens the span
    every = sum(manifest.chunks(shard) for shard in range(len(manifest.shards)))
    return Status(manifest.images, dict(counts), chunks, every, rate)


def _counts(home: StorePath, info: fs.FileInfo) -> dict[str, int]:
    with home.files.open_input_file(info.path) as source:
        described = parquet.read_metadata(source).metadata or {}
    return json.loads(described.get(COUNTS, b"{}"))


def merge(folder: str, out: str, partial: bool = False) -> int:
    """One Parquet data set out of the parts, a file for each shard, in the order of the images.

    Args:
        folder: with manifest and labels.
        out: a new or empty folder.
        partial: also where chunks are missing.

    Returns:
        The number of rows.

    Raises:
        UsageError: chunks are missing, or the folder is not empty.
    """
    manifest, place = read_manifest(folder), StorePath.of(out)
    left = sum(1 for _ in missing(folder, manifest))
    if left and not partial:
        todo = "Finish it with masp label run, or merge what is there with --partial."
        raise UsageError(f"{left:,} chunks are not labelled yet", "all of them", todo)
    if place.listing():
        raise UsageError(f"{out} is not empty", "a new folder", "Name another.")
    total = 0
    for shard in range(len(manifest.shards)):
        parts = (StorePath.of(folder) / LABELS / shard_name(shard)).listing()
        if not parts:
            continue
        tables = (_rows(StorePath.of(folder), info) for info in parts)
        first = next(tables)
        with (
            (place / f"{shard_name(shard)}.parquet").writing() as out,
            parquet.ParquetWriter(out, first.schema, compression="zstd") as writer,
        ):
            for table in chain([first], tables):
                writer.write_table(table)
                total += len(table)
    return total


def _rows(home: StorePath, info: fs.FileInfo) -> pa.Table:
    """The labels in a finished file."""
    with home.files.open_input_file(info.path) as source:
        return parquet.read_table(source).replace_schema_metadata(None)


def try_few(job: Job, images: int = 100) -> tuple[dict[str, int], float]:
    """Label the first images here, without Ray and without writing anything.

    Returns:
        How many there were of each status, and images per second, the model's loading not counted.
    """
    table = read_chunk(job.folder, 0, 0).slice(0, images)
    with Labeller(job) as labeller:
        labeller.labelled(table.slice(0, 1))  # what is made on first use
        started = time.monotonic()
        _, counts = labeller.labelled(table)
    return counts, len(table) / (time.monotonic() - started)
