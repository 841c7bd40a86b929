"""What `masp plan` would have said beside what was measured: the estimate of every line of the benchmark that has one.

The estimate has the backbone's sizes, the machine's measured peaks, and the efficiency of the *other* lines of
training, so that no line predicts itself. Everything is in the results already: nothing is measured for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from masp.core.flops import Sizes
from masp.model.cost_estimate import CostJob, Device, Store, efficiency_of, estimate, reached

MEMORY = "peak memory, "  # begins the names of lines of memory
NO_READING = 1e9  # images per second: the benchmark's steps begin with images that are read already


@dataclass(frozen=True)
class Planned:
    """The part of a plan that a line measures, and the job that it is a part of."""

    part: str
    store: Store = "none"
    released: bool = False

    def job(self, visual: int, batch: int, itemsize: int) -> CostJob:
        """One image of it."""
        training = self.part != "labelling"
        return CostJob(
            images=int(training),
            visual=visual,
            label=int(not training),
            epochs1=1,
            epochs2=1,
            queries=5 if self.released else 1,
            store=self.store,
            batch=batch,
            released=self.released,
            itemsize=itemsize,
        )


LINES: Mapping[str, Planned] = MappingProxyType(
    {
        "stage 1, image-major": Planned("stage 1"),
        "stage 1, features kept": Planned("stage 1", "features"),
        "stage 2, released layout": Planned("stage 2", "features", released=True),
        "stage 2, paper layout, prefix recomputed": Planned("stage 2", "features"),
        "stage 2, paper layout, prefix kept": Planned("stage 2", "prefix"),
        "score, one image": Planned("labelling"),
        "score, batched, of the bound": Planned("labelling"),
    }
)


def checked(
    lines: Sequence[Mapping[str, Any]], sizes: Sizes, peaks: tuple[float, float], itemsize: int
) -> list[dict[str, Any]]:
    """Estimated and measured seconds per example, and GB of memory beyond the weights.

    Args:
        lines: results of the benchmark.
        sizes: the backbone they were measured on.
        peaks: the machine's, as `measured_peaks` gives them.
        itemsize: bytes of a number of the backbone.
    """
    found = []
    for line in lines:
        planned = LINES.get(line["name"].removeprefix(MEMORY))
        rates = [rate for other in lines if other is not line and (rate := reached(other))]
        if planned is None or not rates:
            continue
        device = Device(*peaks, memory=1.0, efficiency=efficiency_of(rates, peaks[0]))
        job = planned.job(line["visual"], line["batch"], itemsize)
        part = next(part for part in estimate(sizes, job, device, NO_READING) if part.name == planned.part)
        if line["name"].startswith(MEMORY):
            values = part.memory - part.weights, line["more"]["bytes"] / 1e9, "GB"
        else:
            values = part.seconds / part.examples, line["median_s"], "s"
        found.append(_row(line, *values))
    return found


def _row(line: Mapping[str, Any], estimated: float, measured: float, unit: str) -> dict[str, Any]:
    row = {"name": line["name"], "visual": line["visual"], "unit": unit, "estimated": estimated, "measured": measured}
    return row | {"ratio": estimated / measured if measured > 0 else None}
