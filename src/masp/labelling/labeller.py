"""Labelling one chunk: images are read ahead, go through the model in fixed batches, and become one Parquet file."""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Self

import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

from masp.adapters import tensors_sha256
from masp.core.errors import OutageError, UsageError
from masp.core.runtime import keep_freed_memory
from masp.data.prefetch import prepared
from masp.labelling.decode import CRASHED, STATUSES, UNREADABLE, Decoded, Decoder, Limits
from masp.labelling.manifest import StorePath, read_chunk, shard_name
from masp.model.prediction import Task, predict_visual
from masp.model.scoring import describe_aspects
from masp.predictor import Masp

LABELS = "labels"
COUNTS = b"masp"
"""Key of a file's metadata that holds the number of rows of each status."""
AHEAD = 2  # batches that are read while one is computed


@dataclass(frozen=True)
class Job:
    """What is done to every image; the same for all actors of a run, and for all runs over one folder.

    Attributes:
        folder: with the manifest; labels go there too.
        manifest: hash of the manifest.
        adapter: as in `Masp.from_pretrained`.
        backbone: as there.
        tasks: which tasks of an adapter with several.
        explain: `words`: also what each aspect saw, in words.
        batch_size: images that go through the model together.
        dtype: number format of the backbone.
        device: where it runs.
        max_bytes: larger files are not opened.
        seconds: an image that takes longer to read has crashed its decoder.
        decoders: processes that read images, for each actor.
        threads: of torch in each actor; None: torch's own choice, and as many as its CPUs on a cluster of Ray.
    """

    folder: str
    manifest: str
    adapter: str | None = None
    backbone: str | None = None
    tasks: tuple[str, ...] = ()
    explain: Literal["none", "words"] = "none"
    batch_size: int = 16
    dtype: str = "auto"
    device: str = "auto"
    max_bytes: int = 200_000_000
    seconds: float = 60.0
    decoders: int = 2
    threads: int | None = None


class Labeller:
    """A model that labels chunks; on Ray an actor, otherwise an ordinary object.

    Raises:
        UsageError: several tasks and none named, or tasks that see images in different sizes.
    """

    def __init__(self, job: Job) -> None:
        keep_freed_memory()
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self._job = job
        loading: dict[str, Any] = {"dtype": job.dtype, "device": job.device}
        task = job.tasks[0] if job.tasks else None
        self._masp = Masp.from_pretrained(job.adapter, job.backbone, task=task, **loading)
        self._names: tuple[str | None, ...] = job.tasks or (self._masp.task_name,)
        tasks = [self._task(name) for name in self._names]
        if len({(one.longest_side, one.rounding) for one in tasks}) > 1:
            raise UsageError("the tasks see images in different sizes", "tasks of one size", "Label them one by one.")
        limits = Limits(tasks[0].longest_side, tasks[0].rounding, job.max_bytes, job.seconds)
        self._decoders = [Decoder(limits) for _ in range(job.decoders)]
        self._adapter = self._adapter_hash()
        self._threads = ThreadPoolExecutor(job.decoders)
        self._free: deque[Decoder] = deque(self._decoders)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes that read images."""
        self._threads.shutdown()
        for decoder in self._decoders:
            decoder.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What the labels depend on, beside the images."""
        masp, job = self._masp, self._job
        return {
            "manifest": job.manifest,
            "adapter": self._adapter,
            "backbone": masp.backbone.fingerprint(),
            "tasks": list(job.tasks),
            "labels": {name or "": list(self._task(name).labels) for name in self._names},
            "explain": job.explain,
            "batch_size": job.batch_size,
            "dtype": masp.backbone.weight_dtype,
        }

    def _adapter_hash(self) -> str | None:
        """Hash of the adapter: its description, soft prompts, gates and concept bottleneck; aspects by their hashes."""
        digest = hashlib.sha256()
        for name in self._names:
            handle = self._masp.handle(name)
            if handle.info is None:
                return None
            digest.update(handle.info.model_dump_json().encode())
            prompt, gates = handle.model.prompt, handle.model.routing
            parts = [{} if prompt is None else {"vectors": prompt.vectors}]
            parts += [] if gates is None else [gates.state_dict()]
            parts += [] if handle.concepts is None else [handle.concepts.tensors]
            for tensors in parts:
                digest.update(tensors_sha256(tensors).encode())
        return digest.hexdigest()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Label the chunks that a batch of Ray Data names; a row for each, with counts or with the outage it met."""
        out: dict[str, list[Any]] = {"shard": list(batch["shard"]), "chunk": list(batch["chunk"])}
        out |= {"counts": [], "outage": []}
        for shard, chunk in zip(batch["shard"], batch["chunk"], strict=True):
            try:
                counts, outage = self.label(int(shard), int(chunk)), ""
            except OutageError as error:
                counts, outage = {}, error.got
            out["counts"].append(json.dumps(counts))
            out["outage"].append(outage)
        return out

    def label(self, shard: int, chunk: int) -> dict[str, int]:
        """Label one chunk and write its file; the number of images of each status.

        Raises:
            OutageError: images, manifest or labels cannot be reached; nothing is written.
        """
        try:
            content, counts = self.labelled(read_chunk(self._job.folder, shard, chunk))
            part_path(self._job.folder, shard, chunk).write(content)
        except OSError as error:
            raise OutageError(f"a chunk of {self._job.folder} cannot be read or written ({error})") from None
        return counts

    def labelled(self, images: pa.Table) -> tuple[bytes, dict[str, int]]:
        """The rows of these images as a Parquet file, and how many there are of each status."""
        rows = images.select(["uri", "offset", "size"]).to_pylist()
        size = self._job.batch_size
        found: list[dict[str, Any]] = []
        for batch in self._read_ahead(rows, size):
            found += self._predicted(batch)
        counts = dict(Counter(row["status"] for row in found))
        table = pa.table([images["id"], images["uri"], *self._columns(found)], schema=self._schema())
        described = {COUNTS: json.dumps({key: counts.get(key, 0) for key in STATUSES}).encode()}
        sink = pa.BufferOutputStream()
        parquet.write_table(table.replace_schema_metadata(described), sink, compression="zstd")
        return sink.getvalue().to_pybytes(), counts

    def _read_ahead(self, rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[Decoded]]:
        """Batches of images in their order, a few batches ahead of what is asked for."""
        waiting: deque[list[Future[Decoded]]] = deque()
        starts = iter(range(0, len(rows), size))

        def submit() -> None:
            start = next(starts, None)
            if start is not None:
                waiting.append([self._threads.submit(self._read, row) for row in rows[start : start + size]])

        for _ in range(AHEAD + 1):
            submit()
        try:
            while waiting:
                yield [future.result() for future in waiting[0]]
                waiting.popleft()
                submit()
        finally:  # after an outage the images that are left are not read
            for future in chain.from_iterable(waiting):
                future.cancel()

    def _read(self, row: Mapping[str, Any]) -> Decoded:
        decoder = self._free.popleft()  # as many threads as decoders, so one is free
        try:
            return decoder.read(row["uri"], row["offset"], row["size"])
        finally:
            self._free.append(decoder)

    def _task(self, name: str | None) -> Task:
        return (self._masp if name is None else self._masp.use(name)).task

    def _predicted(self, batch: Sequence[Decoded]) -> list[dict[str, Any]]:
        """A row for each image of a batch: its status, and the labels of those that can be used."""
        rows: list[dict[str, Any]] = [{"status": one.status, "error": one.error} for one in batch]
        indices = [index for index, one in enumerate(batch) if one.image is not None]
        images = [one.image for one in batch if one.image is not None]
        try:
            scored = self._scored(images)
        except torch.OutOfMemoryError as error:
            if len(images) > 1:
                return [row for one in batch for row in self._predicted([one])]
            scored = [{"status": CRASHED, "error": str(error)[:300]}]
        for index, row in zip(indices, scored, strict=True):
            rows[index] |= row
        return rows

    def _scored(self, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """What the model says of images; those that the backbone refuses have a status of their own."""
        if not images:
            return []
        masp = self._masp
        pixels, unfit = prepared(list(images), masp.backbone.preprocess)
        rows: list[dict[str, Any]] = [{} for _ in images]
        for index, why in unfit.items():
            rows[index] = {"status": UNREADABLE, "error": why[:300]}
        if pixels is None:
            return rows
        fit = [row for index, row in enumerate(rows) if index not in unfit]
        visual = masp.visual_tokens(pixels)
        handles = [masp.handle(name) for name in self._names]
        for row, predictions in zip(fit, predict_visual(handles, visual, [""] * len(fit), explain=False), strict=True):
            for name, one in zip(self._names, predictions, strict=True):
                before = self._before(name)
                row |= {f"{before}label": one.label, f"{before}probabilities": list(one.probabilities.values())}
        if self._job.explain == "words" and masp.model.aspects is not None:
            for row, words in zip(fit, describe_aspects(masp.model, visual, masp.task.questions), strict=True):
                row["aspects"] = json.dumps(words, ensure_ascii=False)
        return rows

    def _before(self, name: str | None) -> str:
        """What the columns of a task begin with: its name where tasks were named."""
        return f"{name}." if self._job.tasks else ""

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> list[pa.Array]:
        constants = {key: str(self.identity[key] or "")[:16] for key in ("adapter", "manifest")}
        schema = self._schema()
        columns = [[constants.get(key, row.get(key)) for row in rows] for key in schema.names[2:]]
        return [pa.array(values, kind) for values, kind in zip(columns, schema.types[2:], strict=True)]

    def _schema(self) -> pa.Schema:
        """Columns of the labels."""
        fields: list[tuple[str, pa.DataType]] = [("id", pa.int64()), ("uri", pa.string())]
        fields += [("status", pa.string()), ("error", pa.string())]
        for name in self._names:
            before = self._before(name)
            fields += [(f"{before}label", pa.string()), (f"{before}probabilities", pa.list_(pa.float32()))]
        if self._job.explain == "words":
            fields.append(("aspects", pa.string()))
        return pa.schema([*fields, ("adapter", pa.string()), ("manifest", pa.string())])


def part_path(folder: str, shard: int, chunk: int) -> StorePath:
    """Where the labels of a chunk go."""
    return StorePath.of(folder) / LABELS / shard_name(shard) / f"part-{chunk:06}.parquet"
