"""How long the systems of a comparison learn: one rule for all, read off the training of the soft prompt.

Where nothing else is set, a system that asks the language model learns as many steps of as many questions as a soft
prompt of the same data set does, with its schedule and warm-up. The parts of a distilled head, which ask nothing, keep
their system's own epochs, but learn at least as many steps. What has an optimum (probe, cue head) is fitted to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masp.baselines.lora_layers import natural_rate
from masp.baselines.registry import settings_of
from masp.core.settings import TrainConfig
from masp.training import trainer

ASKING = ("qlora", "instruction")
"""Systems that learn answers of the language model."""

PARTS = ("teacher", "head", "gate")
"""What `distilled` trains, one after the other."""


@dataclass(frozen=True)
class StepBudget:
    """What a soft prompt learns from on one data set, and so every other system.

    Attributes:
        examples: labelled training images.
        steps: of the optimiser.
        batch_size: emotion questions a step.
    """

    examples: int
    steps: int
    batch_size: int

    @property
    def questions(self) -> int:
        """Emotion questions in all steps together."""
        return self.steps * self.batch_size

    def epochs(self, batch_size: int) -> int:
        """Passes over the images that make at least these steps with such a batch."""
        return -(-self.steps * batch_size // self.examples)


def budget_of(stage: TrainConfig, examples: int) -> StepBudget:
    """The budget of one data set.

    Args:
        stage: settings of stage 2.
        examples: labelled training images, 1 or more.
    """
    steps = trainer.budget_of(stage, -(-examples // stage.batch_size), 1.0).steps  # the rate does not matter here
    return StepBudget(examples, steps, stage.batch_size)


def settings(stage: TrainConfig, budget: StepBudget, width: int) -> tuple[str, ...]:
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
    parts = {f"{part}_epochs": max(int(str(own[f"{part}_epochs"])), least) for part in PARTS}
    return (*asking, *(f"distilled.{key}={value}" for key, value in parts.items()))


def told(budgets: Mapping[str, StepBudget], stage1: TrainConfig, changes: Sequence[str]) -> str:
    """The rule in words, for the tables.

    Args:
        budgets: by data set.
        stage1: settings of stage 1.
        changes: what was set otherwise, as "system.key=value".
    """
    lengths = "; ".join(
        f"{name}: {one.steps} steps of {one.batch_size} ({one.questions / one.examples:.1f} × its "
        f"{one.examples:,} training images)"
        for name, one in budgets.items()
    )
    counted = "instruction.counted=emotion" in changes
    share = (
        "as many emotion questions, its questions about aspects besides" if counted else "most of them about aspects"
    )
    longer = f", {stage1.max_steps} steps of {stage1.batch_size} pairs" if stage1.max_steps else ""
    text = (
        f"One budget for all that ask the language model the emotion question, the soft prompts and qlora: {lengths}. "
        f"instruction has {'' if counted else 'as many questions, '}{share}; MASP learned aspects before, in stage 1"
        f"{longer}. The parts of distilled have its own epochs, but at least as many steps; probe and cue head are "
        "fitted to their optimum."
    )
    learns = (*ASKING, "distilled", "probe", "cues")
    set_here = [one for one in changes if one.partition(".")[0] in learns and ".reading=" not in one]
    return text + (f" Set otherwise: {', '.join(set_here)}." if set_here else "")
