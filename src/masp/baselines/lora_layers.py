"""LoRA layers of PEFT around a frozen backbone's own layers: inside the backbone while a block of code runs, then out.

PEFT builds its layers in a holder of its own, so that the backbone is touched by nothing but the exchange in `inside`,
which is undone however the block ends. Other systems on the same backbone never meet them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from masp.backbones.base import Backbone
from masp.baselines.base import Reading
from masp.core.errors import CheckpointError, UsageError

ADAPTER = "masp"  # what PEFT calls them
RATE = 0.5
"""Learning rate of LoRA layers times the width of the language model; benchmarks/baseline_rates.py."""


def natural_rate(width: int) -> float:
    """The learning rate where none is set, 1.4e-4 at a width of 3584 (Qwen2-VL-7B).

    One step of AdamW moves every number by up to the rate, and so what a matrix makes of a vector by up to the rate
    times the width of its size.
    """
    return float(f"{RATE / width:.3g}")


@dataclass(frozen=True)
class LoraSettings:
    """What is trained, and how.

    Rank 8 on query and value projections is Table 4 of the paper. It says no more about its QLoRA row, so alpha,
    dropout, schedule and epochs are those that EmoVLM-KD reports (with key and output projections too). The batch is
    ours: 8 as in stage 2, where EmoVLM-KD has 1. So is the rate where none is set; EmoVLM-KD has 1e-4 on a 7B.

    Attributes:
        rank: width of the bottleneck.
        alpha: the layers' output is multiplied with alpha / rank.
        dropout: share of the layers' inputs that is dropped in training.
        targets: last names of the linear layers that get one, in every block of the language model.
        learning_rate: its peak; None: `natural_rate` of the width of the language model.
        schedule: how it falls.
        warmup: share of the steps during which it rises.
        weight_decay: of the trained values.
        epochs: passes over the training examples.
        max_steps: stop after this many steps; None: after the epochs.
        counted: what `max_steps` counts where not every question is about the emotion: steps of all questions, or the
            emotion questions in them, so that the others come on top.
        batch_size: examples per step.
        micro_batch_size: examples that are passed at once; None: all of the step.
        max_grad_norm: norm to which larger gradients are scaled down; None: never.
        gradient_checkpointing: whether the blocks are computed again in the backward pass instead of kept; does not
            change the result.
        evaluate_every: epochs between measurements on val, the best of which is kept; 0: the last state is kept.
        eval_batch_size: images measured on val at once; None: as many as are trained at once, more on a small backbone.
        checkpoint_minutes: minutes between checkpoints; does not change the result.
        checkpoint_every: steps between checkpoints, beside those by time; None: none. Does not change the result.
        reading: how answers are read once it has learned; has no part in training.

    Raises:
        UsageError: a value out of its range.
    """

    rank: int = 8
    alpha: int = 8
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 5
    max_steps: int | None = None
    counted: Literal["questions", "emotion"] = "questions"
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_grad_norm: float | None = None
    gradient_checkpointing: bool = False
    evaluate_every: int = 1
    eval_batch_size: int | None = None
    checkpoint_minutes: float = 10.0
    checkpoint_every: int | None = None
    reading: Reading = "score"

    def __post_init__(self) -> None:
        whole = ("rank", "alpha", "epochs", "batch_size")
        ranges = {name: (getattr(self, name) >= 1, "1 or more") for name in whole}
        for name in ("max_steps", "micro_batch_size", "eval_batch_size", "checkpoint_every"):
            value = getattr(self, name)
            ranges[name] = (value is None or value >= 1, "1 or more, or None")
        ranges["max_grad_norm"] = (self.max_grad_norm is None or self.max_grad_norm > 0, "more than 0, or None")
        ranges["checkpoint_minutes"] = (self.checkpoint_minutes >= 0, "0 or more")
        ranges["evaluate_every"] = (self.evaluate_every >= 0, "0 or more")
        ranges["dropout"] = (0 <= self.dropout < 1, "a share from 0 to below 1")
        ranges["warmup"] = (0 <= self.warmup <= 1, "a share from 0 to 1")
        ranges["weight_decay"] = (0 <= self.weight_decay <= 1, "a number from 0 to 1")
        fine = self.learning_rate is None or 0 < self.learning_rate <= 10
        ranges["learning_rate"] = (fine, "a number above 0, at most 10, or None")
        ranges["targets"] = (bool(self.targets), "at least one name, like q_proj")
        for name, (fine, expected) in ranges.items():
            if not fine:
                raise UsageError(f"the LoRA setting {name} is {getattr(self, name)}", expected)


@dataclass(frozen=True)
class LoraTarget:
    """Where one layer goes: the attribute of a module, what stands there, and what stands there for a while."""

    parent: nn.Module
    name: str
    own: nn.Module
    wrapped: Any


class LoraLayers:
    """The layers for one backbone.

    What is trained is fp32 whatever the backbone was loaded in; a 4-bit backbone (bitsandbytes) makes it QLoRA.

    Args:
        backbone: stays frozen.
        settings: rank, alpha, dropout and targets count here.

    Raises:
        UsageError: PEFT cannot be imported, or a block has no linear layer of that name.
    """

    def __init__(self, backbone: Backbone, settings: LoraSettings) -> None:
        self._device = backbone.device
        self._places = tuple(_places(backbone, settings))
        self._parameters = {name: one for target in self._named() for name, one in _trained(*target)}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors, named "<block>.<layer>.lora_A" and "…lora_B"."""
        return dict(self._parameters)

    @property
    def count(self) -> int:
        """How many values are trained."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def weights(self) -> str:
        """The number format of the frozen weights they are added to, like "float32", "bfloat16" or "nf4"."""
        own: Any = self._places[0].own
        return str(own.weight.quant_type) if _in_4_bits(own) else str(own.weight.dtype).removeprefix("torch.")

    @property
    def quantised(self) -> bool:
        """Whether the frozen weights have 4 bits, which makes this QLoRA."""
        return _in_4_bits(self._places[0].own)

    @torch.no_grad()
    def start(self, seed: int) -> None:
        """Start values: A as PyTorch starts a linear layer, B zero, so that nothing changes at first.

        They are drawn on the CPU: one seed gives the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self._parameters.items():
            values = torch.zeros(parameter.shape)
            if name.endswith("lora_A"):
                nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            parameter.copy_(values)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put learned values in.

        Raises:
            CheckpointError: they are not those of these layers.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}:
            raise CheckpointError(
                "what was learned does not fit these LoRA layers", "the same rank and targets", "Name another folder."
            )
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    @contextmanager
    def inside(self, training: bool = False) -> Iterator[None]:
        """The backbone runs with these layers while this context is open.

        Args:
            training: whether dropout is on.
        """
        for target in self._places:
            target.wrapped.lora_dropout.train(training)
            setattr(target.parent, target.name, target.wrapped)
        try:
            yield
        finally:
            for target in self._places:
                setattr(target.parent, target.name, target.own)

    def _named(self) -> Iterator[tuple[int, LoraTarget]]:
        per_block = len({target.name for target in self._places})
        return ((index // per_block, target) for index, target in enumerate(self._places))


def _trained(block: int, target: LoraTarget) -> Iterator[tuple[str, nn.Parameter]]:
    for part in ("lora_A", "lora_B"):
        parameter = getattr(target.wrapped, part)[ADAPTER].weight
        parameter.data = parameter.data.float()  # PEFT makes them in the dtype of the backbone
        yield f"{block}.{target.name}.{part}", parameter


def _places(backbone: Backbone, settings: LoraSettings) -> Iterator[LoraTarget]:
    """Every target with its LoRA layer, block by block; PEFT sees a holder of the targets and nothing else."""
    targets = [_targets(block, settings.targets) for block in backbone.layers()]
    holder: Any = nn.ModuleList(nn.ModuleDict({name: own for name, (_, own) in block.items()}) for block in targets)
    holder.is_loaded_in_4bit = any(_in_4_bits(own) for block in targets for _, own in block.values())
    peft = _peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )
    with torch.random.fork_rng([]):  # PEFT draws start values; the caller's random numbers stay as they are
        peft.inject_adapter_in_model(config, holder, ADAPTER)
    for block, wrapped in zip(targets, holder, strict=True):
        for name, (parent, own) in block.items():
            yield LoraTarget(parent, name, own, wrapped[name])


def _targets(block: nn.Module, names: tuple[str, ...]) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The linear layers of these last names in one block, each with the module that holds it.

    Raises:
        UsageError: there is none of a name.
    """
    linear = {
        name: (parent, child)
        for parent in block.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    }
    missing = [name for name in names if name not in linear]
    if missing:
        raise UsageError(
            f"the backbone's blocks have no linear layer {', '.join(missing)}", f"some of {', '.join(linear)}"
        )
    return {name: linear[name] for name in names}


def _in_4_bits(module: nn.Module) -> bool:
    """Whether this is bitsandbytes' 4-bit layer, told by its name: the package need not be there."""
    return type(module).__name__ == "Linear4bit"


def _peft() -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:  # also of a version that is too old for transformers
        raise UsageError(
            f"peft cannot be imported ({error})", "", "Install it with: pip install 'masp[peft]'."
        ) from None
    return peft
