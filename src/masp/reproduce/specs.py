"""What is measured in which table: systems, the paper's numbers, and how long other systems learn."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from masp.baselines.base import Reading
from masp.baselines.lora_layers import natural_rate
from masp.baselines.registry import CATALOGUE, current_name, settings_of
from masp.core.aspects import ASPECTS
from masp.core.config import RunConfig
from masp.core.errors import UsageError
from masp.core.settings import TrainConfig
from masp.training import trainer

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


def specs_of(experiment: str, usual_length: int, baselines: tuple[Spec, ...]) -> tuple[Spec, ...]:
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
        "figure3": (*single, *(spec for spec in low if spec not in single), PLAIN, FULL),
        "figure4": (ATTENTION,),
    }
    return table[experiment]


BACKBONES: Mapping[str, tuple[str, ...]] = {
    "LLaVA-v1.5": ("llava-1.5", "llava-v1.5"),
    "LLaVA-Next": ("llava-next", "llava-v1.6"),
    "Qwen2.5-VL-7B": ("qwen2.5-vl-7b",),
    "Qwen2-VL-7B": ("qwen2-vl-7b",),
    "InstructBLIP": ("instructblip",),
}
"""Zero-shot row of Table 1 → what the name of such a backbone holds, in lower case."""


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    title: str  # what it shows
    datasets: tuple[str, ...]  # its columns
    # row → a number for each column, in per cent; None where the paper has none
    rows: Mapping[str, tuple[float | None, ...]]

    def number(self, row: str, dataset: str) -> float | None:
        """The number in a row under a data set; None where the paper prints none."""
        if row not in self.rows or dataset not in self.datasets:
            return None
        return self.rows[row][self.datasets.index(dataset)]


@dataclass(frozen=True)
class Paper:
    """What the paper prints."""

    source: str  # the paper
    datasets: tuple[str, ...]  # the seven data sets, in the order of Table 1
    tables: Mapping[str, PaperTable]  # "table1", "table2", "table3", "figure3" and "figure4"
    parameters: Mapping[str, int]  # row of Table 4 → trained numbers


def load_paper() -> Paper:
    """The numbers that come with the package."""
    content = json.loads(resources.files("masp.reproduce").joinpath("paper.json").read_text(encoding="utf-8"))
    tables = {name: _printed(value) for name, value in content.items() if isinstance(value, dict) and name != "table4"}
    return Paper(content["source"], tuple(content["datasets"]), tables, dict(content["table4"]["rows"]))


def zero_shot_row(backbone: str) -> str | None:
    """The row of Table 1 that a backbone's name belongs to; None for one that the paper did not measure."""
    folded = backbone.casefold()
    return next((row for row, names in BACKBONES.items() if any(name in folded for name in names)), None)


def _printed(table: Mapping[str, Any]) -> PaperTable:
    rows = {name: tuple(numbers) for name, numbers in table["rows"].items()}
    return PaperTable(table["title"], tuple(table["datasets"]), rows)


@dataclass(frozen=True)
class OtherSystem:
    """One system."""

    paper: str = ""  # the row of Table 1 that it stands beside; "" for none
    over: str = ""  # the system of this table that it stands on, which is then learned once for both
    aspects: tuple[str, ...] = ()  # the aspects of stage 1 that it reads
    prompt: Spec | None = None  # the row whose soft prompt it reads, which is then trained once for both; None for none
    annotated: bool = False  # whether it learns annotated aspects of the data set


OTHERS: Mapping[str, OtherSystem] = {
    "zero-shot-letters": OtherSystem(),
    "sepm": OtherSystem("SEPM"),
    "probe": OtherSystem(),
    "qlora": OtherSystem(),
    "instruction": OtherSystem("EmoVIT", annotated=True),
    "distilled": OtherSystem("EmoVLM-KD", over="qlora"),
    "concepts": OtherSystem(aspects=ASPECTS, prompt=SOFT, annotated=True),
}
"""Name in the catalogue → what it is here, in the order of the table; a system comes after the one it stands on."""

ADAPTERS = {"concepts": ("aspects", "prompt", "task")}
"""Settings that name adapters: here these are made by the cells that a system needs, so nobody sets them."""

QUICKLY: tuple[str, ...] = (
    "qlora.max_steps=2",
    "qlora.batch_size=8",
    "instruction.max_steps=2",
    "instruction.batch_size=8",
    "distilled.teacher_epochs=1",
    "distilled.head_epochs=1",
    "distilled.gate_epochs=1",
    "concepts.fewest=2",
)
"""As few steps as possible."""


def spec_of(name: str) -> Spec:
    """The spec of a system."""
    other = OTHERS[name]
    seeded = CATALOGUE[name].seeded or other.prompt is not None
    return Spec(name, "baseline", other.aspects, seeded=seeded)


def all_specs() -> tuple[Spec, ...]:
    """The specs of all systems, in the order of the table."""
    return tuple(spec_of(name) for name in OTHERS)


def read_by(reading: Reading) -> tuple[str, ...]:
    """The reading as a setting of every system that has one; the others give probabilities and no text."""
    if reading == "score":
        return ()
    return tuple(f"{name}.reading={reading}" for name in OTHERS if "reading" in settings_of(name))


def alone(spec: Spec) -> bool:
    """Whether the backbone answers as it was released, with nothing trained beside it."""
    return spec == PLAIN or (spec.kind == "baseline" and CATALOGUE[spec.name].alone)


def over_of(name: str, changes: Sequence[str]) -> str:
    """The system of this table that it stands on; "" where it stands on none, or the settings name one."""
    named = any(change.startswith(f"{name}.over=") for change in changes)
    return "" if named else OTHERS[name].over


def divided(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the method and of both stages, and settings of other systems, which begin with a system's name.

    Raises:
        UsageError: a setting that a system does not have.
    """
    own, others = list[str](), list[str]()
    for change in changes:
        key, dot, rest = change.partition(".")
        name = current_name(key) if dot else key
        if name not in OTHERS:
            others.append(change)
            continue
        own.append(f"{name}.{rest}")
        setting = rest.partition("=")[0]
        possible = [one for one in settings_of(name) if one not in ADAPTERS.get(name, ())]
        if setting not in possible:
            known = ", ".join(possible) or "none"
            raise UsageError(f"{name} has no setting '{setting}'", f"one of {known}", "Correct it.")
    return others, own


def changes_of(name: str, changes: Sequence[str]) -> tuple[str, ...]:
    """The settings of one system as the catalogue takes them, those of the system it stands on included."""
    result = [change.partition(".")[2] for change in changes if change.startswith(f"{name}.")]
    over = over_of(name, changes)
    if over:
        result += [f"over={over}", *(f"over.{change}" for change in changes_of(over, changes))]
    return tuple(result)


ASKING = ("qlora", "instruction")
"""Systems that learn answers of the language model."""

DISTILLED_PARTS = ("teacher", "head", "gate")
"""What `distilled` trains, one after the other."""


@dataclass(frozen=True)
class StepBudget:
    """What a soft prompt learns from on one data set, and so every other system."""

    examples: int  # labelled training images
    steps: int  # of the optimiser
    batch_size: int  # emotion questions a step

    @property
    def questions(self) -> int:
        """Emotion questions in all steps together."""
        return self.steps * self.batch_size

    def epochs(self, batch_size: int) -> int:
        """Passes over the images that make at least these steps with such a batch."""
        return -(-self.steps * batch_size // self.examples)


def step_budget(stage: TrainConfig, examples: int) -> StepBudget:
    """The budget of one data set.

    Args:
        stage: settings of stage 2.
        examples: labelled training images, 1 or more.
    """
    steps = trainer.training_length(stage, -(-examples // stage.batch_size), 1.0).steps  # the rate does not matter here
    return StepBudget(examples, steps, stage.batch_size)


def budget_settings(stage: TrainConfig, budget: StepBudget, width: int) -> tuple[str, ...]:
    """What the rule sets, as "system.key=value"; what a person sets stands behind it and wins.

    Args:
        stage: settings of stage 2.
        budget: of the data set.
        width: of the language model, which decides the rate of LoRA layers.
    """
    common = {
        "learning_rate": natural_rate(width),
        "max_steps": budget.steps,
        "batch_size": budget.batch_size,
        "epochs": budget.epochs(budget.batch_size),
        "schedule": stage.schedule,
        "warmup": stage.warmup,
        "evaluate_every": stage.evaluate_every,
    }
    asking = [f"{name}.{key}={value}" for name in ASKING for key, value in common.items()]
    own = settings_of("distilled")
    least = budget.epochs(int(str(own["batch_size"])))
    parts = {f"{part}_epochs": max(int(str(own[f"{part}_epochs"])), least) for part in DISTILLED_PARTS}
    return (*asking, *(f"distilled.{key}={value}" for key, value in parts.items()))


def budget_note(
    budgets: Mapping[str, StepBudget], settings: RunConfig, changes: Sequence[str], left_out: Collection[str] = ()
) -> str:
    """The rule in words, for the tables.

    Args:
        budgets: by data set.
        settings: of both stages.
        changes: what was set otherwise, as "system.key=value".
        left_out: systems that none of the data sets has what they need for.
    """
    lengths = "; ".join(
        f"{name}: {one.steps} steps of {one.batch_size} ({one.questions / one.examples:.1f} × its "
        f"{one.examples:,} training images)"
        for name, one in budgets.items()
    )
    counted = "instruction.counted=emotion" in changes
    share = (
        "as many emotion questions, its questions about aspects besides"
        if counted
        else "as many questions, most of them about aspects"
    )
    instruction = "" if "instruction" in left_out else f"instruction has {share}; "
    fitted = "probe is" if "concepts" in left_out else "probe and concept bottleneck are"
    stage1 = settings.aspects
    longer = f", {stage1.max_steps} steps of {stage1.batch_size} pairs" if stage1.max_steps else ""
    text = (
        f"One budget for all that ask the language model the emotion question, the soft prompts and qlora: {lengths}. "
        f"{instruction}MASP learned aspects before, in stage 1{longer}. The parts of distilled have its own epochs, "
        f"but at least as many steps; {fitted} fitted to the optimum."
    )
    if settings.prompt.loss == "labels":
        others = " and ".join(name for name in ("qlora", "instruction") if name not in left_out)
        text += (
            f" The soft prompts learn which label is the most probable (prompt.loss=labels), {others} the tokens of "
            "the right answer."
        )
    learns = [name for name in (*ASKING, "distilled", "probe", "concepts") if name not in left_out]
    set_here = [one for one in changes if one.partition(".")[0] in learns and ".reading=" not in one]
    return text + (f" Set otherwise: {', '.join(set_here)}." if set_here else "")
