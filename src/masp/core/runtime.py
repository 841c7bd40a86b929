"""What a process runs on and among: its rank, its processor, and the progress bar that one of several draws."""

import ctypes
import os
import platform
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


def rank() -> int:
    """The number of this process among all of the run; 0 without a launcher."""
    return _number("RANK", 0)


def local_rank() -> int | None:
    """The number of this process among those of its machine; None without a launcher."""
    return _number("LOCAL_RANK", 0) if count() > 1 else None


def count() -> int:
    """Processes of the run; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def is_main_process() -> bool:
    """Whether this process prints and writes; progress, results and log of the others would be the same."""
    return rank() == 0


def keep_freed_memory() -> bool:
    """Make the allocator of glibc keep what is freed, for a process that computes one batch after another.

    By default it hands large blocks back to the system, threads beside the main one more than that one, so that every
    batch takes them anew page by page. The process stays as large as its largest batch made it.

    Returns:
        Whether there is such an allocator.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none that can be asked
        return False
    return all(mallopt(name, value) for name, value in _ALLOCATOR.items())


_ALLOCATOR = {-8: 1, -1: 2**30, -3: 2**25}
"""Settings of mallopt(3): one arena, bytes at its top that are kept, and bytes from which a block is the system's; the
last is the largest that it takes."""


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, ""))
    except ValueError:
        return default


_TABLE = Path("/proc/cpuinfo")


def processor(table: Path = _TABLE) -> str:
    """The processor's own name, such as "AMD EPYC 7763"; its architecture where the system does not tell.

    `platform.processor` knows the architecture only.

    Args:
        table: Linux's list of processors.
    """
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.machine())


class Bar:
    """A progress bar with loss, pace and the time left; silent without a terminal, and in all processes but the first.

    Args:
        title: what is being done.
        total: how many steps there are, None if unknown; `done` of them were finished before.
        unit: what the pace counts.
        console: where it is drawn; None for standard error.
    """

    def __init__(
        self, title: str, total: int | None, done: int = 0, unit: str = "images", console: Console | None = None
    ) -> None:
        self.unit = unit
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and is_main_process()),
        )
        self._task: TaskID = self._progress.add_task(title, total=total, completed=done, note="")

    def show(self, done: int, loss: float | None = None, pace: float | None = None) -> None:
        """Put the bar at `done` steps; `loss` and `pace` (units per second) replace what it says, where given."""
        parts = [f"loss {loss:.4f}"] if loss is not None else []
        parts += [f"{pace:.0f} {self.unit}/s"] if pace is not None else []
        if parts:
            self._progress.update(self._task, completed=done, note="  ".join(parts))
        else:
            self._progress.update(self._task, completed=done)

    def advance(self, steps: int = 1) -> None:
        """Move the bar on by `steps`."""
        self._progress.advance(self._task, steps)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
