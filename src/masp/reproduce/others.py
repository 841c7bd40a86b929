"""The systems beside MASP in Table 1: how each is made, and which row of the paper it stands beside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from masp.backbones.base import Backbone
from masp.systems.base import System

Make = Callable[[Backbone, tuple[str, ...]], System]


@dataclass(frozen=True)
class Other:
    """One system.

    Attributes:
        meaning: what it is, for a table.
        seeded: whether it learns, so that another seed can give another result.
        paper: the row of Table 1 that it stands beside; "" for none.
        make: the system for a backbone and labels.
    """

    meaning: str
    seeded: bool
    paper: str
    make: Make


def _letters(backbone: Backbone, labels: tuple[str, ...]) -> System:
    from masp.systems.zero_shot import ZeroShot, ZeroShotSettings

    return ZeroShot(backbone, labels, ZeroShotSettings(options="letters"))


def _sepm(backbone: Backbone, labels: tuple[str, ...]) -> System:
    from masp.systems.sepm import Sepm

    return Sepm(backbone, labels)


def _probe(backbone: Backbone, labels: tuple[str, ...]) -> System:
    from masp.systems.probe import Probe

    return Probe(backbone, labels)


OTHERS: Mapping[str, Other] = {
    "zero-shot, letters": Other("the backbone alone, options with letters", False, "", _letters),
    "SEPM": Other("two passes, nothing trained", False, "SEPM", _sepm),
    "linear probe": Other("logistic regression on the mean visual token", True, "", _probe),
}
"""Name → system, in the order of the table."""


def seeded() -> dict[str, bool]:
    """Name of each system → whether it is run with every seed."""
    return {name: other.seeded for name, other in OTHERS.items()}
