"""Checkpoints: the state of an interrupted run, of which only a complete one is ever loaded.

`<run>/checkpoints/step-00000120/` holds `tensors.safetensors`, `state.json` and `manifest.json`. The manifest gives the
size and SHA-256 of the other two, is written last, and the folder gets its name only when all three are on the disk.
Nothing in it is pickled.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

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

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_folder(target, fill)
            self._passed.discard(target)
            kept = [folder for folder in self._folders() if folder not in self._passed][: self.keep]
            for folder in self._folders():
                if folder not in kept:
                    remove_folder(folder)
        except (OSError, SafetensorError) as error:
            raise unwritable(error, target) from error
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
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def unwritable(error: Exception, target: Path) -> CheckpointError:
    """The error for a disk that is full, read-only or otherwise refuses to be written."""
    return CheckpointError(
        got=f"writing {target} failed: {error}",
        expected="a folder that can be written, with room for one more checkpoint",
        todo="Free some space or make the folder writable, then give the same command again: "
        "it goes on from the last complete checkpoint.",
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
