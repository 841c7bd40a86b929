"""Running experiments: in this process, or side by side in processes of their own, each with its share of the cores."""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from masp.core.errors import UsageError
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import Experiment, ExperimentResult, write_outcome
from masp.training.signals import Interrupted, StopRequest

log = logging.getLogger(__name__)

Reporter = Callable[[ExperimentResult, bool], None]
"""Is given every outcome as it comes, and whether the cell was run now."""

PATIENCE = 120.0  # seconds in which a worker that was asked to stop writes its checkpoint
LISTEN = 0.5  # seconds between looks at signals

_RUNNERS: dict[Path, Any] = {}  # in a worker: what its cells share, by the folder of results


@dataclass(frozen=True)
class Worker:
    """A pool of one process, so that a process that dies is known by its cell, and that process."""

    pool: ProcessPoolExecutor
    process: BaseProcess


def run_cells(
    cells: Sequence[Experiment], config: ReproduceConfig, jobs: int, report: Reporter
) -> dict[str, ExperimentResult]:
    """Runs every cell whose needs are met; one that fails does not stop the others.

    Args:
        cells: in an order in which each follows what it needs.
        config: what is asked.
        jobs: how many run side by side; 1: in this process.
        report: is given every outcome.

    Returns:
        The outcome of every cell.

    Raises:
        Interrupted: a signal arrived. The same call goes on from there.
        UsageError: fewer than one job.
    """
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}", "1 or more", "Correct it.")
    if jobs > 1:
        return _WorkerPool(config, jobs, report).run(cells)
    from masp.reproduce.runner import Runner

    runner, outcomes = Runner(config), dict[str, ExperimentResult]()
    for cell in cells:
        hindered = blocked(cell, outcomes)
        outcome, fresh = (hindered, False) if hindered is not None else runner.run(cell)
        outcomes[cell.name] = outcome
        report(outcome, fresh)
    return outcomes


def blocked(cell: Experiment, outcomes: Mapping[str, ExperimentResult]) -> ExperimentResult | None:
    """The outcome of a cell that needs one that failed; None where nothing is in its way."""
    for need in cell.needs:
        outcome = outcomes.get(need)
        if outcome is not None and outcome.state != "done":
            why = f"it needs {need}, which {'failed' if outcome.state == 'failed' else 'was not run'}"
            return ExperimentResult(cell.name, "waiting", {}, {}, {}, error=why)
    return None


class _WorkerPool:
    """Workers, what each of them is doing, and what is done."""

    def __init__(self, config: ReproduceConfig, jobs: int, report: Reporter) -> None:
        self.config, self.jobs, self.report = config, jobs, report
        self.outcomes: dict[str, ExperimentResult] = {}
        self.busy: dict[Future[tuple[ExperimentResult, bool]], tuple[Experiment, Worker]] = {}
        self.idle: list[Worker] = []
        self.started = 0

    def run(self, cells: Sequence[Experiment]) -> dict[str, ExperimentResult]:
        waiting = list(cells)
        try:
            with StopRequest() as stop:
                while waiting or self.busy:
                    waiting = [cell for cell in waiting if not self._begun(cell)]
                    stop.check()
                    for future in wait(self.busy, LISTEN, FIRST_COMPLETED).done:
                        self._ended(future)
        except BaseException:
            self._stop()
            raise
        for worker in self.idle:
            worker.pool.shutdown()
        return self.outcomes

    def _begun(self, cell: Experiment) -> bool:
        """Whether a cell is no longer waiting: a worker has it now, or something that it needs failed."""
        hindered = blocked(cell, self.outcomes)
        if hindered is not None:
            self._finished(hindered, False)
        elif len(self.busy) < self.jobs and all(need in self.outcomes for need in cell.needs):
            future, worker = self._given(cell)
            self.busy[future] = (cell, worker)
        else:
            return False
        return True

    def _given(self, cell: Experiment) -> tuple[Future[tuple[ExperimentResult, bool]], Worker]:
        """The worker that has the cell now; an idle one that has died takes nothing, and is dropped."""
        while self.idle:
            worker = self.idle.pop()
            try:
                return worker.pool.submit(_work, self.config, cell), worker
            except BrokenProcessPool:
                log.warning("an idle worker died (exit code %s); another takes its place", worker.process.exitcode)
        before = set(multiprocessing.active_children())
        logs = self.config.work / "logs" / f"worker{self.started}.log"
        self.started += 1
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(threads, logs))
        future = pool.submit(_work, self.config, cell)  # starts the process
        (process,) = set(multiprocessing.active_children()) - before
        return future, Worker(pool, process)

    def _ended(self, future: Future[tuple[ExperimentResult, bool]]) -> None:
        """Take what a worker reports; one that has died has failed its cell.

        Raises:
            Interrupted: it was asked to stop.
        """
        cell, worker = self.busy.pop(future)
        try:
            outcome, fresh = future.result()
        except BrokenProcessPool:
            code = _exit_code(worker.process)
            if code == -signal.SIGTERM:  # asked to stop before it could write anything; no failure of the cell
                todo = "Give the same command again."
                raise Interrupted("a worker was interrupted", "cells that go to their end", todo) from None
            error = f"its process died (exit code {code}); was there enough memory?"
            outcome, fresh = ExperimentResult(cell.name, "failed", {}, {}, {}, error=error), True
            write_outcome(self.config.out, outcome)
        else:
            self.idle.append(worker)
        self._finished(outcome, fresh)

    def _finished(self, outcome: ExperimentResult, fresh: bool) -> None:
        self.outcomes[outcome.cell] = outcome
        self.report(outcome, fresh)

    def _stop(self) -> None:
        """Ask every worker to stop, and end those that do not."""
        workers = [*self.idle, *(worker for _, worker in self.busy.values())]
        for worker in workers:
            worker.pool.shutdown(wait=False, cancel_futures=True)
            worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()


def _prepare(threads: int, logs: Path) -> None:
    """Sets up a worker: its own log, its share of the cores, and Ctrl-C ignored.

    Ctrl-C reaches every process of the terminal. The first process asks the workers to stop, so they ignore it
    themselves; only a training, which installs its own handler, stops at it directly.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(logs, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(handle, stream.fileno())
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("masp").setLevel(logging.INFO)
    import torch

    torch.set_num_threads(threads)


def _exit_code(process: BaseProcess) -> int | None:
    """How a worker ended; the pool's own thread may be about to learn it first, and until it has nothing is known."""
    end = time.monotonic() + 10
    while process.exitcode is None and time.monotonic() < end:
        process.join(0.05)
    return process.exitcode


def _work(config: ReproduceConfig, cell: Experiment) -> tuple[ExperimentResult, bool]:
    """Run a cell in a worker, with what its earlier cells loaded."""
    from masp.reproduce.runner import Runner

    if config.out not in _RUNNERS:
        _RUNNERS[config.out] = Runner(config)
    return _RUNNERS[config.out].run(cell)
