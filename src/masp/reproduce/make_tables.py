"""`masp reproduce`: runs the experiments, reports progress, and writes the tables."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from masp.core.atomic_io import write_file
from masp.core.runtime import Bar
from masp.demo.measure import quiet
from masp.demo.pictures import draw_dataset, is_drawn
from masp.report.schema import duration
from masp.reproduce.config import ReproduceConfig
from masp.reproduce.dag import Experiment, ExperimentResult, plan_cells, result_file
from masp.reproduce.executor import run_cells
from masp.reproduce.specs import all_specs, load_paper
from masp.reproduce.tables import Results
from masp.reproduce.writers import write_all

IGNORE = "# Data, visual tokens, runs and predictions: made again by the same command.\n*\n"


@dataclass(frozen=True)
class Reproduced:
    """What a run leaves."""

    written: tuple[Path, ...]  # its files, the page with all tables first
    failed: tuple[ExperimentResult, ...]  # cells that failed or that needed one that did
    cells: int  # how many there were


def reproduce(
    config: ReproduceConfig, jobs: int = 1, command: str = "masp reproduce", console: Console | None = None
) -> Reproduced:
    """Runs what is missing, and writes all tables and figures that were asked for.

    Args:
        config: what is asked.
        jobs: cells that run side by side.
        command: how it was asked, for the record.
        console: where progress is told; None for standard error.

    Raises:
        Interrupted: a signal arrived; the same call goes on from there.
        UsageError: the folder of the images holds something else.
        OSError: the disk is full or cannot be written.
    """
    paper = load_paper()
    config.work.mkdir(parents=True, exist_ok=True)
    write_file(config.work / ".gitignore", IGNORE.encode())
    planned = plan_cells(config, paper, all_specs())
    reporter = ProgressReporter(planned.cells, jobs, console)
    reporter.plan(sum(result_file(config.out, cell.name).is_file() for cell in planned.cells))
    if any(cell.spec.kind != "parameters" for cell in planned.cells):
        _draw(config)
    with ExitStack() as stack:
        if jobs == 1:
            stack.enter_context(quiet())  # each cell has a bar of its own
        else:
            reporter.bar = stack.enter_context(Bar("cells", reporter.total, console=reporter.console))
        outcomes = run_cells(planned.cells, config, jobs, reporter.done)
    written = write_all(Results(config, paper, outcomes, planned.skipped), command)
    failed = tuple(outcome for outcome in outcomes.values() if outcome.state != "done")
    return Reproduced(tuple(written), failed, len(planned.cells))


def _draw(config: ReproduceConfig) -> None:
    """The drawn data set, unless it is there already."""
    if config.drawn is None:
        return
    folder = config.sources[0].data.path
    assert folder is not None
    if is_drawn(folder, config.drawn):
        return
    with Bar("drawing", sum(config.drawn.splits().values())) as bar:
        draw_dataset(folder, config.drawn, bar.advance)


class ProgressReporter:
    """Counts cells and announces them: one line for each, and how long the others may take.

    Args:
        cells: all of them.
        jobs: how many run side by side.
        console: where it is said; None for standard error.
    """

    def __init__(self, cells: Sequence[Experiment], jobs: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.jobs, self.left = jobs, {cell.name for cell in cells}
        self.total, self.took, self.fresh = len(cells), 0.0, 0
        self.bar: Bar | None = None

    def plan(self, there: int) -> None:
        """How many cells there are, and how many of them have a result."""
        text = f"{self.total} cells"
        if there:
            text += f", {there} with a result from before (it is checked that it is of the same run)"
        self.console.print(Text(text), soft_wrap=True)

    def done(self, outcome: ExperimentResult, fresh: bool) -> None:
        """Announces that a cell is done; `fresh` unless its result was there already."""
        self.left.discard(outcome.cell)
        if fresh and outcome.state == "done":
            self.took, self.fresh = self.took + outcome.seconds, self.fresh + 1
        number = f"{self.total - len(self.left)}/{self.total} "
        sign, tone = {"done": ("✓ ", "green"), "failed": ("✗ ", "red"), "waiting": ("– ", "yellow")}[outcome.state]
        text = _figure(outcome) if outcome.state == "done" else outcome.error
        before = "there already" if outcome.state == "done" else ""
        time = f"{duration(outcome.seconds)}{self.remaining()}" if fresh else before
        line = Text.assemble((sign, tone), (number, "dim"), f"{outcome.cell}  {text}  ", (time, "dim"))
        self.console.print(line, soft_wrap=True)
        if self.bar is not None:
            self.bar.show(self.total - len(self.left))

    def remaining(self) -> str:
        """What follows the time of a cell: ", about 12 min left"; nothing before the first one, and at the end."""
        if not self.left or not self.fresh:
            return ""
        return f", about {duration(self.took / self.fresh * len(self.left) / self.jobs)} left"


def _figure(outcome: ExperimentResult) -> str:
    accuracy = outcome.figures.get("exact", outcome.figures).get("accuracy")
    return f"{100 * accuracy['value']:.1f} %" if isinstance(accuracy, dict) else ""
