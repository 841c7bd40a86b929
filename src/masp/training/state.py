"""A run's state as named tensors and JSON values, and back: parameters, optimizer, best so far, random numbers."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from masp.core.errors import CheckpointError

_OPTIMIZER, _PARAMETER, _BEST, _RANDOM = "optimizer/", "parameter/", "best/", "random/"


@dataclass
class TrainerState:
    """Everything that changes during a run beside tensors and random numbers.

    Attributes:
        step: finished steps; epoch and batch within it follow from it.
        examples: examples seen in them.
        seconds: time spent in them.
        validated: the step of the last validation, -1 before the first.
        stale: validations since the best one.
        stopped: whether early stopping has ended the run.
        best_step: the step of the best validation, -1 before the first.
        best_metrics: what that validation measured.
        window: sum of the losses since the last log line.
        window_examples: number of examples in it.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    validated: int = -1
    stale: int = 0
    stopped: bool = False
    best_step: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    window: float = 0.0
    window_examples: int = 0


def state_dict(
    parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, best: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, random states included."""
    tensors = {f"{_PARAMETER}{name}": tensor.detach() for name, tensor in parameters.items()}
    tensors |= {f"{_BEST}{name}": tensor for name, tensor in best.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}/{key}"] = torch.as_tensor(value)
    tensors[f"{_RANDOM}cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"{_RANDOM}cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def load_state_dict(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors where they belong.

    Returns:
        The best parameters so far, empty before the first validation.

    Raises:
        CheckpointError: its trainable tensors are not those of this run.
    """
    found = {name.removeprefix(_PARAMETER): tensor for name, tensor in tensors.items() if name.startswith(_PARAMETER)}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != expected:
        raise CheckpointError(
            f"the checkpoint holds the tensors {shapes}", f"{expected}", "Name another --out, or remove the folder."
        )
    load_parameters(found, parameters)
    for name, parameter in parameters.items():
        prefix = f"{_OPTIMIZER}{name}/"
        moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if moments:
            # the count of steps stays where AdamW keeps it, on the CPU
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
    torch.set_rng_state(tensors[f"{_RANDOM}cpu"])
    cuda = [tensors[key] for key in sorted(tensors) if key.startswith(f"{_RANDOM}cuda")]
    if cuda and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    return {name.removeprefix(_BEST): tensor for name, tensor in tensors.items() if name.startswith(_BEST)}


@torch.no_grad()
def load_parameters(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy values into the parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def random_numbers() -> list[Any]:
    """The state of Python's own random numbers as JSON values."""
    version, words, gauss = random.getstate()
    return [version, list(words), gauss]


def set_random_numbers(state: list[Any]) -> None:
    """Restore what `random_numbers` returned."""
    random.setstate((state[0], tuple(state[1]), state[2]))
