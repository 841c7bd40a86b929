"""Who uses what on a shelf: each process names its groups in a file that it holds locked for as long as it lives.

A lock ends with its process, however that ends. So a file that nobody holds is what a killed process left, and is
removed. On a disk without locks nothing is known of other processes.
"""

import fcntl
import logging
import os
import weakref
from pathlib import Path
from uuid import uuid4

from masp.core.atomic_io import discard

log = logging.getLogger(__name__)

NAMED = ".masp-uses-"


class Uses:
    """The groups that one shelf uses, as the others see them.

    Args:
        folder: the shelf's.

    Attributes:
        own: names of the groups.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own: set[str] = set()
        self._path: Path | None = None
        self._handle = -1
        self._end: weakref.finalize | None = None

    def add(self, name: str) -> None:
        """Mark a group as used, before it is opened. The caller holds the folder, alone or with others."""
        if name in self.own:
            return
        self.own.add(name)
        try:
            self._begin()
            os.write(self._handle, f"{name}\n".encode())
        except OSError as error:
            log.debug("other processes do not see what is used in %s: %s", self.folder, error)

    def others(self) -> set[str]:
        """What all others use that live, other shelves of this process among them. The caller holds the folder alone.

        Files of the dead are removed.
        """
        paths = [path for path in self.folder.glob(f"{NAMED}*") if path != self._path]
        return set().union(*map(_named, paths))

    def close(self) -> None:
        """Let everything go; also done where this object is lost, or the process ends."""
        self.own.clear()
        if self._end is not None:
            self._end()
        self._path, self._end = None, None

    def _begin(self) -> None:
        """Open the file. Nobody removes it before it is locked, as the folder is held meanwhile."""
        if self._path is not None:
            return
        path = self.folder / f"{NAMED}{os.getpid()}-{uuid4().hex[:8]}"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._path = path
        self._end = weakref.finalize(self, _ended, self._handle, path, os.getpid())
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _ended(handle: int, path: Path, owner: int) -> None:
    os.close(handle)
    if os.getpid() == owner:  # not in a fork of it
        discard(path)


def _named(path: Path) -> set[str]:
    """The names in a file, if its process lives."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return set(file.read().split())
    except OSError as error:  # it has just gone, or the disk has no locks
        log.debug("%s says nothing: %s", path.name, error)
        return set()
    discard(path)
    return set()
