"""A figure over several training seeds: its mean, and how far the seeds lie apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class SeedStats:
    """A figure over several runs; `deviation` is the standard deviation of the sample, None for one run."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def text(self) -> str:
        """A share in per cent, such as `71.3 ± 0.8`; `71.3` for one run."""
        around = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{around}"

    def percent(self) -> str:
        """The same with its unit: `71.3 ± 0.8 %`."""
        return f"{self.text()} %"


def spread_of(values: Sequence[float]) -> SeedStats:
    """Mean and standard deviation of one value or more."""
    return SeedStats(mean(values), stdev(values) if len(values) > 1 else None, tuple(values))
