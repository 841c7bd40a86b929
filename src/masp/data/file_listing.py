"""Listing folders in an order that is the same everywhere, and naming images without holding them all in memory."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from masp.core.errors import DataError, nearest
from masp.data.images import SUFFIXES

_CLUTTER = frozenset({"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini"})


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files directly inside a folder, each sorted by name; hidden ones and clutter left out.

    Raises:
        DataError: the folder is missing, is not a folder or cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _left_behind(entry.name):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise unreadable(folder, error) from None
    return [folder / name for name in sorted(folders)], [folder / name for name in sorted(files)]


def _left_behind(name: str) -> bool:
    """Whether a name is hidden (.DS_Store, ._photo.jpg, .ipynb_checkpoints), or one that systems leave in folders."""
    return name.startswith(".") or name.casefold() in _CLUTTER


def left_behind(folders: Iterable[str | Path]) -> int:
    """How many entries of folders `listing` leaves out; folders that cannot be read have none."""
    count = 0
    for folder in folders:
        try:
            count += sum(map(_left_behind, os.listdir(folder)))  # noqa: PTH208  (names only, of many folders)
        except OSError:
            continue
    return count


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a folder or file that cannot be read, with a neighbour of a similar name where there is one."""
    hint = "Check the path and the rights."
    try:
        neighbours = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        neighbours = []
    near = nearest(path.name, neighbours) if isinstance(error, FileNotFoundError) else None
    if near is not None:
        hint = f"Did you mean '{near}'?"
    return DataError(f"{path} cannot be read ({error.strerror})", "", hint)


def is_image_file(path: Path) -> bool:
    """Whether a file is named like an image that can be read."""
    return path.suffix.lower() in SUFFIXES


def images_from(
    paths: Iterable[str | Path],
    stdin: Iterable[str] | None = None,
    lost: Callable[[str, DataError], object] | None = None,
) -> Iterator[Path]:
    """Every image that the arguments name, one by one.

    A file stands for itself, whatever its suffix. A folder stands for the images below it, folder by folder, sorted.
    "@list.txt" stands for the lines of a file and "-" for the lines of standard input, each a file or a folder seen
    from the current folder; blank lines are skipped. Lines may name files that do not exist: whoever opens them finds
    out. Only the names of one folder at a time are in memory.

    Args:
        paths: what the user typed.
        stdin: lines for "-"; the process's own standard input when left out.
        lost: is told of a line of a list whose folder cannot be read or contains itself, and the next line follows;
            without it such a line is an error.

    Raises:
        DataError: an argument names nothing, a folder or list cannot be read, or a folder contains itself.
    """
    for argument in paths:
        text = os.fspath(argument)
        if text == "-":
            yield from _from_lines(sys.stdin if stdin is None else stdin, lost)
        elif text.startswith("@"):
            yield from _from_list(Path(text[1:]), lost)
        elif "://" in text:
            raise DataError(f"{text:.200} is a URL", "a file or a folder", "Download the image and name the file.")
        else:
            yield from _from_argument(Path(text))


def _from_argument(path: Path) -> Iterator[Path]:
    try:
        path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise DataError(f"{str(path)!r:.80} is not a path", "a file or a folder", "Check the name.") from None
    yield from _expanded(path)


def _from_list(file: Path, lost: Callable[[str, DataError], object] | None) -> Iterator[Path]:
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            yield from _from_lines(lines, lost)
    except OSError as error:
        raise unreadable(file, error) from None


def _from_lines(lines: Iterable[str], lost: Callable[[str, DataError], object] | None) -> Iterator[Path]:
    try:
        for line in lines:
            name = line.rstrip("\r\n")
            if not name.strip():
                continue
            try:
                yield from _expanded(Path(name))
            except DataError as error:
                if lost is None:
                    raise
                lost(name, error)
    except UnicodeDecodeError:
        raise DataError("the list of images is not text", "one path per line, in UTF-8", "Save it as UTF-8.") from None


def _expanded(path: Path) -> Iterator[Path]:
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):  # a name no file can have, or one that may not be looked at
        is_folder = False
    if is_folder:
        yield from _below(path)
    else:
        yield path


def _below(top: Path) -> Iterator[Path]:
    """Images below a folder, those of a folder before those of the folders in it."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(top, frozenset())]  # a folder, and those it lies in
    while waiting:
        folder, above = waiting.pop()
        key = _identity(folder)
        if key in above:
            raise DataError(f"{folder} is a link to a folder it lies in", "folders without cycles", "Remove the link.")
        folders, files = listing(folder)
        yield from filter(is_image_file, files)
        waiting += [(inner, above | {key}) for inner in reversed(folders)]


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise unreadable(folder, error) from None
    return status.st_dev, status.st_ino
