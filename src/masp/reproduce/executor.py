"""Running cells: in this process, or side by side in processes of their own, each with its share of the cores."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from masp.core.errors import UsageError
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import Experiment, ExperimentResult, write_outcome
from masp.training.signals import Interrupted, StopRequest

log = logging.getLogger(__name__)

Told = Callable[[ExperimentResult, bool], None]
"""Is given every outcome as it comes, and whether the cell was run now."""

PATIENCE = 120.0  # seconds in which a worker that was asked to stop writes its checkpoint
LISTEN = 0.5  # seconds between looks at signals


@dataclass(frozen=True)
class Worker:
    """A process that runs cells, and the line to it."""

    process: BaseProcess
    line: Connection


def run_cells(cells: Sequence[Experiment], job: ReproduceConfig, jobs: int, told: Told) -> dict[str, ExperimentResult]:
    """Runs every cell whose needs are met; one that fails does not stop the others.

    Args:
        cells: in an order in which each follows what it needs.
        job: what is asked.
        jobs: how many run side by side; 1: in this process.
        told: is given every outcome.

    Returns:
        The outcome of every cell.

    Raises:
        Interrupted: a signal arrived. The same call goes on from there.
        UsageError: fewer than one job.
    """
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}", "1 or more", "Correct it.")
    return _serial(cells, job, told) if jobs == 1 else _Pool(job, jobs, told).run(cells)


def blocked(cell: Experiment, outcomes: Mapping[str, ExperimentResult]) -> ExperimentResult | None:
    """The outcome of a cell that needs one that failed; None where nothing is in its way."""
    for need in cell.needs:
        found = outcomes.get(need)
        if found is not None and found.state != "done":
            why = f"it needs {need}, which {'failed' if found.state == 'failed' else 'was not run'}"
            return ExperimentResult(cell.name, "waiting", {}, {}, {}, error=why)
    return None


def _serial(cells: Sequence[Experiment], job: ReproduceConfig, told: Told) -> dict[str, ExperimentResult]:
    from masp.reproduce.runner import Runner

    workshop, outcomes = Runner(job), dict[str, ExperimentResult]()
    for cell in cells:
        hindered = blocked(cell, outcomes)
        outcome, fresh = (hindered, False) if hindered is not None else workshop.run(cell)
        outcomes[cell.name] = outcome
        told(outcome, fresh)
    return outcomes


class _Pool:
    """Workers, what each of them is doing, and what is still to be done."""

    def __init__(self, job: ReproduceConfig, jobs: int, told: Told) -> None:
        self.job, self.jobs, self.told = job, jobs, told
        self.outcomes: dict[str, ExperimentResult] = {}
        self.busy: dict[int, tuple[Worker, Experiment]] = {}
        self.idle: list[Worker] = []
        self.started = 0

    def run(self, cells: Sequence[Experiment]) -> dict[str, ExperimentResult]:
        waiting = list(cells)
        try:
            with StopRequest() as stop:
                while waiting or self.busy:
                    waiting = self._handed_out(waiting)
                    stop.check()
                    if self.busy:
                        self._listen()
            self._dismiss()
        except BaseException:
            self._stop()
            raise
        return self.outcomes

    def _handed_out(self, waiting: Sequence[Experiment]) -> list[Experiment]:
        """Give cells to workers as long as there are both; the cells that are left."""
        left: list[Experiment] = []
        for cell in waiting:
            hindered = blocked(cell, self.outcomes)
            if hindered is not None:
                self._finished(hindered, False)
            elif len(self.busy) < self.jobs and all(need in self.outcomes for need in cell.needs):
                worker = self._given(cell)
                self.busy[id(worker)] = (worker, cell)
            else:
                left.append(cell)
        return left

    def _given(self, cell: Experiment) -> Worker:
        """The worker that has the cell now; an idle one that has died takes nothing, and is let go."""
        while self.idle:
            worker = self.idle.pop()
            try:
                worker.line.send(cell)
            except OSError:
                log.warning("an idle worker died (exit code %s); another takes its place", worker.process.exitcode)
                worker.line.close()
                continue
            return worker
        worker = self._hired()
        worker.line.send(cell)
        return worker

    def _hired(self) -> Worker:
        here, there = multiprocessing.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        logs = self.job.work / "logs" / f"worker{self.started}.log"
        self.started += 1
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_work, args=(there, self.job, threads, logs), daemon=True)
        process.start()
        there.close()
        return Worker(process, here)

    def _listen(self) -> None:
        """Take what workers report; one that has died has failed its cell."""
        lines = {worker.line: (worker, cell) for worker, cell in self.busy.values()}
        for line in wait(list(lines), LISTEN):
            worker, cell = lines[line]  # pyright: ignore[reportArgumentType]  (only connections were given)
            try:
                answer = worker.line.recv()
            except (EOFError, OSError):
                self._died(worker, cell)
                continue
            del self.busy[id(worker)]
            if answer is None:
                raise _interrupted()
            self.idle.append(worker)
            self._finished(*answer)

    def _died(self, worker: Worker, cell: Experiment) -> None:
        worker.process.join(10)
        del self.busy[id(worker)]
        if worker.process.exitcode == -signal.SIGTERM:
            raise _interrupted()  # asked to stop before it could write anything; no failure of the cell
        error = f"its process died (exit code {worker.process.exitcode}); was there enough memory?"
        outcome = ExperimentResult(cell.name, "failed", {}, {}, {}, error=error)
        write_outcome(self.job.out, outcome)
        self._finished(outcome, True)

    def _finished(self, outcome: ExperimentResult, fresh: bool) -> None:
        self.outcomes[outcome.cell] = outcome
        self.told(outcome, fresh)

    def _dismiss(self) -> None:
        for worker in self.idle:
            worker.line.close()
        for worker in self.idle:
            worker.process.join(10)

    def _stop(self) -> None:
        """Ask every worker to stop, and end those that do not."""
        workers = [*(worker for worker, _ in self.busy.values()), *self.idle]
        for worker in workers:
            with suppress(ProcessLookupError, TypeError):
                os.kill(worker.process.pid, signal.SIGTERM)  # pyright: ignore[reportArgumentType]  (it was started)
        for worker in workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()


def _interrupted() -> Interrupted:
    return Interrupted("a worker was interrupted", "cells that go to their end", "Give the same command again.")


def _work(line: Connection, job: ReproduceConfig, threads: int, logs: Path) -> None:
    """A worker's life: take a cell, run it, report it, until the line is closed."""
    # Ctrl-C reaches every process of the terminal: the first one passes it on, and a training hears it by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(logs, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(handle, stream.fileno())
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("masp").setLevel(logging.INFO)
    import torch

    from masp.reproduce.runner import Runner

    torch.set_num_threads(threads)
    workshop = Runner(job)
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            cell = line.recv()
            try:
                line.send(workshop.run(cell))
            except Interrupted:
                line.send(None)
                return
