"""Tensors kept on the disk between runs: each group one safetensors file, named by a hash of all it depends on.

There is no index: a name is found or it is not. So nothing can contradict the files, and two runs that build the same
group write the same bytes and rename them over each other. A file is written aside, flushed and renamed; it carries a
checksum of every tensor, and one that does not fit is removed and computed again.

What is right needs no lock. Only who makes room holds the folder for that moment, and who begins to use a group: so
none goes that a process uses which lives. (A folder on a network disk may be held against its own machine only.)
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masp.core.atomic_io import TEMPORARY, discard, flush, with_usual_rights
from masp.core.errors import MaspError
from masp.training.uses import Uses

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
    """A folder of groups, bounded in size; the ones not used for longest make room.

    A group that any process uses which lives makes room for nothing. The bound is kept by all processes together; as
    each looks for room before it writes, they may exceed it for a moment by the one group that each of them is writing.

    Args:
        folder: made if it is not there; several runs may share it.
        budget: bytes that all groups together may take.

    Raises:
        MaspError: the folder cannot be written.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self._uses = Uses(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._held():
                self._uses.others()  # clears up behind the dead
            for path in folder.glob(f"{TEMPORARY}*"):
                if _age(path) > ABANDONED:
                    discard(path)
        except OSError as error:
            raise _unwritable(error, folder) from error

    def close(self) -> None:
        """Let others make room of what was used here; maps of it stay good."""
        self._uses.close()

    def room(self, keys: Collection[str] | None = None) -> int:
        """Bytes that this run may still take: of the budget, and of what the disk has left.

        Args:
            keys: all that it is going to use. What other processes use besides is no room. None: nobody knows yet, so
                whatever they use counts as room, as it may be the same.
        """
        try:
            with self._held():
                others = set() if keys is None else self._uses.others() - set(keys)
            sizes = {path.stem: size for _, path, size in self._found()}
            taken = sum(size for name, size in sizes.items() if name in self._uses.own | others)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise _unwritable(error, self.folder) from error
        return min(self.budget - taken, free + sum(sizes.values()) - taken)

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
            with self._held(fcntl.LOCK_SH):
                self._uses.add(key)
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
        try:
            os.utime(path)
        except OSError:
            log.debug("cannot mark %s as used", path.name)
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
            with self._held():
                self._make_room(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), key)
                self._uses.add(key)
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

    @contextmanager
    def _held(self, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Hold the folder for a moment, alone or with others; a disk without locks is used without."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, how)
            except OSError as error:
                log.debug("%s cannot be locked: %s", self.folder, error)
            yield
        finally:
            os.close(handle)

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

    def _make_room(self, size: int, key: str) -> None:
        """Remove groups that nobody uses, the longest unused first, until `size` more bytes fit budget and disk."""
        found = [entry for entry in sorted(self._found()) if entry[1].stem != key]  # that one is replaced
        total = size + sum(own for *_, own in found)
        others: set[str] | None = None
        for _, path, own in found:
            if total <= self.budget and size <= shutil.disk_usage(self.folder).free:
                return
            others = self._uses.others() if others is None else others
            if path.stem not in self._uses.own | others:
                discard(path)
                total -= 0 if path.exists() else own  # it may not be ours to remove
        if total > self.budget:
            busy = sum(own for _, path, own in found if path.stem in (others or set()) - self._uses.own)
            raise _too_small(total, self.budget, busy)


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
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


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


def _too_small(needed: int, budget: int, busy: int) -> MaspError:
    return MaspError(
        f"the store needs {needed / GIGA:.3g} GB"
        + (f", with {busy / GIGA:.3g} that other runs are using" if busy else ""),
        f"at most store_disk_gb = {budget / GIGA:.3g}",
        ("Wait until they have ended, raise it" if busy else "Raise it")
        + ", or set store=auto, which keeps the largest that fits.",
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
