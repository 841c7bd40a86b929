"""SIGTERM and Ctrl-C during a run: finish the step, write a checkpoint, leave."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from masp.core.errors import MaspError

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(MaspError):
    """The run was asked to stop; what it had done so far is in its checkpoint."""


class StopRequest:
    """While this context is open, the first signal is only remembered; a second Ctrl-C aborts at once.

    A signal that came behind the last `check` is told when the context is left, unless something worse is under way: so
    nothing that follows begins, and what was finished stays finished.

    Outside the main thread Python allows no handlers: then nothing is caught, and the caller's own handling applies.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def check(self) -> None:
        """Call this between steps.

        Raises:
            Interrupted: a signal has arrived.
        """
        if self.received is not None:
            raise Interrupted(
                got=f"the run was interrupted by {self.received}",
                expected="a run that goes to its end",
                todo="Give the same command again: it goes on from there.",
            )

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items; before each it is asked whether to go on.

        Raises:
            Interrupted: a signal has arrived.
        """
        for item in items:
            self.check()
            yield item

    def close(self) -> None:
        """Let signals do from now on what they did before; what has been received stays known."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self.check()
