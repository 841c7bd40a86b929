"""The account of files that could not be read."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masp.core.errors import DataError

log = logging.getLogger(__name__)

Fault = Literal["file", "row", "label", "annotation", "picture"]
"""What is wrong: a file, a row of a list, its label, the annotation it names, or the image it names."""


@dataclass(frozen=True)
class Rejected:
    """A file that was left out, why, and what kind of fault it is."""

    path: Path
    reason: str
    fault: Fault = "file"


class BadFiles:
    """The account of a pass over files: read = used + quarantined, exactly.

    Stops the pass when more than `share` of all its files are bad, or `patience` in a row, or, if `strict`, at the
    first one. A single bad file stops nothing otherwise, however few the others are. The share is of `total`, so that
    two bad files at the beginning of a long pass do not end it; where the total is not known, it is checked at the end.

    Args:
        strict: whether the first bad file stops the pass.
        share: how much of the files may be bad.
        patience: how many may be bad in a row.
        total: how many files the pass will look at; None if nobody knows yet.
        tolerant: never stop, whatever is bad, and leave the log alone: somebody reads the account afterwards.

    Attributes:
        used: files that were good.
        rejected: files that were not, with their reasons.
    """

    def __init__(
        self,
        strict: bool = False,
        share: float = 0.01,
        patience: int = 100,
        total: int | None = None,
        tolerant: bool = False,
    ) -> None:
        self.strict = strict
        self.share = share
        self.patience = patience
        self.total = total
        self.tolerant = tolerant
        self.used = 0
        self.rejected: list[Rejected] = []
        self._in_a_row = 0

    @property
    def read(self) -> int:
        """Files that were looked at."""
        return self.used + len(self.rejected)

    def accept(self, count: int = 1) -> None:
        """Count good files."""
        if count:
            self._in_a_row = 0
        self.used += count

    def reject(self, path: Path, reason: str, fault: Fault = "file") -> None:
        """Count a bad file.

        Raises:
            DataError: too many were bad, or `strict` is set.
        """
        self.rejected.append(Rejected(path, reason, fault))
        if self.tolerant:
            return
        self._in_a_row += 1
        log.warning("left out %s: %s", path, reason)
        if self.strict:
            raise DataError(f"{path} cannot be used: {reason}", "", "Repair or remove it, or turn strict off.")
        if self._in_a_row >= self.patience:
            raise DataError(
                f"{self._in_a_row} files in a row cannot be used, the last is {path}: {reason}",
                "files that can be read",
                "Check that the data set is complete.",
            )
        if self.total is not None:
            self._check_share(max(self.total, self.read))

    def _check_share(self, total: int) -> None:
        bad = len(self.rejected)
        if bad > max(1, self.share * total):
            last = self.rejected[-1]
            raise DataError(
                f"{bad} of {total} files cannot be used, the last is {last.path}: {last.reason}",
                f"at most {self.share:.0%}",
                "Repair or remove them.",
            )

    def finish(self) -> None:
        """Close the account.

        Raises:
            DataError: files were read and none was good, or too few.
        """
        if self.tolerant:
            return
        if self.rejected and not self.used:
            last = self.rejected[-1]
            raise DataError(
                f"none of {self.read} files can be used, the last is {last.path}: {last.reason}",
                "files that can be read",
                "Check that the data set is complete.",
            )
        self._check_share(self.read)

    def summary(self) -> str:
        """One line for the log and the result: what was read, used and left out, and the commonest reasons."""
        reasons = Counter(rejected.reason for rejected in self.rejected).most_common(3)
        why = "".join(f"; {count} × {reason}" for reason, count in reasons)
        return f"{self.read} read = {self.used} used + {len(self.rejected)} quarantined{why}"
