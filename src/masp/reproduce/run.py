"""`masp reproduce` from the question to the tables."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from masp.core.atomic_io import write_file
from masp.core.progress import Bar
from masp.demo.pictures import draw_dataset, is_drawn
from masp.demo.steps import quiet
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import ExperimentResult, plan_cells, result_file
from masp.reproduce.estimate import estimate
from masp.reproduce.executor import run_cells
from masp.reproduce.progress import ProgressReporter
from masp.reproduce.specs import all_recipes, load_paper
from masp.reproduce.tables import Results
from masp.reproduce.writing import write_all

log = logging.getLogger(__name__)

IGNORE = "# Data, visual tokens, runs and predictions: made again by the same command.\n*\n"


@dataclass(frozen=True)
class Reproduced:
    """What a run leaves.

    Attributes:
        written: its files, the page with all tables first.
        failed: cells that failed or that needed one that did.
        cells: how many there were.
    """

    written: tuple[Path, ...]
    failed: tuple[ExperimentResult, ...]
    cells: int


def reproduce(
    job: ReproduceConfig, jobs: int = 1, command: str = "masp reproduce", console: Console | None = None
) -> Reproduced:
    """Runs what is missing, and writes all tables and figures that were asked for.

    Args:
        job: what is asked.
        jobs: cells that run side by side.
        command: how it was asked, for the record.
        console: where progress is told; None for standard error.

    Raises:
        Interrupted: a signal arrived; the same call goes on from there.
        UsageError: the folder of the images holds something else.
        OSError: the disk is full or cannot be written.
    """
    paper = load_paper()
    job.work.mkdir(parents=True, exist_ok=True)
    write_file(job.work / ".gitignore", IGNORE.encode())
    planned = plan_cells(job, paper, all_recipes())
    teller = ProgressReporter(planned.cells, estimate(job, planned.cells), jobs, console)
    teller.plan(sum(result_file(job.out, cell.name).is_file() for cell in planned.cells))
    if any(cell.recipe.kind != "parameters" for cell in planned.cells):
        _draw(job)
    outcomes = _with_bar(teller, jobs, lambda: run_cells(planned.cells, job, jobs, teller.done))
    written = write_all(Results(job, paper, outcomes, planned.skipped), command)
    failed = tuple(outcome for outcome in outcomes.values() if outcome.state != "done")
    return Reproduced(tuple(written), failed, len(planned.cells))


def _draw(job: ReproduceConfig) -> None:
    """The drawn data set, unless it is there already."""
    if job.drawn is None:
        return
    folder = job.sources[0].data.path
    assert folder is not None
    if is_drawn(folder, job.drawn):
        return
    total, done = sum(job.drawn.splits().values()), 0
    with Bar("drawing", total) as bar:

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            bar.show(done)

        draw_dataset(folder, job.drawn, advance)


def _with_bar(
    teller: ProgressReporter, jobs: int, run: Callable[[], dict[str, ExperimentResult]]
) -> dict[str, ExperimentResult]:
    """One bar over all cells where they run in other processes; in this one, each cell has its own."""
    if jobs == 1:
        with quiet():
            return run()
    with Bar("cells", teller.total, console=teller.console) as bar:
        teller.bar = bar
        return run()
