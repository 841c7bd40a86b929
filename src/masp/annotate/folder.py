"""The folder that annotating writes into: who may write, what is done, and the batches that are finished.

While it goes on there is `run.json` and one small file for every finished batch in `progress`, each whole or absent.
What a reader of data sets looks for appears at the end, all of it made from those files, so that an interrupted run
and an undisturbed one leave the same bytes.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from masp.core.atomic_io import discard, remove_folder, remove_leftovers, write_file
from masp.core.errors import DataError, UsageError
from masp.training.run_dir import compare

FORMAT = 1
_BATCH = re.compile(r"batch-(\d{7})\.json")


class AnnotationFolder:
    """`out` while it is written: run.json, progress/batch-NNNNNNN.json."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.description = out / "run.json"
        self.progress = out / "progress"

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | None]:
        """Hold the folder for this process, and clear what a killed run left.

        Yields:
            The result, where the same run has come to its end here.

        Raises:
            UsageError: the folder holds something else, or another process is writing into it.
            DataError: it cannot be written.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.out, error) from error
        handle = os.open(self.out, os.O_RDONLY)
        try:
            self._lock(handle)
            before = self._before()
            if before is None:
                self._write({"format": FORMAT, "identity": dict(identity), "result": None})
            else:
                compare(before["identity"], identity, self.out)
            remove_leftovers(self.out)
            if self.progress.is_dir():
                remove_leftovers(self.progress)
            yield None if before is None else before["result"]
        finally:
            os.close(handle)

    def batches(self) -> dict[int, dict[str, Any]]:
        """The finished batches by number; one that cannot be read is made again."""
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(self.progress.iterdir()) if self.progress.is_dir() else ():
            match = _BATCH.fullmatch(path.name)
            if match is None:
                continue
            try:
                content = json.loads(path.read_bytes())
                found[int(match[1])] = {key: content[key] for key in ("versions", "answers", "unreadable")}
            except (OSError, ValueError, KeyError, TypeError):
                discard(path)
        return found

    def keep(self, number: int, batch: Mapping[str, Any]) -> None:
        """Write a finished batch.

        Raises:
            DataError: the disk refuses.
        """
        try:
            self.progress.mkdir(exist_ok=True)
            write_file(self.progress / f"batch-{number:07d}.json", json.dumps(batch).encode())
        except OSError as error:
            raise unwritable(self.progress, error) from error

    def finish(self, identity: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Record the result; the batches are then no longer needed."""
        self._write({"format": FORMAT, "identity": dict(identity), "result": dict(result)})
        self.tidy()

    def tidy(self) -> None:
        """Remove the batches."""
        if self.progress.is_dir():
            remove_folder(self.progress)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another command is writing into {self.out}", "one at a time", "Wait for it, or name another --out."
            ) from None

    def _before(self) -> dict[str, Any] | None:
        try:
            raw = self.description.read_bytes()
        except FileNotFoundError:
            if any(not path.name.startswith(".masp-") for path in self.out.iterdir()):
                raise UsageError(f"{self.out} is not empty", "a new folder", "Name another --out.") from None
            return None
        except OSError as error:
            raise DataError(f"{self.description} cannot be read ({error.strerror})", "", "Check the rights.") from None
        try:
            content = json.loads(raw)
            if content["format"] != FORMAT:
                raise ValueError("another format")
            return {"identity": dict(content["identity"]), "result": content["result"]}
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{self.description} is not that of `masp data annotate`", "a new folder", "Name another --out."
            ) from None

    def _write(self, content: Mapping[str, Any]) -> None:
        try:
            write_file(self.description, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise unwritable(self.out, error) from error


def unwritable(place: Path, error: OSError) -> DataError:
    """The error for a disk that refuses."""
    return DataError(
        f"{place} cannot be written ({error.strerror or error})",
        "",
        "Make room or name another --out, and run it again.",
    )
