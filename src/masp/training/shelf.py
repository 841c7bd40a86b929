"""Tensors kept on the disk between runs: each group one safetensors file, named by a hash of all it depends on.

There is no index: a name is found or it is not. So nothing can contradict the files, readers need no lock, and two runs
that build the same group write the same bytes and rename them over each other. A file is written aside, flushed and
renamed; it carries a checksum of every tensor, and one that does not fit is removed and computed again.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masp.errors import MaspError
from masp.storage import TEMPORARY, discard, flush, with_usual_rights

log = logging.getLogger(__name__)

FORMAT = "1"
GIGA = 1024**3
ABANDONED = 3600.0  # seconds after which a file that was never finished is removed


@dataclass(frozen=True)
class Group:
    """Tensors that are written together, and texts beside them."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str]


class Shelf:
    """A folder of groups, bounded in size; the ones not used for longest make room.

    Args:
        folder: made if it is not there; several runs may share it.
        budget: bytes that all groups together may take.

    Raises:
        MaspError: the folder cannot be written.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self._used: set[str] = set()  # names of this run, which never make room for one another
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"{TEMPORARY}*"):
                if _age(path) > ABANDONED:
                    discard(path)
        except OSError as error:
            raise _unwritable(error, folder) from error

    def room(self) -> int:
        """Bytes that this run may still take: of the budget, and of what the disk has left."""
        sizes = {path.stem: size for _, path, size in self._found()}
        own = sum(size for name, size in sizes.items() if name in self._used)
        return min(self.budget - own, shutil.disk_usage(self.folder).free + sum(sizes.values()) - own)

    def load(self, key: str) -> Group | None:
        """A group as it was saved, mapped into memory; None if it is not there or damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                label = json.loads((file.metadata() or {}).get("masp", "{}"))
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            return self._damaged(path, str(error))
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        if label.get("key") != key or label.get("checksums") != sums:
            return self._damaged(path, "its checksums do not fit")
        self._used.add(key)
        try:
            os.utime(path)
        except OSError:
            log.debug("cannot mark %s as used", path.name)
        return Group(tensors, label["notes"])

    def save(self, key: str, group: Group) -> Group:
        """Write a group and give it back as `load` would.

        Raises:
            MaspError: it does not fit the budget, or the disk is full; nothing else is harmed.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in group.tensors.items()}
        self._make_room(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        label = json.dumps({"key": key, "checksums": sums, "notes": dict(group.notes)}, sort_keys=True)
        aside = self.folder / f"{TEMPORARY}{os.getpid()}-{key}"
        try:
            # one entry: the order of several is not fixed
            with_usual_rights(aside, lambda file: save_file(tensors, file, {"masp": label}))
            flush(aside)
            aside.replace(self._path(key))
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            discard(aside)
            raise _unwritable(error, self.folder) from error
        self._used.add(key)
        return self.load(key) or group

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _found(self) -> list[tuple[float, Path, int]]:
        """When each group was last used, its file, its size."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except OSError:
                continue  # another run has just removed it
            if not path.name.startswith(TEMPORARY):
                found.append((status.st_mtime, path, status.st_size))
        return found

    def _damaged(self, path: Path, reason: str) -> None:
        log.warning("%s is damaged and is computed again: %s", path.name, " ".join(reason.split()))
        discard(path)

    def _make_room(self, size: int) -> None:
        """Remove groups of other runs, the longest unused first, until `size` more bytes fit budget and disk."""
        found = self._found()
        total = sum(entry[2] for entry in found)
        for _, path, own in sorted(found):
            if total + size <= self.budget and size <= shutil.disk_usage(self.folder).free:
                return
            if path.stem not in self._used:
                discard(path)
                total -= own
        if total + size > self.budget:
            raise MaspError(
                f"the store needs {(total + size) / GIGA:.3g} GB",
                f"at most store_disk_gb = {self.budget / GIGA:.3g}",
                "Raise it, or set store=auto, which keeps the largest that fits.",
            )


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 where it is gone, as its writer has just given it its name."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def key_of(parts: Mapping[str, object]) -> str:
    """The name of a group, from everything its content depends on, as JSON values."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _checksum(tensor: Tensor) -> str:
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
    return f"{zlib.crc32(content):08x}:{tensor.dtype}:{tuple(tensor.shape)}"


def _unwritable(error: Exception, folder: Path) -> MaspError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return MaspError(
        f"the store in {folder} cannot be written: {reason}",
        "a disk with room",
        "Free some space and run the same command again: it goes on. Or name another store_dir.",
    )
