"""What a person sees while cells run: the plan, one line for each cell, and how long it will still take."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from masp.core.progress import Bar
from masp.report.schema import duration
from masp.reproduce.dag import Experiment, ExperimentResult
from masp.reproduce.estimate import Estimate


class ProgressReporter:
    """Counts cells and announces them.

    Args:
        cells: all of them.
        estimate: what they will take; None where nobody knows before the first ones are done.
        jobs: how many run side by side.
        console: where it is said; None for standard error.
    """

    def __init__(
        self, cells: Sequence[Experiment], estimate: Estimate | None, jobs: int, console: Console | None = None
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.estimate, self.jobs = estimate, jobs
        self.left = {cell.name for cell in cells}
        self.total, self.took, self.fresh = len(cells), 0.0, 0
        self.expected = 0.0
        self.bar: Bar | None = None

    def plan(self, there: int) -> None:
        """How many cells there are, how many of them have a result, and how long the others may take."""
        text = f"{self.total} cells"
        if there:
            text += f", {there} with a result from before (it is checked that it is of the same run)"
        if self.estimate is not None and self.left:
            minutes = max(1, round(self.estimate.left(self.left, self.jobs) / 60))
            text += f"; all of them take about {minutes} min with --jobs {self.jobs} on cores that are idle"
        self.console.print(Text(text), soft_wrap=True)

    def done(self, outcome: ExperimentResult, fresh: bool) -> None:
        """Announces that a cell is done; `fresh` unless its result was there already."""
        self.left.discard(outcome.cell)
        if fresh and outcome.state == "done":
            self.took, self.fresh = self.took + outcome.seconds, self.fresh + 1
            self.expected += 0.0 if self.estimate is None else self.estimate.seconds[outcome.cell]
        number = f"{self.total - len(self.left)}/{self.total} "
        sign, tone = {"done": ("✓ ", "green"), "failed": ("✗ ", "red"), "waiting": ("– ", "yellow")}[outcome.state]
        said = _figure(outcome) if outcome.state == "done" else outcome.error
        before = "there already" if outcome.state == "done" else ""
        time = duration(outcome.seconds) if fresh else before
        rest = self.remaining() if fresh else ""
        line = Text.assemble((sign, tone), (number, "dim"), f"{outcome.cell}  {said}  ", (f"{time}{rest}", "dim"))
        self.console.print(line, soft_wrap=True)
        if self.bar is not None:
            self.bar.show(self.total - len(self.left))

    def remaining(self) -> str:
        """What follows the time of a cell: ", about 12 min left"; nothing before the first one, and at the end."""
        if not self.left or not self.fresh:
            return ""
        if self.estimate is not None and self.expected > 0:
            seconds = self.estimate.left(self.left, self.jobs) * self.took / self.expected
        else:
            seconds = self.took / self.fresh * len(self.left) / self.jobs
        return f", about {duration(seconds)} left"


def _figure(outcome: ExperimentResult) -> str:
    accuracy = outcome.figures.get("exact", outcome.figures).get("accuracy")
    return f"{100 * accuracy['value']:.1f} %" if isinstance(accuracy, dict) else ""
