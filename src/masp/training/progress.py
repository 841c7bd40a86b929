"""What a run says while it goes: a bar for people, JSON lines for machines."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from masp.core.progress import Bar
from masp.training.checkpoints import unwritable

__all__ = ["Bar", "MetricsFile"]


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, cut back on resume to the length that the checkpoint knew."""

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        try:
            self._file = path.open("ab")
            self._file.truncate(min(length, path.stat().st_size))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise unwritable(error, path) from error

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Add one line, which others can read at once, but which survives a power failure only after `sync`.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        line = json.dumps({"event": event, **values}) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise unwritable(error, self.path) from error

    def sync(self) -> int:
        """Bring all lines to the disk.

        Returns:
            The file's length in bytes, for the checkpoint.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(error, self.path) from error
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
