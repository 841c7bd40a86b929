"""What the demo measures: Table 2, what stage 1 reads, whether the explanations are true."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from masp.data.records import Record
from masp.demo.plan import Plan
from masp.demo.steps import Steps
from masp.evaluation.ablation import Table2, table2
from masp.evaluation.explanation_metrics import (
    AspectQuality,
    BayesAccuracy,
    Explanations,
    aspect_quality,
    ceiling,
    measure_explanations,
)
from masp.evaluation.predict_split import Batching
from masp.predictor import Masp

Result = TypeVar("Result")


@dataclass(frozen=True)
class DemoMeasurements:
    """The figures of the demo.

    Attributes:
        table: the five rows of Table 2.
        ceiling: the best that anyone could reach on the same images.
        quality: what stage 1 reads.
        read: images that `quality` was measured on.
        explanations: whether effects and heatmaps are true.
        explained: images that `explanations` was measured on.
    """

    table: Table2
    ceiling: BayesAccuracy
    quality: tuple[AspectQuality, ...]
    read: int
    explanations: Explanations
    explained: int

    def summary(self) -> dict[str, Any]:
        """Figures without single predictions, ready for JSON."""
        return {
            "table2": self.table.summary(),
            "ceiling": asdict(self.ceiling),
            "aspects": {"pictures": self.read, "quality": [asdict(one) for one in self.quality]},
            "explanations": {"pictures": self.explained, **asdict(self.explanations)},
        }


def measure(full: Masp, plain: Masp, records: Sequence[Record], plan: Plan, steps: Steps) -> DemoMeasurements:
    """Measures aspects with their prompt (`full`) and the prompt trained without aspects (`plain`) on test images.

    Raises:
        DataError: a record carries no truth, or too many images cannot be read.
    """
    read, explained = records[: plan.read], records[: plan.explained]
    with steps.step("Table 2 measured", f"5 rows × {len(records):,} images"):
        table = _with(steps.counted("Table 2", len(records)), lambda how: table2(full, plain, records, plan.seed, how))
    with steps.step("Aspects put into words", f"{len(read):,} images"):
        quality = _with(
            steps.counted("aspects", len(read)),
            lambda how: aspect_quality(full.model, read, full.task.questions, how),
        )
    with steps.step("Explanations checked", f"{len(explained):,} images"):
        explanations = _with(
            steps.counted("explanations", len(explained)), lambda how: measure_explanations(full, explained, how)
        )
    return DemoMeasurements(table, ceiling(records), quality, len(read), explanations, len(explained))


def _with(bar: AbstractContextManager[Callable[[int], None]], measurement: Callable[[Batching], Result]) -> Result:
    with bar as advance:
        return measurement(Batching(progress=advance))
