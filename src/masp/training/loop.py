"""The one training loop: it knows examples, losses and scores, and nothing of images or language models."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from masp.errors import CheckpointError, MaspError
from masp.training.checkpoints import Checkpoint, CheckpointStore
from masp.training.interrupts import Interrupted, StopRequest
from masp.training.progress import Bar, MetricsFile
from masp.training.schedule import Schedule, rate_factor
from masp.training.state import Position, pack, put, random_numbers, set_random_numbers, unpack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """What the loop itself needs to know; how often things happen is counted in steps.

    `batches(epoch, first)` gives the examples of each step of an epoch, from its step `first` on; every example occurs
    once in an epoch, and the order depends on nothing but the epoch and the seed behind it.
    """

    steps: int
    steps_per_epoch: int
    batches: Callable[[int, int], Iterable[Sequence[int]]]
    learning_rate: float
    warmup: float
    schedule: Schedule
    weight_decay: float
    clip: float | None
    log_every: int
    validate_every: int  # 0: never, otherwise also at the end
    patience: int | None  # validations without a better one before the run stops
    checkpoint_every: int
    identity: str  # hash of all that decides the result; a checkpoint with another one is refused


@dataclass(frozen=True)
class Share:
    """One step's examples for this process: their numbers, and what the stage loaded for them."""

    step: int
    epoch: int
    examples: tuple[int, ...]
    total: int  # examples of all processes
    loaded: Any = None


@runtime_checkable
class Stage(Protocol):
    """What differs between the stages.

    Attributes:
        name: what is trained, for the progress bar.
        unit: what the progress bar calls its examples.
        score: the validation metrics that decide which state is kept, the most important first; more is better.
    """

    name: str
    unit: str
    score: tuple[str, ...]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name; nothing else changes during a run."""
        ...

    def weights(self) -> Float[Tensor, " examples"] | None:
        """What each example's loss is multiplied with (1 on average), or None for equal weights."""
        ...

    def load(self, shares: Iterable[Share]) -> Iterator[Share]:
        """The same shares in the same order, with `loaded` filled; may work ahead of the loop."""
        ...

    def losses(self, share: Share) -> Float[Tensor, " batch"]:
        """One loss for each example of the share, with a graph that reaches the trainable tensors."""
        ...

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Metrics on the validation split; empty where there is none."""
        ...


@dataclass(frozen=True)
class Fit:
    """How a run went: its steps, examples, seconds spent in steps, and the metrics of the state that was kept."""

    steps: int
    examples: int
    seconds: float
    metrics: dict[str, float]


class Trainer:
    """Trains one stage, going on from the last checkpoint where there is one.

    Args:
        stage: what is trained.
        settings: how.
        store: where checkpoints lie.
        accelerator: device, precision, processes and trackers.
    """

    def __init__(self, stage: Stage, settings: LoopSettings, store: CheckpointStore, accelerator: Accelerator) -> None:
        self.stage, self.settings, self.store, self.accelerator = stage, settings, store, accelerator
        self.parameters = stage.parameters()
        self.device = next(iter(self.parameters.values())).device
        self.weights = stage.weights()
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.stepper = accelerator.prepare(self.optimizer)
        self.at = Position()
        self.best: dict[str, Tensor] = {}
        self.saved = -1  # the position of the last checkpoint
        self.window: Tensor | float = 0.0  # grows on the device; read only when something is written
        self.logged = time.perf_counter()

    def fit(self, metrics: Path, stop: StopRequest) -> Fit:
        """Train to the end, and leave the best state (the last one, without validation) in the parameters.

        Args:
            metrics: the JSON-lines file.
            stop: asks between steps whether to go on.

        Raises:
            Interrupted: a signal arrived; the checkpoint is written.
            CheckpointError: the disk refuses to be written.
            MaspError: the loss is no longer a number.
        """
        length = self._restore()
        with MetricsFile(metrics, length) as self.metrics, self._bar() as self.bar:
            try:
                self._run(stop)
            except Interrupted:
                self._save()
                raise
        if self.best:
            put(self.best, self.parameters)
        return Fit(self.at.step, self.at.examples, self.at.seconds, dict(self.at.best_metrics))

    def _bar(self) -> Bar:
        return Bar(self.stage.name, self.settings.steps, self.at.step, self.stage.unit)

    def _run(self, stop: StopRequest) -> None:
        """All steps that are left, each followed by what is due at its position."""
        self._visit(stop)
        if self.at.stopped:
            return
        started = time.perf_counter()
        for share in self.stage.load(self._shares()):
            self._step(share)
            if self.at.step % self.settings.log_every == 0 or self.at.step == self.settings.steps:
                self._log()
            self.at.seconds += time.perf_counter() - started
            self._visit(stop)
            if self.at.stopped:
                break
            started = time.perf_counter()

    def _shares(self) -> Iterator[Share]:
        """The steps that are left, each with this process's part of its examples."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        start, batches = self.at.step, iter(())
        for step in range(start, self.settings.steps):
            epoch, first = divmod(step, self.settings.steps_per_epoch)
            if step == start or first == 0:
                batches = iter(self.settings.batches(epoch, first))
            examples = tuple(next(batches))
            yield Share(step, epoch, examples[rank::world], len(examples))

    def _step(self, share: Share) -> None:
        """One step of the optimizer."""
        settings, at = self.settings, self.at
        rate = settings.learning_rate * rate_factor(at.step, settings.steps, settings.warmup, settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if share.examples:
            losses = self.stage.losses(share)
            if self.weights is not None:
                losses = losses * self.weights[list(share.examples)].to(losses.device)
            self.accelerator.backward(losses.sum() / share.total)
            self.window = self.window + losses.detach().sum()
        if self.accelerator.num_processes > 1:
            self._add_gradients()
        if settings.clip is not None:
            self.accelerator.clip_grad_norm_(list(self.parameters.values()), settings.clip)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        at.window_examples += share.total
        at.examples += share.total
        at.step += 1

    def _add_gradients(self) -> None:
        """Sum the gradients of all processes; a tensor that none of them touched keeps having none."""
        tensors = list(self.parameters.values())
        touched = torch.tensor([float(tensor.grad is not None) for tensor in tensors], device=self.device)
        for tensor, count in zip(tensors, self._sum(touched).tolist(), strict=True):
            if count:
                tensor.grad = self._sum(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)

    def _sum(self, tensor: Tensor) -> Tensor:
        """A tensor summed over the processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        total = self.accelerator.reduce(tensor, "sum")
        assert isinstance(total, Tensor)
        return total

    def _visit(self, stop: StopRequest) -> None:
        """What is due at the present position: the question whether to go on, validation, checkpoint.

        An interruption may come between any two parts: the position says what has been done.
        """
        at, settings = self.at, self.settings
        last = at.step == settings.steps
        self.bar.show(at.step)
        self._check(stop)
        due = settings.validate_every and (last or at.step % settings.validate_every == 0)
        if at.step and due and at.validated != at.step:
            self._validate(stop)
        if at.step and (last or at.stopped or at.step % settings.checkpoint_every == 0):
            self._save()

    def _check(self, stop: StopRequest) -> None:
        """Stop where this process, or any other, was asked to: all of them leave after the same step."""
        if self.accelerator.num_processes > 1:
            asked = torch.tensor(float(stop.received is not None), device=self.device)
            if self._sum(asked).item() and stop.received is None:
                stop.received = "a signal to another process"
        stop.check()

    def _validate(self, stop: StopRequest) -> None:
        """Measure, remember the state if it is the best so far, and decide whether to stop early."""
        metrics = self.stage.validate(stop)
        self.at.validated = self.at.step
        if not metrics:
            return
        log.info("step %d: %s", self.at.step, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        self._record("validation", metrics)
        best = [self.at.best_metrics.get(name, -math.inf) for name in self.stage.score]
        if [metrics[name] for name in self.stage.score] > best:
            self.at.best_step, self.at.best_metrics, self.at.stale = self.at.step, metrics, 0
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            return
        self.at.stale += 1
        if self.settings.patience is not None and self.at.stale >= self.settings.patience:
            log.info("no better %s since step %d: stopping early", self.stage.score[0], self.at.best_step)
            self.at.stopped = True

    def _log(self) -> None:
        """Write the mean loss since the last line, and start a new window."""
        loss = self._window_sum() / max(1, self.at.window_examples)
        now = time.perf_counter()
        pace = self.at.window_examples / max(now - self.logged, 1e-9)
        self.bar.show(self.at.step, loss, pace)
        rate = self.optimizer.param_groups[0]["lr"]
        self._record("step", {"loss": loss, "learning_rate": rate, "examples_per_second": round(pace, 1)})
        self.window, self.at.window_examples, self.logged = 0.0, 0, now

    def _window_sum(self) -> float:
        """The sum of the losses since the last line, over all processes.

        Raises:
            MaspError: it is not a number.
        """
        window = torch.as_tensor(self.window, dtype=torch.float32, device=self.device)
        value = float(self._sum(window))
        if not math.isfinite(value):
            raise MaspError(
                f"the loss became {value} before step {self.at.step}",
                "a finite number",
                "Lower the learning rate, or use another dtype; the last checkpoint is from before.",
            )
        return value

    def _record(self, event: str, values: Mapping[str, float]) -> None:
        """One line for the metrics file, and the same for the trackers."""
        if self.accelerator.is_main_process:
            epoch = self.at.step / self.settings.steps_per_epoch
            self.metrics.write(event, {"step": self.at.step, "epoch": round(epoch, 4), **values})
        self.accelerator.log({f"{event}/{name}": value for name, value in values.items()}, step=self.at.step)

    def _save(self) -> None:
        """Write a checkpoint of the present position, unless there is one."""
        if self.saved == self.at.step:
            return
        self.at.window = self._window_sum()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "identity": self.settings.identity,
                "position": asdict(self.at),
                "epoch_and_batch": divmod(self.at.step, self.settings.steps_per_epoch),
                "metrics_length": self.metrics.sync(),
                "random": random_numbers(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "threads": torch.get_num_threads(),
            }
            self.store.save(Checkpoint(self.at.step, pack(self.parameters, self.optimizer, self.best), state))
        self.saved = self.at.step

    def _restore(self) -> int:
        """Take up the last checkpoint.

        Returns:
            The length to which the metrics file is cut.

        Raises:
            CheckpointError: it belongs to another configuration.
        """
        checkpoint = self.store.latest()
        if checkpoint is None:
            return 0
        state = checkpoint.state
        if state["identity"] != self.settings.identity:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} belongs to another configuration or other data",
                "one of this run",
                "Name another --out, or remove the folder checkpoints.",
            )
        if state["threads"] != torch.get_num_threads():
            log.warning(
                "the run was started with %d threads and goes on with %d: its last bits may differ",
                state["threads"],
                torch.get_num_threads(),
            )
        self.at = Position(**state["position"])
        self.best = unpack(checkpoint.tensors, self.parameters, self.optimizer)
        set_random_numbers(state["random"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.window = self.at.window if self.accelerator.is_main_process else 0.0
        self.saved = checkpoint.step
        log.info("going on from the checkpoint of step %d of %d", checkpoint.step, self.settings.steps)
        return state["metrics_length"]
