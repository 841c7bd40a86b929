"""Tensors kept on the disk between runs: each group one safetensors file, named by a hash of all it depends on.

There is no index: a name is found or it is not. So nothing can contradict the files, and two runs that build the same
group write the same bytes and rename them over each other. A file is written aside, flushed and renamed; it carries a
checksum of every tensor, and one that does not fit is removed and computed again. Nothing else is ever removed: whoever
needs room removes files, which are computed again when they are needed.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masp.core.atomic_io import TEMPORARY, discard, fingerprint, flush, with_usual_rights
from masp.core.errors import MaspError

log = logging.getLogger(__name__)

FORMAT = "1"
GIGA = 1024**3
ABANDONED = 3600.0  # seconds after which a file that was never finished is removed


@dataclass(frozen=True)
class CacheGroup:
    """Tensors that are written together, and texts beside them."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str]


class DiskCache:
    """A folder of groups, bounded in size.

    The bound is kept by all processes together; as each looks for room before it writes, they may exceed it for a
    moment by the one group that each of them is writing.

    Args:
        folder: made if it is not there; several runs may share it.
        budget: bytes that all groups together may take.

    Raises:
        MaspError: the folder cannot be written.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"{TEMPORARY}*"):
                if _age(path) > ABANDONED:
                    discard(path)
        except OSError as error:
            raise _unwritable(error, folder) from error

    def room(self, keys: Collection[str] = ()) -> int:
        """Bytes that groups of these names may take, those that are there included: of the budget, and of the disk."""
        try:
            sizes = self._sizes()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise _unwritable(error, self.folder) from error
        own = sum(size for name, size in sizes.items() if name in keys)
        return min(self.budget - sum(sizes.values()), free) + own

    def load(self, key: str) -> CacheGroup | None:
        """A group as it was saved, mapped into memory; None if it is not there or damaged.

        Damage is what the content shows: a bad header, a short file, another checksum. Such a file is removed. A file
        that cannot be read for any other reason (too many open files, no memory, no rights, a failing disk) may be
        whole: it stays, and the reason is told. It is not taken for missing, because what is then computed again would
        have to be written under the same conditions.

        Raises:
            MaspError: the file is there and cannot be read.
        """
        path = self._path(key)
        try:
            label, tensors = _content(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError) as error:
            return self._damaged(path, str(error))
        except (OSError, RuntimeError) as error:  # torch says by the latter that it cannot map a file
            raise _unreadable(error, path) from error
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        if label.get("key") != key or label.get("checksums") != sums:
            return self._damaged(path, "its checksums do not fit")
        return CacheGroup(tensors, label["notes"])

    def save(self, key: str, group: CacheGroup) -> CacheGroup:
        """Write a group and give it back as `load` would.

        Raises:
            MaspError: it does not fit the budget, or the disk is full; nothing else is harmed.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in group.tensors.items()}
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        label = json.dumps({"key": key, "checksums": sums, "notes": dict(group.notes)}, sort_keys=True)
        aside = self.folder / f"{TEMPORARY}{os.getpid()}-{key}"
        try:
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            total = size + sum(own for name, own in self._sizes().items() if name != key)  # that one is replaced
            if total > self.budget:
                raise _full(total, self.budget, self.folder)
            # one entry: the order of several is not fixed
            with_usual_rights(aside, lambda file: save_file(tensors, file, {"masp": label}))
            flush(aside)
            aside.replace(self._path(key))
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            discard(aside)
            raise _unwritable(error, self.folder) from error
        return self.load(key) or group

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _sizes(self) -> dict[str, int]:
        """Bytes of every group by its name."""
        sizes = {}
        for path in self.folder.glob("*.safetensors"):
            try:
                sizes[path.stem] = path.stat().st_size
            except OSError:
                continue  # another process has just removed it
        return {name: size for name, size in sizes.items() if not name.startswith(TEMPORARY)}

    def _damaged(self, path: Path, reason: str) -> None:
        log.warning("%s is damaged and is computed again: %s", path.name, " ".join(reason.split()))
        discard(path)


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is written in a file.

    Raises:
        SafetensorError: its header is bad, or does not fit its length.
        ValueError: there is no header, or no label in it.
        OSError: it cannot be read.
        RuntimeError: it cannot be mapped.
    """
    with path.open("rb") as file:  # the library would call whatever keeps it from opening a file "not found"
        if not file.read(1):
            raise ValueError("it is empty")
    with safe_open(path, framework="pt") as file:
        label = json.loads((file.metadata() or {}).get("masp", "{}"))
        return label, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 where it is gone, as its writer has just given it its name."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def key_of(parts: Mapping[str, object]) -> str:
    """The name of a group, from everything its content depends on, as JSON values."""
    return fingerprint({"format": FORMAT, **parts})[:40]


def _checksum(tensor: Tensor) -> str:
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
    return f"{zlib.crc32(content):08x}:{tensor.dtype}:{tuple(tensor.shape)}"


def _unwritable(error: Exception, folder: Path) -> MaspError:
    return MaspError(
        f"the store in {folder} cannot be written: {_reason(error)}",
        "a disk with room",
        "Free some space and run the same command again: it goes on. Or name another store_dir.",
    )


def _unreadable(error: Exception, path: Path) -> MaspError:
    return MaspError(
        f"{path.name} in the store {path.parent} cannot be read: {_reason(error)}",
        "a file that this process may open and map into memory",
        "It was left as it is. See to the limit of open files (ulimit -n), the memory, the rights or the disk, and run "
        "the same command again: it goes on. Or name another store_dir.",
    )


def _full(needed: int, budget: int, folder: Path) -> MaspError:
    return MaspError(
        f"the store needs {needed / GIGA:.3g} GB, with all that lies in {folder}",
        f"at most store_disk_gb = {budget / GIGA:.3g}",
        "Raise it, remove files there (what is still needed is computed again), name another store_dir, or set "
        "store=auto, which keeps the largest that fits.",
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
