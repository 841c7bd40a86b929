"""The steps of the demo as a person sees them go by: one line when a step ends, with its time."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from masp.core.atomic_io import write_file
from masp.report.formatting import duration
from masp.report.schema import Step
from masp.training.progress import Bar

BEFORE = "done before"
"""Note of a step that this run did not do again."""


class Steps:
    """Counts, times and announces. What a step took is kept in a file, for a later run that need not do it again.

    Args:
        total: how many steps there will be.
        file: where the times are kept.
        console: where steps are announced; None for standard error.
    """

    def __init__(self, total: int, file: Path, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.total, self.file = total, file
        self.done: list[Step] = []
        self.before = _times(file)

    def ready(self, name: str) -> None:
        """Ticks off a step whose result is there already; it counts with the time it once took."""
        self.done.append(Step(name, self.before.get(name, 0.0), BEFORE))
        self._say(name, "", "there already")

    def left_out(self, name: str, why: str) -> None:
        """A step that cannot be done here; the demo goes on without it."""
        self.done.append(Step(name, 0.0, why))
        self._say(name, "", why)

    @contextmanager
    def step(self, name: str, note: str = "") -> Iterator[None]:
        """One step: announced before, ticked off with its time after. `note` says how much work it is."""
        number = f"{len(self.done) + 1}/{self.total}"
        if self.console.is_terminal:
            self.console.print(Text.assemble((f"  {number} ", "dim"), name, " … ", (note, "dim")), end="\r")
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.done.append(Step(name, seconds, note))
        self._keep(name, seconds)
        self._say(name, duration(seconds), note)

    def seconds(self) -> float:
        """What this run's own steps took."""
        return sum((step.seconds for step in self.done if step.note != BEFORE), start=0.0)

    @contextmanager
    def counted(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar, and the function that moves it on by a number of pictures."""
        done = 0
        with Bar(title, total) as bar:

            def advance(pictures: int) -> None:
                nonlocal done
                done += pictures
                bar.show(done)

            yield advance

    def _say(self, name: str, time_taken: str, note: str) -> None:
        number = f"{len(self.done)}/{self.total} "
        line = Text.assemble(("✓ ", "green"), (number, "dim"), f"{name:<32}", f"{time_taken:>12}  ", (note, "dim"))
        self.console.print(line)

    def _keep(self, name: str, seconds: float) -> None:
        self.before = {**self.before, name: round(seconds, 2)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.file, (json.dumps(self.before, indent=2) + "\n").encode())


def _times(file: Path) -> dict[str, float]:
    """Seconds by step as an earlier run kept them; none where the file is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextmanager
def quiet() -> Iterator[None]:
    """Our own log without its details, which the steps tell already; a debugging log stays as it is."""
    log = logging.getLogger("masp")
    before = log.level
    if before != logging.DEBUG:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
