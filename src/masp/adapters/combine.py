"""One adapter out of several tasks that were trained over the same aspect modules on the same backbone."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from masp.adapters.hub import check_replaceable, find_adapter
from masp.adapters.info import TASK_NAME, AdapterInfo, TaskRecord, read_info
from masp.adapters.store import PROMPT, concept_tensor, read_tensors, task_tensor, tensors_sha256, write_tensors
from masp.backbones.files import READING, read_otherwise
from masp.core.errors import AdapterError, UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """One of the adapters: as it was named, where it lies, what it says, and its tasks by name."""

    name: str
    folder: Path
    info: AdapterInfo
    tasks: dict[str, TaskRecord]


def combine(out: str | Path, adapters: Sequence[str | Path]) -> AdapterInfo:
    """Write one adapter that holds the tasks of several, soft prompts and concept bottlenecks, each by its name.

    A task has the name it is given ("emoset=runs/a"), otherwise that of its data set. An adapter that holds several
    tasks already keeps their names. The aspects are copied from the first adapter that holds them.

    Args:
        out: a new folder, an empty one, or an adapter that is replaced.
        adapters: folders of adapters or runs, or hub ids, each perhaps with "NAME=" before it.

    Returns:
        The description of the new adapter.

    Raises:
        AdapterError: one has nothing that answers, or another backbone or other aspects than the first.
        UsageError: fewer than two tasks, or a name that is missing, taken or impossible.
    """
    check_replaceable(Path(out))
    parts = [_part(str(adapter)) for adapter in adapters]
    tasks: dict[str, TaskRecord] = {}
    tensors: dict[str, Tensor] = {}
    for part in parts:
        _check_fits(parts[0], part)
        if part.info.method.routing:
            raise AdapterError(f"{part.name} has gates of its own (method.routing)", "one without", "Train it without.")
        held = read_tensors(part.folder, read_info(part.folder))
        for name, task in part.tasks.items():
            if name in tasks:
                todo = f"Name the tasks: {name}-a={parts[0].name} {name}-b={part.name}."
                raise UsageError(f"two tasks are called {name}", "a name for each", todo)
            tasks[name] = task
            own = name if part.info.tasks else None
            if task.prompt_length:
                tensors[task_tensor(name)] = held[task_tensor(name) if part.info.tasks else PROMPT]
            start = concept_tensor("", own)
            for key in held if task.concepts is not None else ():
                if key.startswith(start):
                    tensors[concept_tensor(key.removeprefix(start), name)] = held[key]
        if "aspects" in part.info.parts and not any(name.startswith("aspects.") for name in tensors):
            tensors |= _aspects_of(part, held)
    if len(tasks) < 2:
        raise UsageError(f"there are {len(tasks)} tasks to combine", "two or more", "Name more adapters.")
    return write_tensors(Path(out), _together(parts, tasks), tensors)


def _part(named: str) -> _Part:
    """An adapter as the user named it, perhaps as NAME=ADAPTER."""
    name, equals, path = named.partition("=")
    if not equals or Path(named).exists():
        name, path = "", named
    elif not TASK_NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a task", "letters, digits, - and _")
    folder = find_adapter(path)
    info = read_info(folder)
    if not {"prompt", "concepts"} & set(info.parts):
        got = f"{path} has neither a soft prompt nor a concept bottleneck"
        raise AdapterError(got, "what masp train prompt or masp baseline wrote")
    if info.tasks:
        if name:
            raise UsageError(f"{path} holds several tasks, which have names", "", f"Leave {name}= out.")
        return _Part(path, folder, info, dict(info.tasks))
    return _Part(path, folder, info, {name or _name_of(info, path): info.as_task()})


def _name_of(info: AdapterInfo, path: str) -> str:
    """A name out of the data set's."""
    data = info.data.get("concepts") or info.data.get("prompt")
    name = re.sub(r"\W+", "-", data.name.casefold()).strip("-_") if data is not None else ""
    if not TASK_NAME.fullmatch(name):
        raise UsageError(f"{path} does not say what its task could be called", "a name", f"Name it: NAME={path}.")
    return name


def _check_fits(first: _Part, other: _Part) -> None:
    """Whether two adapters can share a backbone and aspects."""
    mine, theirs = first.info, other.info
    if mine.backbone.fingerprint != theirs.backbone.fingerprint:
        got = f"{other.name} was trained on {theirs.backbone.name} ({theirs.backbone.fingerprint[:12]}…)"
        wanted = f"{mine.backbone.name} ({mine.backbone.fingerprint[:12]}…), as {first.name}"
        raise AdapterError(got, wanted, "Combine adapters of one backbone.")
    if mine.aspects != theirs.aspects:
        got = f"{other.name} has the aspects {', '.join(theirs.aspects) or 'none'}"
        raise AdapterError(
            got, f"{', '.join(mine.aspects) or 'none'}, as {first.name}", "Train it on the same aspects."
        )
    for name in mine.aspects:
        if mine.aspects_sha256[name] != theirs.aspects_sha256[name]:
            got = f"the aspect {name} of {other.name} is another module than that of {first.name}"
            raise AdapterError(got, f"SHA-256 {mine.aspects_sha256[name][:12]}…", "Train it on the same aspects.")
    others = read_otherwise(mine.backbone.hashes, theirs.backbone.hashes)
    if others:
        got = f"{other.name} was trained with another {READING[others[0]]} than {first.name}"
        raise AdapterError(got, f"{mine.backbone.hashes[others[0]][:12]}…", "Combine adapters of one checkpoint.")
    if mine.image_transform != theirs.image_transform:
        raise AdapterError(f"{other.name} was trained with another image transform", f"that of {first.name}")


def _aspects_of(part: _Part, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter's aspects, once it is certain that they are what their hashes say."""
    for name in part.info.aspects:
        prefix = f"aspects.{name}."
        own = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
        if tensors_sha256(own) != part.info.aspects_sha256[name]:
            raise AdapterError(f"the aspect {name} of {part.name} is not what its hash says", "", "Copy it again.")
    return {key: value for key, value in held.items() if key.startswith("aspects.")}


def _together(parts: Sequence[_Part], tasks: dict[str, TaskRecord]) -> AdapterInfo:
    """The description of all: what concerns the aspects stays above, everything else is the tasks' own."""
    info, licenses = parts[0].info, {part.info.license for part in parts}
    task = next(iter(tasks.values()))
    kept = {
        name: {k: v for k, v in getattr(task, name).items() if k == "aspects"} for name in ("data", "seeds", "training")
    }
    metrics = {name: value for name, value in task.metrics.items() if name.startswith("aspects/")}
    emptied = {"prompt_length": 0, "labels": (), "results": (), "imported": {}, "metrics": metrics}
    emptied |= {"temperature": None, "concepts": None}
    license = licenses.pop() if len(licenses) == 1 else None
    known = [part.info.backbone.hashes for part in parts]  # what not all of them know, the whole does not know
    hashes = {name: digest for name, digest in known[0].items() if all(name in one for one in known)}
    backbone = info.backbone.model_copy(update={"hashes": hashes})
    about = {"license": license, "tasks": tasks, "backbone": backbone}
    return info.model_copy(update={**kept, **emptied, **about})
