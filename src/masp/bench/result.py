"""One measured line: what it is, how it compares to the baseline of the same run, and whether its goal is met."""

from dataclasses import asdict, dataclass, field
from typing import Any

from masp.bench.clock import Timing


@dataclass(frozen=True)
class Goal:
    """What a ratio should be: at least or at most so much."""

    value: float
    at_least: bool = True

    def met(self, ratio: float) -> bool:
        """Whether the ratio is as wanted."""
        return ratio >= self.value if self.at_least else ratio <= self.value

    def text(self) -> str:
        """As a person reads it."""
        return f"{'≥' if self.at_least else '≤'} {self.value:g}"


@dataclass(frozen=True)
class BenchResult:
    """One line of the benchmark.

    Attributes:
        name: what was measured.
        ratio: to the baseline, as `meaning` says; None for a line that only informs.
        meaning: what the ratio is.
        goal: what it should be; None where there is none.
        median_s: seconds per example.
        baseline_s: seconds per example of what it is compared with.
        spread: slowest minus fastest repeat, as a share of the median.
        visual: visual tokens of an image; None where there are several or none.
        batch: examples that go together.
        seconds: of every repeat, per example.
        note: why a goal is missed, or what else to know.
        more: further figures.
    """

    name: str
    ratio: float | None
    meaning: str
    goal: Goal | None
    median_s: float
    baseline_s: float | None
    spread: float
    visual: int | None = None
    batch: int = 1
    seconds: tuple[float, ...] = ()
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.goal is None or self.ratio is None else self.goal.met(self.ratio)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the goal as a number with its direction beside it."""
        content = asdict(self)
        goal = content.pop("goal")
        bound = (
            {"goal": None, "at_least": None} if goal is None else {"goal": goal["value"], "at_least": goal["at_least"]}
        )
        return content | bound | {"met": self.met, "repeats": len(self.seconds), "seconds": list(self.seconds)}


def faster(
    name: str, ours: Timing, baseline: Timing, goal: Goal | None, visual: int, batch: int, **more: Any
) -> BenchResult:
    """How many times faster per example than the baseline."""
    ratio = baseline.median / ours.median
    return BenchResult(
        name,
        ratio,
        "times faster than the baseline",
        goal,
        ours.median,
        baseline.median,
        ours.spread,
        visual,
        batch,
        ours.seconds,
        more=dict(more),
    )


def costs(
    name: str, ours: Timing, other: Timing, what: str, goal: Goal | None, visual: int, **more: Any
) -> BenchResult:
    """The time of `ours` as a multiple of that of `other`."""
    ratio = ours.median / other.median
    return BenchResult(
        name, ratio, what, goal, ours.median, other.median, ours.spread, visual, 1, ours.seconds, more=dict(more)
    )


def reaches(name: str, ours: Timing, rate: float, unit: str, batch: int = 1, **more: Any) -> BenchResult:
    """A rate (examples per second) as a share of the one that is wanted."""
    value = 1 / ours.median
    return BenchResult(
        name,
        value / rate,
        f"of {rate:g} {unit}",
        Goal(1.0),
        ours.median,
        None,
        ours.spread,
        None,
        batch,
        ours.seconds,
        more={"value": value, "unit": unit, **more},
    )
