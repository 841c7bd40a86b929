"""The folder of one run: what lies where, who may write in it, and whether it may be gone on with."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from masp.adapters import library_versions
from masp.backbones.base import Backbone
from masp.backbones.files import READING
from masp.core.atomic_io import fingerprint, lock, remove_leftovers, write_file
from masp.core.errors import CheckpointError, UsageError
from masp.data.splits import ASPECTS_SPLITS, RUN_SPLITS
from masp.training.checkpoints import writing

FORMAT = 1
RUN = "run.json"
_READING = {name: f"backbone.{name}" for name in READING}


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the adapter's folder, validation metrics, and how fast it went."""

    adapter: Path
    metrics: dict[str, float]
    steps: int
    seconds: float
    examples_per_second: float


class RunFolder:
    """`out`: adapter/, checkpoints/, metrics.jsonl, run.json, quarantine.jsonl, splits.json, store.json.

    In stage 2 there is splits.aspects.json too, where the aspects were trained on images that were divided otherwise.

    `identity` in run.json is everything that decides the result, as a flat table; a folder is gone on with only where
    all of it is equal.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.adapter = out / "adapter"
        self.checkpoints = out / "checkpoints"
        self.metrics = out / "metrics.jsonl"
        self.description = out / RUN
        self.quarantine = out / "quarantine.jsonl"
        self.splits = out / RUN_SPLITS
        self.aspects_splits = out / ASPECTS_SPLITS
        self.store = out / "store.json"

    @contextmanager
    def opened(self, identity: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[TrainResult | None]:
        """Hold the folder for this process (see `held`).

        Yields:
            The result, where the same run has already finished here and its adapter is still there.
        """
        foreign = [path.name for path in (self.adapter, self.checkpoints) if path.exists()]
        problem = f"{self.out} holds {' and '.join(foreign)}, but no run.json that says where they come from"
        about = {"config": dict(config), "versions": library_versions()}
        with held(self.out, identity, about, problem if foreign else None, self.checkpoints) as values:
            if values is None or not (self.adapter / "adapter.json").is_file():
                yield None
            else:
                yield TrainResult(adapter=self.adapter, **values)

    def kept(self) -> str | None:
        """What an earlier start of this run kept between epochs: none, features or prefix; None before it is known.

        Computed with another store, the last bits of a run would be others, so a run stays with its own.
        """
        try:
            kept = json.loads(self.store.read_text(encoding="utf-8"))["kept"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return kept if kept in ("none", "features", "prefix") else None

    def keep(self, kept: str) -> None:
        """Record what is kept.

        Raises:
            CheckpointError: the disk refuses to be written.
        """
        with writing(self.store):
            write_file(self.store, (json.dumps({"kept": kept}) + "\n").encode())

    def finish(self, result: TrainResult) -> None:
        """Record in run.json that the run came to its end."""
        values = asdict(result)
        del values["adapter"]
        finish(self.out, values, library_versions())


@contextmanager
def held(
    out: Path, identity: Mapping[str, Any], about: Mapping[str, Any], foreign: str | None, work: Path
) -> Iterator[Mapping[str, Any] | None]:
    """Hold a folder for this process: make it, lock it, clear what a killed run left, compare the identity.

    Args:
        out: the folder.
        identity: everything that decides the result.
        about: what else run.json says of the run.
        foreign: what is wrong with the folder where it has no run.json; None where it may be used.
        work: the folder in it where unfinished work lies.

    Yields:
        The result, where the same run has come to its end here.

    Raises:
        CheckpointError: the folder cannot be written, or another process is using it.
        UsageError: the folder belongs to a run that differs from this one, or to something else.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file", "a folder", "Name another place.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        if not lock(handle):
            todo = "Wait for it, or name another --out."
            raise CheckpointError(f"another run is writing into {out}", "one at a time", todo)
        before = _description(out) if (out / RUN).exists() else None
        if before is not None:
            compare(before["identity"], identity, out)
        elif foreign is not None:
            raise UsageError(foreign, "a new folder, or that of the same run", "Name another --out.")
        for folder in (out, work):
            if folder.is_dir():
                remove_leftovers(folder)
        if before is None:
            _write(out, {"format": FORMAT, "identity": dict(identity), "result": None, **about})
        yield None if before is None else before["result"]
    finally:
        os.close(handle)


def finish(out: Path, result: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """Record in run.json that a run came to its end, and with which libraries.

    Raises:
        CheckpointError: the disk refuses to be written.
    """
    _write(out, {**_description(out), "result": dict(result), "versions": dict(versions)})


def _description(out: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        content = json.loads((out / RUN).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        return {**content, "identity": dict(content["identity"]), "result": content["result"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            got=f"{out / RUN} cannot be read: {error}",
            expected="the description of a run, as this version writes it",
            todo="Name another --out, or remove the folder.",
        ) from error


def _write(out: Path, description: Mapping[str, Any]) -> None:
    with writing(out / RUN):
        write_file(out / RUN, (json.dumps(description, indent=2, sort_keys=True) + "\n").encode())


def reading(backbone: Backbone) -> dict[str, str]:
    """Hashes of how a backbone reads images and texts, for an identity; without those that may be others."""
    hashes = backbone.hashes()
    return {_READING[name]: digest for name, digest in hashes.items() if name not in backbone.accepted}


def alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two identities are the same; how images and texts are read counts where both say it."""
    return not differences(before, now)


def hash_of(identity: Mapping[str, Any]) -> str:
    """One hash of an identity, for what lies in a folder whose identity was compared: so without `reading`."""
    content = {key: value for key, value in identity.items() if key not in _READING.values()}
    return fingerprint(content)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of two identities whose values differ, in order; how images and texts are read counts as in `alike`."""
    common = before.keys() & now.keys()
    keys = [key for key in sorted(before.keys() | now.keys()) if key in common or key not in _READING.values()]
    return [key for key in keys if before.get(key) != now.get(key)]


def compare(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Make sure that two runs are the same one.

    Raises:
        UsageError: they differ; it names each difference.
    """
    changed = differences(before, now)
    changes = [f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed]
    accept = ",".join(name for name, key in _READING.items() if key in changed)
    if changes:
        raise UsageError(
            got=f"{out} belongs to a run with another configuration ({'; '.join(changes)})",
            expected="the same configuration, to go on with that run",
            todo="Name another --out, or change it back."
            + f" Or accept the backbone's files as they are now: backbone.accept=[{accept}]." * bool(accept),
        )
