"""Annotating a whole data set: batch by batch, interrupted and gone on with, to the same bytes in EmoSet's layout.

While it goes on there is `run.json` and one small file for every finished batch in `progress`, each whole or absent.
What a reader of data sets looks for appears at the end, all of it made from those files.
"""

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.adapters import library_versions, portable, tensors_sha256
from masp.annotate.ask import FORMULA, AnnotationSettings, Annotator, Answers
from masp.annotate.images import ImageCollection, PendingImage, splits_of
from masp.core.aspects import MEASURED
from masp.core.atomic_io import TEMPORARY, discard, fingerprint, remove_folder, write_file, write_folder
from masp.data.prefetch import LoadedBatch, Loading, load
from masp.data.records import BadFiles
from masp.training.checkpoints import writing
from masp.training.run_dir import finish, held, reading

FORMAT = 1
_BATCH = re.compile(r"batch-(\d{7})\.json")


class AnnotationFolder:
    """`out` while it is written: run.json, progress/batch-NNNNNNN.json."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.progress = out / "progress"

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | None]:
        """Hold the folder for this process (see `masp.training.run_dir.held`).

        Yields:
            The result, where the same run has come to its end here.
        """
        full = self.out.is_dir() and any(not path.name.startswith(TEMPORARY) for path in self.out.iterdir())
        with held(self.out, identity, {}, f"{self.out} is not empty" if full else None, self.progress) as result:
            yield result

    def batches(self) -> dict[int, dict[str, Any]]:
        """The finished batches by number; one that cannot be read is made again."""
        result: dict[int, dict[str, Any]] = {}
        for path in sorted(self.progress.iterdir()) if self.progress.is_dir() else ():
            match = _BATCH.fullmatch(path.name)
            if match is None:
                continue
            try:
                content = json.loads(path.read_bytes())
                result[int(match[1])] = {key: content[key] for key in ("versions", "answers", "unreadable")}
            except (OSError, ValueError, KeyError, TypeError):
                discard(path)
        return result

    def keep(self, number: int, batch: Mapping[str, Any]) -> None:
        """Write a finished batch.

        Raises:
            CheckpointError: the disk refuses to be written.
        """
        with writing(self.progress):
            self.progress.mkdir(exist_ok=True)
            write_file(self.progress / f"batch-{number:07d}.json", json.dumps(batch).encode())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record the result; the batches are then no longer needed."""
        finish(self.out, result, library_versions())
        self.tidy()

    def tidy(self) -> None:
        """Remove the batches."""
        if self.progress.is_dir():
            remove_folder(self.progress)


ANNOTATION, IMAGE = "annotation", "image"


def write_emoset(
    out: Path,
    collection: ImageCollection,
    annotated: Sequence[tuple[PendingImage, Mapping[str, Any]]],
    source: Mapping[str, Any],
    copy: bool,
) -> None:
    """Write annotation/, image/, one list for each split, and info.json last; what was there is replaced.

    Args:
        out: where.
        collection: all images, readable or not.
        annotated: the readable ones, in order, with what stands in the annotation file of each.
        source: what made the annotations, for info.json.
        copy: whether image/ holds copies; otherwise it holds links to the images where they lie.

    Raises:
        CheckpointError: the disk refuses to be written.
    """

    def notes(folder: Path) -> None:
        for item, content in annotated:
            _new(folder / item.home / f"{item.name}.json").write_text(_json_text(content), encoding="utf-8")

    def images(folder: Path) -> None:
        for item, _ in annotated:
            path = _new(folder / item.home / _file_name(item))
            if copy:
                shutil.copyfile(item.path, path)
            else:
                path.symlink_to(item.path.resolve())

    indices = {label: index for index, label in enumerate(collection.labels)}
    rows: dict[str, list[list[object]]] = {split: [] for split in splits_of(collection.items)}
    for item, _ in annotated:
        label = None if item.label is None else indices[item.label]
        places = f"{IMAGE}/{item.home}/{_file_name(item)}", f"{ANNOTATION}/{item.home}/{item.name}.json"
        rows[item.split].append([label, item.name, *places])
    with writing(out):
        write_folder(out / ANNOTATION, notes)
        write_folder(out / IMAGE, images)
        for split, listed in rows.items():
            write_file(out / f"{split}.json", _lines(listed))
        write_file(out / "info.json", _json_text(_info(collection, source)).encode())
        os.sync()  # the many small files are not flushed one by one


def _info(images: ImageCollection, source: Mapping[str, Any]) -> dict[str, Any]:
    """info.json as EmoSet has it, and what made this folder."""
    order = dict(enumerate(images.labels))
    tables = {
        "label2idx": {label: number for number, label in order.items()},
        "idx2label": {str(number): label for number, label in order.items()},
    }
    return {"emotion": tables, "labelled": images.labelled, "source": dict(source)}


def _file_name(item: PendingImage) -> str:
    """The image's name beside its annotation; a suffix that is no plain word is left out."""
    suffix = item.path.suffix.lower()
    return item.name + (suffix if suffix[1:].isascii() and suffix[1:].isalnum() else "")


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _lines(rows: Iterable[object]) -> bytes:
    """A list with one row on each line."""
    return ("[" + ",\n".join(json.dumps(row) for row in rows) + "]\n").encode()


def _json_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


log = logging.getLogger(__name__)

SHOWN = 3
"""Commonest answers of an aspect that are kept for the summary."""


@dataclass(frozen=True)
class AnnotationJob:
    """How images are annotated.

    Attributes:
        batch_size: images that go through the model together; the last bits of a score depend on it.
        workers: threads that read ahead.
        longest_side: larger images are shrunk to it first; None: never.
        copy: whether images are copied beside their annotations; otherwise links lead to them.
        progress: is told how many images are done, those of an earlier start included.
    """

    batch_size: int = 8
    workers: int = 2
    longest_side: int | None = None
    copy: bool = False
    progress: Callable[[int], object] | None = None


@dataclass(frozen=True)
class AspectSummary:
    """One aspect over all images: how many have an answer, why others have none, and what was said most often."""

    answered: int
    absent: Mapping[str, int]
    different: int
    commonest: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class AnnotationResult:
    """What annotating left.

    Attributes:
        out: the folder, a data set in EmoSet's layout.
        images: images with an annotation file.
        unreadable: images that were left out; quarantine.jsonl names them.
        aspects: aspect → its summary.
        again: whether it had been finished before, so that nothing was computed.
    """

    out: Path
    images: int
    unreadable: int
    aspects: Mapping[str, AspectSummary]
    again: bool = False


def annotate(
    images: ImageCollection, annotator: Annotator, out: Path, work: AnnotationJob, adapter: str | None = None
) -> AnnotationResult:
    """Annotate images and write them in EmoSet's published layout; the same call goes on with what was interrupted.

    Args:
        images: what to annotate.
        annotator: answers the questions.
        out: a new folder, or one where the same call was interrupted.
        work: how.
        adapter: name of the adapter whose aspects answer.

    Raises:
        UsageError: the folder belongs to something else.
        DataError: 100 images in a row cannot be read, or none can.
        CheckpointError: the disk refuses to be written, or another process is writing there.
    """
    identity = _identity(images, annotator, work)
    folder = AnnotationFolder(out)
    with folder.opened(identity) as earlier:
        if earlier is not None:
            folder.tidy()
            return _from_json(out, earlier, again=True)
        _compute(images, annotator, folder, work)
        done = folder.batches()
        source = _source(annotator, adapter)
        annotated = list(_contents(images, done, source, annotator.asking.keep))
        versions = {json.dumps(batch["versions"], sort_keys=True) for batch in done.values()}
        made_by = {**source, "versions": [json.loads(one) for one in sorted(versions)]}
        write_emoset(out, images, annotated, made_by, work.copy)
        bad = [(images.items[int(key)].place, why) for batch in _ordered(done) for key, why in batch["unreadable"]]
        lines = [json.dumps({"image": name, "reason": why}) for name, why in bad]
        write_file(out / "quarantine.jsonl", "".join(f"{line}\n" for line in lines).encode())
        summary = _summary(annotator.asking, done, len(annotated), len(bad))
        folder.finish(summary)
        return _from_json(out, summary)


def _compute(images: ImageCollection, annotator: Annotator, folder: AnnotationFolder, work: AnnotationJob) -> None:
    """Every batch that is not finished; one with unreadable images is tried again, as a disk may have been away."""
    items, size = images.items, work.batch_size
    done = {number: batch for number, batch in folder.batches().items() if not batch["unreadable"]}
    waiting = [number for number in range(-(-len(items) // size)) if number not in done]
    account = BadFiles(share=1.0, total=len(items))
    account.accept(sum(len(batch["answers"]) for batch in done.values()))
    finished = account.used
    if work.progress is not None:
        work.progress(finished)
    chunks = ([(at, items[at].path) for at in range(n * size, min((n + 1) * size, len(items)))] for n in waiting)
    loading = Loading(annotator.prepare, work.longest_side, workers=work.workers)
    versions = library_versions()
    for number, batch in zip(waiting, load(chunks, loading, account), strict=True):
        folder.keep(number, {"versions": versions, **_answered(annotator, batch)})
        finished += len(batch.indices) + len(batch.failures)
        if work.progress is not None:
            work.progress(finished)
    account.finish()


def _answered(annotator: Annotator, batch: LoadedBatch) -> dict[str, Any]:
    result: Sequence[Answers] = annotator(batch.pixels) if batch.indices else ()
    answers = [
        [at, {name: one.value for name, one in answered.items()}, {n: o.why for n, o in answered.items() if o.why}]
        for at, answered in zip(batch.indices, result, strict=True)
    ]
    failures = sorted((failed.index, failed.reason) for failed in batch.failures)
    return {"answers": answers, "unreadable": [list(failed) for failed in failures]}


def _ordered(done: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [done[number] for number in sorted(done)]


def _contents(
    images: ImageCollection, done: Mapping[int, dict[str, Any]], source: Mapping[str, Any], keep: bool
) -> Iterator[tuple[PendingImage, dict[str, Any]]]:
    """For every readable image the content of its annotation file; an aspect without an answer is an absent key."""
    for batch in _ordered(done):
        for at, values, _ in batch["answers"]:
            item = images.items[at]
            content: dict[str, Any] = {"image_id": item.name, "emotion": item.label}
            content |= {name: value for name, value in values.items() if value is not None}
            made = {**source, "picture": item.place, "versions": batch["versions"]}
            kept = {name: text for name, text in item.known.items() if keep and name not in MEASURED}
            if kept:
                content |= {name: text.split(", ") if name == "object" else text for name, text in kept.items()}
                made["kept"] = sorted(kept)  # these the machine did not answer
            yield item, {**content, "source": made}


def _source(annotator: Annotator, adapter: str | None) -> dict[str, Any]:
    """What made an annotation; it names no place on this machine."""
    backbone, asking = annotator.model.backbone, annotator.asking
    source: dict[str, Any] = {
        "machine": True,
        "backbone": portable(backbone.name),
        "revision": backbone.revision,
        "fingerprint": backbone.fingerprint(),
        "dtype": backbone.weight_dtype,
        "adapter": None,
        "question": {name: asking.questions[name] for name in asking.asked},
        "vocabulary": {
            name: fingerprint(list(asking.options[name])) for name in asking.asked if name in asking.options
        },
    }
    if annotator.model.aspects is not None:
        sha256 = tensors_sha256(annotator.model.aspects.state_dict())
        source["adapter"] = {"name": portable(adapter or ""), "aspects_sha256": sha256}
    if asking.measured_light and any(name in MEASURED for name in asking.questions):
        source["measured"] = FORMULA
    return source


def _identity(images: ImageCollection, annotator: Annotator, work: AnnotationJob) -> dict[str, Any]:
    """Everything that decides the outcome, as a flat table of JSON values."""
    source, asking = _source(annotator, None), annotator.asking
    adapter = source["adapter"] and source["adapter"]["aspects_sha256"]
    table = {
        "pictures": len(images.items),
        "data": images.digest(),
        "backbone": source["fingerprint"],
        **reading(annotator.model.backbone),
        "dtype": source["dtype"],
        "adapter": adapter,
        "aspects": list(asking.questions),
        "vocabulary": source["vocabulary"],
        "measured_light": asking.measured_light,
        "longest": asking.longest,
        "keep": asking.keep,
        "longest_side": work.longest_side,
        "batch_size": work.batch_size,
        "copy": work.copy,
        **{f"question.{name}": text for name, text in source["question"].items()},
    }
    return json.loads(json.dumps(table))


def _summary(
    asking: AnnotationSettings, done: Mapping[int, dict[str, Any]], images: int, unreadable: int
) -> dict[str, Any]:
    """Counts of answers, as JSON values."""
    answers: dict[str, Counter[str]] = {name: Counter() for name in asking.questions}
    absent: dict[str, Counter[str]] = {name: Counter() for name in asking.questions}
    for batch in _ordered(done):
        for _, values, why in batch["answers"]:
            for name, value in values.items():
                if value is not None:
                    answers[name][", ".join(value) if isinstance(value, list) else str(value)] += 1
            for name, reason in why.items():
                absent[name][reason] += 1
    aspects = {
        name: {
            "answered": answers[name].total(),
            "absent": dict(absent[name].most_common()),
            "different": len(answers[name]),
            "commonest": [list(pair) for pair in answers[name].most_common(SHOWN)],
        }
        for name in asking.questions
    }
    return {"pictures": images, "unreadable": unreadable, "aspects": aspects}


def _from_json(out: Path, content: Mapping[str, Any], again: bool = False) -> AnnotationResult:
    aspects = {
        name: AspectSummary(
            one["answered"], one["absent"], one["different"], tuple((text, count) for text, count in one["commonest"])
        )
        for name, one in content["aspects"].items()
    }
    return AnnotationResult(out, content["pictures"], content["unreadable"], aspects, again)
