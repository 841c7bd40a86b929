"""The progress bar, in a file of its own: commands that need no model load none for it."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from masp.core import launch


class Bar:
    """A progress bar with loss, pace and the time left; silent without a terminal, and in all processes but the first.

    Args:
        title: what is being done.
        total: how many steps there are, None if nobody knows; `done` of them were finished before.
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
            disable=not (console.is_terminal and launch.speaks()),
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

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
