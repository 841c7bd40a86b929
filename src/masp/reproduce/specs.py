"""What is measured in which table: the systems of each experiment, by what takes part in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from masp.core.aspects import ASPECTS

Kind = Literal["data", "aspects", "masp", "baseline", "attention", "parameters"]
Prompt = Literal["none", "random", "trained"]

LENGTHS = (8, 16, 32, 64, 128)
"""Vectors of the soft prompt in Table 3."""

LOW_LEVEL = ("brightness", "colorfulness")
"""The aspects of Figure 3 (b)."""

EXPERIMENTS = ("table1", "table2", "table3", "table4", "figure3", "figure4")


@dataclass(frozen=True)
class Spec:
    """One system, or one step that systems need.

    Attributes:
        name: how tables and folders call it.
        kind: `data`: look at a data set and compute its visual tokens; `aspects`: stage 1; `masp`: measure a backbone
            with parts of the method; `baseline`: another system; `attention`: Figure 4; `parameters`: Table 4.
        aspects: which aspects stand in the sequence.
        prompt: which soft prompt stands in it.
        length: vectors of the soft prompt; None: what the settings say.
        seeded: whether another seed can give another result with the same aspects.
    """

    name: str
    kind: Kind
    aspects: tuple[str, ...] = ()
    prompt: Prompt = "none"
    length: int | None = None
    seeded: bool = True


DATA = Spec("data", "data", seeded=False)
STAGE1 = Spec("stage 1", "aspects", ASPECTS)
PARAMETERS = Spec("parameters", "parameters", seeded=False)
ATTENTION = Spec("attention", "attention", ASPECTS, "trained")


def masp(aspects: tuple[str, ...], prompt: Prompt, length: int | None = None) -> Spec:
    """The backbone with these parts, under the short name of Table 2: "V+A+S", "V+scene+rS", "V+A+S 8"."""
    seen = "" if not aspects else "+A" if aspects == ASPECTS else "".join(f"+{name}" for name in aspects)
    prompted = {"none": "", "random": "+rS", "trained": "+S"}[prompt]
    name = f"V{seen}{prompted}" + ("" if length is None else f" {length}")
    return Spec(name, "masp", aspects, prompt, length, prompt != "none")


FULL = masp(ASPECTS, "trained")
PLAIN = masp((), "none")
SOFT = masp((), "trained")
TABLE2 = (PLAIN, masp(ASPECTS, "none"), SOFT, masp(ASPECTS, "random"), FULL)


def of_length(length: int, usual: int) -> Spec:
    """All of MASP with a prompt of this length; the usual length is the row V+A+S itself, which is run once."""
    return FULL if length == usual else masp(ASPECTS, "trained", length)


def recipes(experiment: str, usual_length: int, baselines: tuple[Spec, ...]) -> tuple[Spec, ...]:
    """The systems that an experiment measures on a data set; steps that they need are not among them.

    Args:
        experiment: one of `EXPERIMENTS`.
        usual_length: the length of the soft prompt in all tables but Table 3.
        baselines: the other systems.
    """
    single = tuple(masp((name,), "trained") for name in ASPECTS)
    low = tuple(masp((name,), prompt) for name in LOW_LEVEL for prompt in ("none", "random", "trained"))
    table: Mapping[str, tuple[Spec, ...]] = {
        "table1": (PLAIN, *baselines, SOFT, FULL),
        "table2": TABLE2,
        "table3": tuple(of_length(length, usual_length) for length in LENGTHS),
        "table4": (PARAMETERS,),
        "figure3": (*single, *(recipe for recipe in low if recipe not in single), PLAIN, FULL),
        "figure4": (ATTENTION,),
    }
    return table[experiment]
