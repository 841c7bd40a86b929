"""Annotating a whole data set: batch by batch, interrupted and gone on with, to the same bytes."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.adapters import library_versions, portable, tensors_sha256
from masp.annotate.ask import Annotator, Answers, Asking
from masp.annotate.folder import Workplace
from masp.annotate.light import FORMULA
from masp.annotate.pictures import Item, Pictures
from masp.annotate.writing import write_emoset
from masp.core.aspects import MEASURED
from masp.core.atomic_io import write_file
from masp.data.bad_files import Quarantine
from masp.data.prefetch import LoadedBatch, Loading, load
from masp.training.run_dir import reading

log = logging.getLogger(__name__)

SHOWN = 3
"""Commonest answers of an aspect that are kept for the summary."""


@dataclass(frozen=True)
class Work:
    """How pictures are annotated.

    Attributes:
        batch_size: pictures that go through the model together; the last bits of a score depend on it.
        workers: threads that read ahead.
        longest_side: larger pictures are shrunk to it first; None: never.
        copy: whether pictures are copied beside their annotations; otherwise links lead to them.
        progress: is told how many pictures are done, those of an earlier start included.
    """

    batch_size: int = 8
    workers: int = 2
    longest_side: int | None = None
    copy: bool = False
    progress: Callable[[int], object] | None = None


@dataclass(frozen=True)
class AspectSummary:
    """One aspect over all pictures: how many have an answer, why others have none, and what was said most often."""

    answered: int
    absent: Mapping[str, int]
    different: int
    commonest: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Annotated:
    """What annotating left.

    Attributes:
        out: the folder, a data set in EmoSet's layout.
        pictures: pictures with an annotation file.
        unreadable: pictures that were left out; quarantine.jsonl names them.
        aspects: aspect → its summary.
        again: whether it had been finished before, so that nothing was computed.
    """

    out: Path
    pictures: int
    unreadable: int
    aspects: Mapping[str, AspectSummary]
    again: bool = False


def annotate(pictures: Pictures, annotator: Annotator, out: Path, work: Work, adapter: str | None = None) -> Annotated:
    """Annotate pictures and write them in EmoSet's published layout; the same call goes on with what was interrupted.

    Args:
        pictures: what to annotate.
        annotator: answers the questions.
        out: a new folder, or one where the same call was interrupted.
        work: how.
        adapter: name of the adapter whose aspects answer.

    Raises:
        UsageError: the folder belongs to something else.
        DataError: 100 pictures in a row cannot be read, or none can, or the disk refuses.
    """
    identity = _identity(pictures, annotator, work)
    place = Workplace(out)
    with place.opened(identity) as result:
        if result is not None:
            place.tidy()
            return _from_json(out, result, again=True)
        _compute(pictures, annotator, place, work)
        done = place.batches()
        source = _source(annotator, adapter)
        annotated = list(_contents(pictures, done, source, annotator.asking.keep))
        versions = {json.dumps(batch["versions"], sort_keys=True) for batch in done.values()}
        made_by = {**source, "versions": [json.loads(one) for one in sorted(versions)]}
        write_emoset(out, pictures, annotated, made_by, work.copy)
        bad = [(pictures.items[int(key)].place, why) for batch in _ordered(done) for key, why in batch["unreadable"]]
        lines = [json.dumps({"image": name, "reason": why}) for name, why in bad]
        write_file(out / "quarantine.jsonl", "".join(f"{line}\n" for line in lines).encode())
        summary = _summary(annotator.asking, done, len(annotated), len(bad))
        place.finish(identity, summary)
        return _from_json(out, summary)


def _compute(pictures: Pictures, annotator: Annotator, place: Workplace, work: Work) -> None:
    """Every batch that is not finished; one with unreadable pictures is tried again, as a disk may have been away."""
    items, size = pictures.items, work.batch_size
    done = {number: batch for number, batch in place.batches().items() if not batch["unreadable"]}
    waiting = [number for number in range(-(-len(items) // size)) if number not in done]
    account = Quarantine(share=1.0, total=len(items))
    account.accept(sum(len(batch["answers"]) for batch in done.values()))
    finished = account.used
    if work.progress is not None:
        work.progress(finished)
    chunks = ([(at, items[at].path) for at in range(n * size, min((n + 1) * size, len(items)))] for n in waiting)
    loading = Loading(annotator.prepare, work.longest_side, workers=work.workers)
    versions = library_versions()
    for number, batch in zip(waiting, load(chunks, loading, account), strict=True):
        place.keep(number, {"versions": versions, **_answered(annotator, batch)})
        finished += len(batch.indices) + len(batch.failures)
        if work.progress is not None:
            work.progress(finished)
    account.finish()


def _answered(annotator: Annotator, batch: LoadedBatch) -> dict[str, Any]:
    found: Sequence[Answers] = annotator(batch.pixels) if batch.indices else ()
    answers = [
        [at, {name: one.value for name, one in answered.items()}, {n: o.why for n, o in answered.items() if o.why}]
        for at, answered in zip(batch.indices, found, strict=True)
    ]
    failures = sorted((failed.index, failed.reason) for failed in batch.failures)
    return {"answers": answers, "unreadable": [list(failed) for failed in failures]}


def _ordered(done: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [done[number] for number in sorted(done)]


def _contents(
    pictures: Pictures, done: Mapping[int, dict[str, Any]], source: Mapping[str, Any], keep: bool
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """For every readable picture the content of its annotation file; an aspect without an answer is an absent key."""
    for batch in _ordered(done):
        for at, values, _ in batch["answers"]:
            item = pictures.items[at]
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
        "dtype": backbone.number_format,
        "adapter": None,
        "question": {name: asking.questions[name] for name in asking.asked},
        "vocabulary": {name: _digest(list(asking.options[name])) for name in asking.asked if name in asking.options},
    }
    if annotator.model.aspects is not None:
        sha256 = tensors_sha256(annotator.model.aspects.state_dict())
        source["adapter"] = {"name": portable(adapter or ""), "aspects_sha256": sha256}
    if asking.measured_light and any(name in MEASURED for name in asking.questions):
        source["measured"] = FORMULA
    return source


def _identity(pictures: Pictures, annotator: Annotator, work: Work) -> dict[str, Any]:
    """Everything that decides the outcome, as a flat table of JSON values."""
    source, asking = _source(annotator, None), annotator.asking
    adapter = source["adapter"] and source["adapter"]["aspects_sha256"]
    table = {
        "pictures": len(pictures.items),
        "data": pictures.digest(),
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


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _summary(asking: Asking, done: Mapping[int, dict[str, Any]], pictures: int, unreadable: int) -> dict[str, Any]:
    """Counts of answers, as JSON values."""
    said: dict[str, Counter[str]] = {name: Counter() for name in asking.questions}
    absent: dict[str, Counter[str]] = {name: Counter() for name in asking.questions}
    for batch in _ordered(done):
        for _, values, why in batch["answers"]:
            for name, value in values.items():
                if value is not None:
                    said[name][", ".join(value) if isinstance(value, list) else str(value)] += 1
            for name, reason in why.items():
                absent[name][reason] += 1
    aspects = {
        name: {
            "answered": said[name].total(),
            "absent": dict(absent[name].most_common()),
            "different": len(said[name]),
            "commonest": [list(pair) for pair in said[name].most_common(SHOWN)],
        }
        for name in asking.questions
    }
    return {"pictures": pictures, "unreadable": unreadable, "aspects": aspects}


def _from_json(out: Path, result: Mapping[str, Any], again: bool = False) -> Annotated:
    aspects = {
        name: AspectSummary(
            one["answered"], one["absent"], one["different"], tuple((text, count) for text, count in one["commonest"])
        )
        for name, one in result["aspects"].items()
    }
    return Annotated(out, result["pictures"], result["unreadable"], aspects, again)
