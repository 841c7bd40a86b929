"""Files and folders that are whole or absent.

Everything is written under a temporary name in the folder where it will live, flushed to the disk, and renamed into
place; then the folder's own entry is flushed. A process that dies at any moment leaves the old content, the new
content, or a name that starts with `TEMPORARY`, which the next start removes.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

TEMPORARY = ".masp-partial-"
ASIDE = f"{TEMPORARY}old-"  # a folder that was about to be replaced


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """Put `content` at `path`, replacing what was there in one step.

    Raises:
        OSError: the disk is full or cannot be written; the old file is untouched.
    """
    partial = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush(path.parent)
    except BaseException:
        discard(partial)
        raise


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write files into a new folder that takes the place of `folder` once all of them are on the disk.

    Where `folder` exists it is moved aside first and removed last, so that there is never a mixture of the two.

    Raises:
        OSError: the disk is full or cannot be written; what was at `folder` is untouched.
    """
    partial = folder.with_name(f"{TEMPORARY}{folder.name}")
    aside = folder.with_name(f"{ASIDE}{folder.name}")
    discard(partial)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        for path in sorted(partial.iterdir()):
            flush(path)
        flush(partial)
        if folder.exists():
            discard(aside)
            folder.replace(aside)
        partial.replace(folder)
        flush(folder.parent)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.replace(folder)
        discard(partial)
        raise
    discard(aside)


def with_usual_rights(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a new file, with the rights that any new file has here (the umask's).

    The safetensors library makes files that only their owner may read, which nobody expects of a shared folder.
    """
    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    write(path)
    path.chmod(rights)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a death half-way leaves a temporary name, never half a folder under its own name."""
    doomed = folder.with_name(f"{TEMPORARY}gone-{folder.name}")
    discard(doomed)
    folder.replace(doomed)
    discard(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted writer left directly inside `folder`; put back what it had only moved aside."""
    for path in sorted(folder.glob(f"{TEMPORARY}*")):
        original = path.with_name(path.name.removeprefix(ASIDE))
        if path.name.startswith(ASIDE) and not original.exists():
            path.replace(original)
            continue
        log.info("removing %s, left by an interrupted run", path.name)
        discard(path)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("could not remove %s: %s", path.name, error.strerror)


def lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; where another process holds it, wait for that, or say False."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def fingerprint(content: object, sort_keys: bool = True) -> str:
    """SHA-256 of JSON values, in hexadecimal; unless they are to stay as they are, the order of keys is no matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=sort_keys).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
