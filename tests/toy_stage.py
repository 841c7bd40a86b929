"""A stage without images or a backbone: fits a line, remembers which examples it saw, and can stumble on purpose."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from masp.training.checkpoints import CheckpointStore
from masp.training.signals import StopRequest
from masp.training.trainer import Fit, LoopSettings, StepBatch, Trainer, TrainTask


def batches(epoch: int, first: int) -> list[tuple[int, ...]]:
    """Eleven examples in four batches, the last one smaller; the order depends on the epoch only."""
    order = torch.randperm(11, generator=torch.Generator().manual_seed(epoch)).tolist()
    return [tuple(order[start : start + 3]) for start in range(0, 11, 3)][first:]


SETTINGS = LoopSettings(
    steps=20,
    steps_per_epoch=4,
    batches=batches,
    learning_rate=0.05,
    warmup=0.1,
    schedule="cosine",
    weight_decay=0.0,
    clip=1.0,
    log_every=3,
    validate_every=5,
    patience=None,
    checkpoint_every=3,
    checkpoint_seconds=1e9,
    identity="toy",
)


class ToyStage:
    """y = w x + b on eleven points, with noise from torch's own random numbers so that their state matters."""

    name, unit, score = "toy", "points", ("negative_error",)

    def __init__(self, before_step: Callable[[int], None] = lambda step: None, weights: torch.Tensor | None = None):
        self.weight, self.bias = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, tuple[int, ...]]] = []
        self.before_step = before_step
        self.example_weights = weights
        points = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(11, 5, generator=points)
        self.outputs = self.inputs @ torch.arange(5.0) + 2

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight, "bias": self.bias}

    def weights(self) -> torch.Tensor | None:
        return self.example_weights

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        for share in shares:
            yield replace(share, loaded=self.inputs[list(share.examples)])

    def losses(self, share: StepBatch) -> torch.Tensor:
        self.before_step(share.step)
        self.seen.append((share.step, share.examples))
        noise = 0.1 * torch.randn(len(share.examples))
        return (share.loaded @ self.weight + self.bias - self.outputs[list(share.examples)] + noise) ** 2

    def validate(self, stop: StopRequest) -> dict[str, float]:
        stop.check()
        error = (self.inputs @ self.weight.detach() + self.bias.detach() - self.outputs).square().mean()
        return {"negative_error": -float(error)}


def train(out: Path, stage: ToyStage, settings: LoopSettings = SETTINGS, stop: StopRequest | None = None) -> Fit:
    """One run of the toy in `out`, as a command would start it."""
    out.mkdir(exist_ok=True)
    store = CheckpointStore(out / "checkpoints", keep=2)
    store.clean()
    trainer = Trainer(stage, settings, store, Accelerator(cpu=True))
    if stop is not None:
        return trainer.fit(out / "metrics.jsonl", stop)
    with StopRequest() as own:
        return trainer.fit(out / "metrics.jsonl", own)


def numbers(stage: ToyStage) -> list[float]:
    """The trained values, to be compared bit by bit."""
    return [*stage.weight.detach().tolist(), float(stage.bias.detach())]


def gradients(folder: Path, stage: TrainTask, examples: Sequence[int], micro: int | None) -> dict[str, torch.Tensor]:
    """Gradients of one step over these examples, passed in pieces of `micro`."""
    settings = replace(SETTINGS, steps=1, steps_per_epoch=1, batches=lambda epoch, first: [examples], micro_batch=micro)
    trainer = Trainer(stage, settings, CheckpointStore(folder), Accelerator(cpu=True))
    trainer._accumulate(iter(stage.load(trainer._shares())))
    found = {name: one.grad.clone() for name, one in stage.parameters().items() if one.grad is not None}
    trainer.optimizer.zero_grad(set_to_none=True)
    return found
