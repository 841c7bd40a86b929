"""Checkpoints: the state of an interrupted run, of which only a complete one is ever loaded.

`<run>/checkpoints/step-00000120/` holds `tensors.safetensors`, `state.json` and `manifest.json`. The manifest gives the
size and SHA-256 of the other two, is written last, and the folder gets its name only when all three are on the disk.
Nothing in it is pickled. `metrics.jsonl` belongs to it: a checkpoint knows how long that file was.
"""

import json
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from masp.core.atomic_io import digest, remove_folder, remove_leftovers, with_usual_rights, write_folder
from masp.core.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: tensors by name, and everything else as JSON values."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many of the newest stay on the disk.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = max(1, keep)
        self._passed: set[Path] = set()  # those that `latest` could not use

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one checkpoint, whole or not at all, then remove those that are older than the last `keep`.

        Those that `latest` passed over go now too, and count for nothing: a run that goes on from before them would
        otherwise remove its own new ones instead.

        Raises:
            CheckpointError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        target = self.folder / f"step-{checkpoint.step:08d}"

        def fill(folder: Path) -> None:
            tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
            with_usual_rights(folder / TENSORS, lambda file: save_file(tensors, file))
            (folder / STATE).write_text(_json(checkpoint.state), encoding="utf-8")
            files = {
                name: {"size": (folder / name).stat().st_size, "sha256": digest(folder / name)}
                for name in (TENSORS, STATE)
            }
            manifest = {"format": FORMAT, "step": checkpoint.step, "files": files}
            (folder / MANIFEST).write_text(_json(manifest), encoding="utf-8")

        with writing(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_folder(target, fill)
            self._passed.discard(target)
            folders = [folder for folder in self._folders() if folder not in self._passed][: self.keep]
            for folder in self._folders():
                if folder not in folders:
                    remove_folder(folder)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None; damaged and incomplete ones are passed over with a warning."""
        for folder in self._folders():
            try:
                return _load(folder)
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                log.warning("checkpoint %s is passed over: %s", folder.name, error)
                self._passed.add(folder)
        return None

    def clean(self) -> None:
        """Remove what an interrupted writer left behind."""
        if self.folder.is_dir():
            remove_leftovers(self.folder)

    def _folders(self) -> list[Path]:
        """Folders that have a checkpoint's name, newest first."""
        if not self.folder.is_dir():
            return []
        result = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(result, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def left_out(store: CheckpointStore) -> list[str] | None:
    """The images that the run of the newest checkpoint left out, as seen from the data set's folder; None without one.

    So a run that goes on trains on the same images, whatever can be read by then.
    """
    checkpoint = store.latest()
    return None if checkpoint is None else checkpoint.state.get("left_out")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Within this context, what the disk refuses becomes an error about `target`.

    Raises:
        CheckpointError: it is full, read-only or otherwise refuses to be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unwritable(error, target) from error


def unwritable(error: Exception, target: Path) -> CheckpointError:
    """The error for a disk that is full, read-only or otherwise refuses to be written."""
    return CheckpointError(
        got=f"writing {target} failed: {error}",
        expected="a folder that can be written, with room",
        todo="Free some space or make the folder writable, then give the same command again: "
        "it goes on from what is complete.",
    )


def _load(folder: Path) -> Checkpoint:
    """Read one checkpoint after comparing every file with the manifest.

    Raises:
        ValueError: it is incomplete, damaged, or of a format that this version does not know.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError("it is incomplete (no manifest)")
    manifest = _read(folder / MANIFEST)
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["size"] or digest(path) != expected["sha256"]:
            raise ValueError(f"{name} is missing or damaged")
    return Checkpoint(manifest["step"], load_file(folder / TENSORS), _read(folder / STATE))


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no table")
    return content


def _json(content: Mapping[str, Any]) -> str:
    """JSON in one spelling; floats survive a round trip exactly."""
    return json.dumps(content, sort_keys=True, indent=1)


_OPTIMIZER, _PARAMETER, _BEST, _RANDOM = "optimizer/", "parameter/", "best/", "random/"


@dataclass
class TrainerState:
    """Everything that changes during a run beside tensors and random numbers.

    Attributes:
        step: finished steps; epoch and batch within it follow from it.
        examples: examples seen in them.
        seconds: time spent in them.
        validated: the step of the last validation, -1 before the first.
        stale: validations since the best one.
        stopped: whether early stopping has ended the run.
        best_step: the step of the best validation, -1 before the first.
        best_metrics: what that validation measured.
        window: sum of the losses since the last log line.
        window_examples: number of examples in it.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    validated: int = -1
    stale: int = 0
    stopped: bool = False
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    window: float = 0.0
    window_examples: int = 0


def state_dict(
    parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, best: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, random states included."""
    tensors = {f"{_PARAMETER}{name}": tensor.detach() for name, tensor in parameters.items()}
    tensors |= {f"{_BEST}{name}": tensor for name, tensor in best.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}/{key}"] = torch.as_tensor(value)
    tensors[f"{_RANDOM}cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"{_RANDOM}cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def load_state_dict(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors where they belong.

    Returns:
        The best parameters so far, empty before the first validation.

    Raises:
        CheckpointError: its trainable tensors are not those of this run.
    """
    result = {name.removeprefix(_PARAMETER): tensor for name, tensor in tensors.items() if name.startswith(_PARAMETER)}
    shapes = {name: tuple(tensor.shape) for name, tensor in result.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != expected:
        raise CheckpointError(
            f"the checkpoint holds the tensors {shapes}", f"{expected}", "Name another --out, or remove the folder."
        )
    load_parameters(result, parameters)
    for name, parameter in parameters.items():
        prefix = f"{_OPTIMIZER}{name}/"
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            # the count of steps stays where AdamW keeps it, on the CPU
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
    torch.set_rng_state(tensors[f"{_RANDOM}cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith(f"{_RANDOM}cuda")]
    if cuda and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    return {name.removeprefix(_BEST): tensor for name, tensor in tensors.items() if name.startswith(_BEST)}


@torch.no_grad()
def load_parameters(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy values into the parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def random_numbers() -> list[Any]:
    """The state of Python's own random numbers as JSON values."""
    version, words, gauss = random.getstate()
    return [version, list(words), gauss]


def set_random_numbers(state: list[Any]) -> None:
    """Restore what `random_numbers` returned."""
    random.setstate((state[0], tuple(state[1]), state[2]))


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, cut back on resume to the length that the checkpoint knew."""

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(min(length, path.stat().st_size))
            self._file.seek(0, os.SEEK_END)

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Add one line, which others can read at once, but which survives a power failure only after `sync`.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        line = json.dumps({"event": event, **values}) + "\n"
        with writing(self.path):
            self._file.write(line.encode())
            self._file.flush()

    def sync(self) -> int:
        """Bring all lines to the disk.

        Returns:
            The file's length in bytes, for the checkpoint.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:
            if error is None:  # otherwise the first error says it already
                raise unwritable(failure, self.path) from failure
