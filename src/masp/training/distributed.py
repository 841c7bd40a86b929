"""Several processes of one run: who does what, and how an error of one becomes an error of all.

Whatever the processes tell each other goes through one kind of meeting, `Processes.all`: each brings a value or an
error. So a process that fails, wherever it is, needs to come to one more meeting, and the others hear of it at the next
one they come to; none waits for one that has left. Only the sums of gradients are exchanged without one, right
behind a meeting that went well.
"""

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from masp.core import runtime
from masp.core.errors import Agreement, MaspError, UsageError, reason_of
from masp.training.signals import StopRequest

log = logging.getLogger(__name__)

T = TypeVar("T")
P = TypeVar("P")

PATIENCE = "MASP_PROCESS_TIMEOUT"
"""Environment variable: seconds that the processes wait for each other."""

DEFAULT_PATIENCE = 1800.0


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees it.

    Attributes:
        rank: number of this process.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def all_gather(self, work: Callable[[], T]) -> list[T]:
        """What the work gave in each process, by rank.

        Raises:
            MaspError: it failed in one of them; then this is raised in all.
        """
        if self.count == 1:
            return [work()]
        value, failure = None, None
        try:
            value = work()
        except Exception as error:
            if isinstance(error, MaspError) and error.agreed is not None:
                raise  # the others know it from the meeting in which it was raised
            failure = error
        gathered = self._meet((value, None if failure is None else _as_masp_error(failure, self.rank)))
        failed = [index for index, (_, error) in enumerate(gathered) if error is not None]
        if not failed:
            return [result for result, _ in gathered]
        error = gathered[self.rank if self.rank in failed else failed[0]][1]
        error.agreed = Agreement(self.main, self._leave)
        raise error from failure

    def on_main(self, work: Callable[[], T]) -> T:
        """What the work gave in the process that writes files; the others wait for it.

        Raises:
            MaspError: it failed there.
        """
        return self.all_gather(lambda: work() if self.main else None)[0]  # pyright: ignore[reportReturnType]

    def shard(self, parts: Sequence[P]) -> Sequence[P]:
        """The parts of a work that fall to this process."""
        return parts[self.rank :: self.count]

    def share(self, parts: Sequence[P], work: Callable[[P], T], stop: StopRequest | None = None) -> Iterator[T]:
        """What the language model's work gave for each part, in their order, each done by one of the processes.

        Args:
            parts: the parts of the work.
            work: does one of them.
            stop: asked between them.

        Raises:
            MaspError: it failed in one of them.
            Interrupted: one of them was asked to stop.
        """
        if self.count == 1:
            for part in parts:
                if stop is not None:
                    self.check(stop)
                yield work(part)
            return

        def done(own: Sequence[P]) -> list[T]:
            if stop is not None:
                stop.check()
            return [work(part) for part in own]

        for start in range(0, len(parts), self.count):
            group = parts[start : start + self.count]
            own = group[self.rank : self.rank + 1]
            yield from [result for (result,) in self.all_gather(lambda own=own: done(own))[: len(group)]]

    @contextmanager
    def stopping(self) -> Iterator[StopRequest]:
        """A stop request of which all processes hear: between steps, and at the latest when this context is left.

        Raises:
            Interrupted: one of them was asked to stop, and has not been told so by `check`.
        """
        with StopRequest() as stop:
            yield stop
            stop.close()  # what comes from here on comes to one process alone, when the others may have left
            self.check(stop)

    def check(self, stop: StopRequest) -> None:
        """Stop where this process, or any other, was asked to: all of them at the same place.

        Raises:
            Interrupted: one of them was asked to stop.
        """
        if self.count == 1:
            stop.check()
            return
        received = next((name for name in self.all_gather(lambda: stop.received) if name is not None), None)
        if received is not None:  # else one that came during the meeting stays known, for the next
            stop.received = received
            stop.check()

    def add(self, tensor: Tensor) -> Tensor:
        """A tensor summed over the processes; it follows a meeting, so that none is missing.

        Raises:
            MaspError: the contact is lost.
        """
        total = tensor.detach().clone()
        with self._contact():
            distributed.all_reduce(total)
        return total

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """An error that leaves this context in one process ends the others too, at their next meeting.

        Raises:
            MaspError: whatever happened, in the words of the process in which it did.
        """
        if self.count == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            failure = error  # the name ends with the clause
            self.all_gather(lambda: _again(failure))

    def _meet(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        gathered: list[Any] = [None] * self.count
        with self._contact():
            distributed.all_gather_object(gathered, value)
        return gathered

    def _leave(self) -> None:
        """Wait until the main process has written and printed everything; then all may end."""
        try:
            distributed.barrier()
        except RuntimeError as error:
            log.debug("the other processes have left: %s", error)

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, EOFError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            failure = MaspError(
                f"process {self.rank} of {self.count} lost contact with the others ({reason_of(error)})",
                f"an answer within {patience():.0f} seconds",
                f"See what the others said. The same command goes on where there was a checkpoint; {PATIENCE} sets the "
                "seconds.",
            )
            failure.agreed = Agreement(True, lambda: None)
            raise failure from error


ALONE = Processes()


def launched(device: torch.device) -> Processes:
    """The processes that a launcher started together with this one, once all of them are there; else only this one.

    Args:
        device: where each of them computes.

    Raises:
        MaspError: one of them does not come.
        UsageError: the time to wait is no number, or weights are to be divided between the processes.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        todo = "Leave --use_fsdp out; a backbone that does not fit one GPU is spread with backbone.device=spread."
        raise UsageError("accelerate launch --use_fsdp", "whole weights in every process", todo)
    if runtime.count() == 1 and not distributed.is_initialized():
        return ALONE
    if not distributed.is_initialized():
        atexit.register(_part)
    try:
        state = PartialState(cpu=device.type == "cpu", timeout=timedelta(seconds=patience()))
    except (RuntimeError, ValueError) as error:
        raise MaspError(
            f"process {runtime.rank()} of {runtime.count()} cannot reach the others ({reason_of(error)})",
            "processes that one launcher started",
            "Check the addresses that it was given.",
        ) from error
    return Processes(state.process_index, state.num_processes)


def _part() -> None:
    """Take the group apart while its threads can still be joined; left to the end of the process, that may abort it."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def patience() -> float:
    """Seconds that the processes wait for each other.

    Raises:
        UsageError: the environment names something else.
    """
    text = os.environ.get(PATIENCE, "") or str(DEFAULT_PATIENCE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise UsageError(f"{PATIENCE} is {text}", "seconds, more than 0", "Correct it, or leave it out.")
    return seconds


def _as_masp_error(error: Exception, rank: int) -> MaspError:
    """An error as it goes to the other processes: our own as they are, others in words."""
    if isinstance(error, MaspError):
        return error
    return MaspError(f"process {rank} failed: {type(error).__name__}: {reason_of(error)}")


def _again(error: Exception) -> None:
    raise error
