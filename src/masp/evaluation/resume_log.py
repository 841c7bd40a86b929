"""Answers on the disk while an evaluation runs, so that an interrupted one goes on where it stopped.

One line per batch, brought to the disk before the next batch begins. The first line, and the name of the file, say
which run it is; a file of another run is never read. What comes from a line that was cut short on is asked again.
"""

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from masp.core.atomic_io import flush
from masp.core.errors import UsageError
from masp.evaluation.predictions import LabelledPrediction
from masp.evaluation.result import SkippedImage

log = logging.getLogger(__name__)

FORMAT = 1
ENDING = ".partial.jsonl"


@dataclass(frozen=True)
class LoggedAnswer:
    """One batch: what was said about its images, which of them could not be read, and the seconds it took."""

    answers: tuple[LabelledPrediction, ...]
    left_out: tuple[SkippedImage, ...]
    seconds: float

    @property
    def images(self) -> set[str]:
        """All images of the batch."""
        return {one.image for one in self.answers} | {one.image for one in self.left_out}


class ResumeLog:
    """The batches of one run, those from before an interruption and those that are added.

    Args:
        folder: where the result will be.
        run: hash of all that the answers depend on.

    Attributes:
        found: the batches that were on the disk already.

    Raises:
        UsageError: another process is writing it.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{run[:12]}{ENDING}"
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self.found, end = self._read(run)
            self._file.truncate(end)
            if end == 0:
                self._write({"format": FORMAT, "run": run})
                flush(folder)
        except BaseException:
            self._file.close()
            raise
        if self.found:
            log.info("going on after %d batches, from %s", len(self.found), self.path.name)

    def add(self, asked: LoggedAnswer) -> None:
        """Brings one batch to the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self._write(asdict(asked))

    def forget(self, kept: int) -> None:
        """Keeps the first batches only, and drops the others from the disk.

        Raises:
            OSError: the disk cannot be written.
        """
        self._file.seek(0)
        lines = self._file.readlines()[: 1 + kept]
        self._file.truncate(sum(map(len, lines)))
        self.found = self.found[:kept]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            got = f"another process is writing the same evaluation into {self.path.parent}"
            raise UsageError(got, "one at a time", "Wait for it, or name another --out.") from None

    def _read(self, run: str) -> tuple[tuple[LoggedAnswer, ...], int]:
        """The whole batches of this run, and where the last of them ends."""
        self._file.seek(0)
        lines = self._file.readlines()
        if not lines or _content(lines[0]) != {"format": FORMAT, "run": run}:
            return (), 0
        found: list[LoggedAnswer] = []
        end = len(lines[0])
        for line in lines[1:]:
            asked = _asked(_content(line))
            if asked is None:
                break
            found.append(asked)
            end += len(line)
        return tuple(found), end

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write((json.dumps(content, allow_nan=False) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "ResumeLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def remove_journals(folder: Path) -> None:
    """Removes what is not needed any more once the result is on the disk, that of other runs included."""
    for path in folder.glob(f"{'[0-9a-f]' * 12}{ENDING}"):
        path.unlink(missing_ok=True)


def _content(line: bytes) -> object:
    """What a line holds; None where it was cut short or never reached the disk."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _asked(content: object) -> LoggedAnswer | None:
    if not isinstance(content, dict):
        return None
    try:
        answers = tuple(LabelledPrediction(**row) for row in content["answers"])
        left_out = tuple(SkippedImage(**row) for row in content["left_out"])
        return LoggedAnswer(answers, left_out, float(content["seconds"]))
    except (KeyError, TypeError, ValueError):
        return None
