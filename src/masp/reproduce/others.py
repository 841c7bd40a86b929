"""The systems beside MASP in Table 1: their names in the catalogue, and which row of the paper each stands beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masp.baselines.base import Reading
from masp.baselines.registry import CATALOGUE, settings_of
from masp.core.aspects import ASPECTS
from masp.core.errors import UsageError
from masp.reproduce.specs import PLAIN, SOFT, Spec


@dataclass(frozen=True)
class OtherSystem:
    """One system.

    Attributes:
        paper: the row of Table 1 that it stands beside; "" for none.
        over: the system of this table that it stands on, which is then learned once for both.
        aspects: the aspects of stage 1 that it reads.
        prompt: the row whose soft prompt it reads, which is then trained once for both; None for none.
    """

    paper: str = ""
    over: str = ""
    aspects: tuple[str, ...] = ()
    prompt: Spec | None = None


OTHERS: Mapping[str, OtherSystem] = {
    "zero-shot-letters": OtherSystem(),
    "sepm": OtherSystem("SEPM"),
    "probe": OtherSystem(),
    "qlora": OtherSystem(),
    "instruction": OtherSystem("EmoVIT"),
    "distilled": OtherSystem("EmoVLM-KD", over="qlora"),
    "cues": OtherSystem(aspects=ASPECTS, prompt=SOFT),
}
"""Name in the catalogue → what it is here, in the order of the table; a system comes after the one it stands on."""

ADAPTERS = {"cues": ("aspects", "prompt", "task")}
"""Settings that name adapters: here these are made by the cells that a system needs, so nobody sets them."""

QUICKLY: tuple[str, ...] = (
    "qlora.max_steps=2",
    "qlora.batch_size=8",
    "instruction.max_steps=2",
    "instruction.batch_size=8",
    "distilled.teacher_epochs=1",
    "distilled.head_epochs=1",
    "distilled.gate_epochs=1",
    "cues.fewest=2",
)
"""As few steps as possible."""


def recipe_of(name: str) -> Spec:
    """The recipe of a system."""
    other = OTHERS[name]
    seeded = CATALOGUE[name].seeded or other.prompt is not None
    return Spec(name, "baseline", other.aspects, seeded=seeded)


def all_recipes() -> tuple[Spec, ...]:
    """The recipes of all systems, in the order of the table."""
    return tuple(recipe_of(name) for name in OTHERS)


def read_by(reading: Reading) -> tuple[str, ...]:
    """The reading as a setting of every system that has one; the others give probabilities and no text."""
    if reading == "score":
        return ()
    return tuple(f"{name}.reading={reading}" for name in OTHERS if "reading" in settings_of(name))


def alone(recipe: Spec) -> bool:
    """Whether the backbone answers as it was released, with nothing trained beside it."""
    return recipe == PLAIN or (recipe.kind == "baseline" and CATALOGUE[recipe.name].alone)


def over_of(name: str, changes: Sequence[str]) -> str:
    """The system of this table that it stands on; "" where it stands on none, or the settings name one."""
    named = any(change.startswith(f"{name}.over=") for change in changes)
    return "" if named else OTHERS[name].over


def divided(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the method and of both stages, and settings of other systems, which begin with a system's name.

    Raises:
        UsageError: a setting that a system does not have.
    """
    own = [change for change in changes if change.partition(".")[0] in OTHERS]
    for change in own:
        name, _, setting = change.partition("=")[0].partition(".")
        possible = [one for one in settings_of(name) if one not in ADAPTERS.get(name, ())]
        if setting not in possible:
            known = ", ".join(possible) or "none"
            raise UsageError(f"{name} has no setting '{setting}'", f"one of {known}", "Correct it.")
    return [change for change in changes if change not in own], own


def changes_of(name: str, changes: Sequence[str]) -> tuple[str, ...]:
    """The settings of one system as the catalogue takes them, those of the system it stands on included."""
    found = [change.partition(".")[2] for change in changes if change.startswith(f"{name}.")]
    over = over_of(name, changes)
    if over:
        found += [f"over={over}", *(f"over.{change}" for change in changes_of(over, changes))]
    return tuple(found)
