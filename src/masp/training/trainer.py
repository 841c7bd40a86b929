"""The one training loop and its learning rate: it knows examples, losses and scores, nothing of images or models."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from masp.core.errors import CheckpointError, MaspError
from masp.core.runtime import Bar
from masp.core.settings import TrainConfig
from masp.training.checkpoints import (
    Checkpoint,
    CheckpointStore,
    MetricsFile,
    TrainerState,
    load_parameters,
    load_state_dict,
    random_numbers,
    set_random_numbers,
    state_dict,
)
from masp.training.distributed import ALONE, Processes
from masp.training.signals import Interrupted, StopRequest

Schedule = Literal["cosine", "linear", "constant"]

PASSES = 3
"""Epochs of a run that names none and has data enough."""

VALIDATIONS = 10
"""About as often is measured on the split val, where a run names no epochs and each of them is short."""

NEGLIGIBLE = 0.1
"""A share of the spread of the embeddings; a soft prompt that cannot move further stays where it began."""


@dataclass(frozen=True)
class RateScale:
    """The natural scale of what a stage trains.

    Attributes:
        rate: what `learning_rate_scale` is multiplied with.
        spread: standard deviation of the numbers that a trained number is to be held against.
        name: what these numbers are.
    """

    rate: float
    spread: float
    name: str


@dataclass(frozen=True)
class TrainingLength:
    """How far and how long a run goes.

    Attributes:
        learning_rate: its peak.
        steps: of the optimizer.
        validate_every: steps between measurements on the split val; 0: never.
    """

    learning_rate: float
    steps: int
    validate_every: int


def training_length(settings: TrainConfig, per_epoch: int, scale: float) -> TrainingLength:
    """Rate and steps of a run: what was given, else what trains on any backbone and however few images there are.

    Args:
        settings: a rate and a number of epochs that are given hold as they are.
        per_epoch: steps in a pass over the examples, at least 1.
        scale: what `learning_rate_scale` is multiplied with where no rate is given (see `RateScale`).
    """
    rate = settings.learning_rate_scale * scale if settings.learning_rate is None else settings.learning_rate
    epochs, spaced = settings.epochs, 1
    steps = (epochs or PASSES) * per_epoch
    if epochs is None and steps < settings.min_steps:
        steps = settings.min_steps
        spaced = -(-steps // (VALIDATIONS * per_epoch))
    return TrainingLength(rate, min(steps, settings.max_steps or steps), settings.evaluate_every * spaced * per_epoch)


def rate_factor(step: int, total: int, warmup: float, schedule: Schedule) -> float:
    """What the learning rate is multiplied with in the step after `step` finished ones, in (0, 1].

    It rises in equal parts over the first `warmup` fraction of the steps, then falls to (almost) zero at the end.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0


def reach(budget: TrainingLength, warmup: float, schedule: Schedule) -> float:
    """About how far a number can move in a run: the sum of the rates, as a step of AdamW moves none by much more."""
    factors = (rate_factor(step, budget.steps, warmup, schedule) for step in range(budget.steps))
    return budget.learning_rate * sum(factors)


log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class LoopSettings:
    """What the loop itself needs to know; how often things happen is counted in steps, except for checkpoints.

    `batches(epoch, first)` gives the examples of each step of an epoch, from its step `first` on; every example occurs
    once in an epoch, and the order depends on nothing but the epoch and the seed behind it.

    `micro_batch` is the number of examples that one process passes forward and backward at once; None: all that fall
    to it in a step.
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
    checkpoint_every: int | None  # None: by time alone
    checkpoint_seconds: float  # 0: after every step
    identity: str  # hash of all that decides the result; a checkpoint with another one is refused
    keep: Literal["best", "last"] = "best"  # which of the states that were measured is left in the parameters
    micro_batch: int | None = None
    left_out: tuple[str, ...] = ()  # images that are not among the examples; it belongs to every checkpoint


@dataclass(frozen=True)
class StepBatch:
    """Examples of one step that this process passes at once: their numbers, and what the stage loaded for them.

    Attributes:
        step: the step.
        epoch: its epoch.
        examples: numbers of the examples.
        total: examples of the whole step, of all processes.
        last: whether the step ends with it.
        loaded: what the stage loaded.
    """

    step: int
    epoch: int
    examples: tuple[int, ...]
    total: int
    last: bool = True
    loaded: Any = None


@runtime_checkable
class TrainTask(Protocol):
    """What differs between the stages.

    Attributes:
        name: what is trained, for the progress bar.
        unit: what the progress bar calls its examples.
        score: the validation metrics that decide which state is kept, the most important first; more is better.
        lr_scales: share of the learning rate at which some trainable tensors learn, by name; the others at all of it.
        weights: what each example's loss is multiplied with (1 on average), or None for equal weights.
    """

    name: str
    unit: str
    score: tuple[str, ...]
    lr_scales: dict[str, float]
    weights: Float[Tensor, " examples"] | None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name; nothing else changes during a run."""
        ...

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """The same shares in the same order, with `loaded` filled; may work ahead of the loop."""
        ...

    def losses(self, share: StepBatch) -> Float[Tensor, " batch"]:
        """One loss for each example of the share, with a graph that reaches the trainable tensors."""
        ...

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Metrics on the validation split; empty where there is none."""
        ...


def groups_of(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in their order, so many together; the last group may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


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
        accelerator: device, precision and trackers.
        processes: that train together; each takes its share of every batch.
    """

    def __init__(
        self,
        stage: TrainTask,
        settings: LoopSettings,
        store: CheckpointStore,
        accelerator: Accelerator,
        processes: Processes = ALONE,
    ) -> None:
        self.stage, self.settings, self.store, self.accelerator = stage, settings, store, accelerator
        self.processes = processes
        self.parameters = stage.parameters()
        self.device = next(iter(self.parameters.values())).device
        self.weights = stage.weights
        groups: dict[float, list[nn.Parameter]] = {}
        scales = stage.lr_scales
        for name, parameter in self.parameters.items():
            groups.setdefault(scales.get(name, 1.0), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": own, "lr_scale": scale} for scale, own in groups.items()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.stepper = accelerator.prepare_optimizer(self.optimizer)  # not `prepare`, which wants a model under FSDP
        self.at = TrainerState()
        self.rate = 0.0  # of the last step
        self.best: dict[str, Tensor] = {}
        self.saved = -1  # the position of the last checkpoint
        self.window: Tensor | float = 0.0  # grows on the device; read only when something is written
        self.logged = self.written = time.perf_counter()
        self.due = False  # whether it is time for a checkpoint, as the process that writes it says

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
        with ExitStack() as stack:
            if self.processes.main:
                self.metrics = stack.enter_context(MetricsFile(metrics, length))
            self.bar = stack.enter_context(self._bar())
            try:
                self._run(stop)
            except Interrupted:
                self._save()
                raise
        if self.best:
            load_parameters(self.best, self.parameters)
        return Fit(self.at.step, self.at.examples, self.at.seconds, dict(self.at.best_metrics))

    def _bar(self) -> Bar:
        return Bar(self.stage.name, self.settings.steps, self.at.step, self.stage.unit)

    def _run(self, stop: StopRequest) -> None:
        """All steps that are left, each followed by what is due at its position."""
        self._visit(stop)
        if self.at.stopped:
            return
        started = time.perf_counter()
        shares = iter(self.stage.load(self._shares()))
        while self.at.step < self.settings.steps:
            self._step(shares)
            if self.at.step % self.settings.log_every == 0 or self.at.step == self.settings.steps:
                self._log()
            self.at.seconds += time.perf_counter() - started
            self._visit(stop)
            if self.at.stopped:
                break
            started = time.perf_counter()

    def _shares(self) -> Iterator[StepBatch]:
        """The steps that are left, each with this process's part of its examples, in pieces that are passed at once."""
        start, batches = self.at.step, iter(())
        for step in range(start, self.settings.steps):
            epoch, first = divmod(step, self.settings.steps_per_epoch)
            if step == start or first == 0:
                batches = iter(self.settings.batches(epoch, first))
            examples = tuple(next(batches))
            own = tuple(self.processes.shard(examples))
            size = self.settings.micro_batch or len(examples)
            pieces = groups_of(own, size) or [own]
            for number, piece in enumerate(pieces, 1):
                yield StepBatch(step, epoch, tuple(piece), len(examples), number == len(pieces))

    def _step(self, shares: Iterator[StepBatch]) -> None:
        """One step of the optimizer."""
        settings, at = self.settings, self.at
        rate = settings.learning_rate * rate_factor(at.step, settings.steps, settings.warmup, settings.schedule)
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        done = self.processes.all_gather(lambda: self._accumulate(shares))
        if self.processes.count > 1:
            self._add_gradients([touched for _, touched, _ in done])
        if settings.clip is not None:
            self.accelerator.clip_grad_norm_(list(self.parameters.values()), settings.clip)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        examples, _, self.due = done[0]
        at.window_examples += examples
        at.examples += examples
        at.step += 1

    def _accumulate(self, shares: Iterator[StepBatch]) -> tuple[int, list[bool], bool]:
        """Gradients of this process's part of a step, added up over the pieces that are passed at once.

        Returns:
            How many examples the whole step has, which tensors got a gradient, and whether by this process's clock it
            is time for a checkpoint.
        """
        share = next(shares)
        self._backward(share)
        while not share.last:
            share = next(shares)
            self._backward(share)
        due = time.perf_counter() - self.written >= self.settings.checkpoint_seconds
        return share.total, [tensor.grad is not None for tensor in self.parameters.values()], due

    def _backward(self, share: StepBatch) -> None:
        """Gradients of one piece; each example has its share of the step's mean, whatever piece it is in."""
        if share.examples:
            losses = self.stage.losses(share)
            if self.weights is not None:
                losses = losses * self.weights[list(share.examples)].to(losses.device)
            loss = losses.sum()
            self.accelerator.backward(loss / share.total)
            self.window = self.window + loss.detach()

    def _add_gradients(self, touched: Sequence[Sequence[bool]]) -> None:
        """Sum the gradients of all processes; a tensor that none of them touched keeps having none."""
        for tensor, one in zip(self.parameters.values(), zip(*touched, strict=True), strict=True):
            if any(one):
                tensor.grad = self.processes.add(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)

    def _visit(self, stop: StopRequest) -> None:
        """What is due at the present position: the question whether to go on, validation, checkpoint.

        An interruption may come between any two parts: the position says what has been done.
        """
        at, settings = self.at, self.settings
        last = at.step == settings.steps
        self.bar.show(at.step)
        self.processes.check(stop)
        due = settings.validate_every and (last or at.step % settings.validate_every == 0)
        if at.step and due and at.validated != at.step:
            self._validate(stop)
        every = settings.checkpoint_every
        if at.step and (last or at.stopped or self.due or (every and at.step % every == 0)):
            self._save()

    def _validate(self, stop: StopRequest) -> None:
        """Measure, remember the state if it is the best so far (or the last is wanted), and decide whether to stop."""
        metrics = self.stage.validate(stop)
        self.at.validated = self.at.step
        if not metrics:
            return
        log.info("step %d: %s", self.at.step, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        self._record("validation", metrics)
        best = [self.at.best_metrics.get(name, -math.inf) for name in self.stage.score]
        if self.settings.keep == "last" or [metrics[name] for name in self.stage.score] > best:
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
        rate = self.rate
        self._record("step", {"loss": loss, "learning_rate": rate, "examples_per_second": round(pace, 1)})
        self.window, self.at.window_examples, self.logged = 0.0, 0, now

    def _window_sum(self) -> float:
        """The sum of the losses since the last line, over all processes.

        Raises:
            MaspError: it is not a number.
        """
        value = sum(self.processes.all_gather(lambda: float(self.window)))
        if not math.isfinite(value):
            raise MaspError(
                f"the loss became {value} before step {self.at.step}",
                "a finite number",
                "Lower the learning rate, or use another dtype; the last checkpoint is from before.",
            )
        return value

    def _record(self, event: str, values: Mapping[str, float]) -> None:
        """One line for the metrics file, and the same for the trackers."""
        epoch = round(self.at.step / self.settings.steps_per_epoch, 4)
        self.processes.on_main(lambda: self.metrics.write(event, {"step": self.at.step, "epoch": epoch, **values}))
        self.accelerator.log({f"{event}/{name}": value for name, value in values.items()}, step=self.at.step)

    def _save(self) -> None:
        """Write a checkpoint of the present position, unless there is one."""
        if self.saved == self.at.step:
            return
        self.at.window = self._window_sum()
        self.processes.on_main(self._write)
        self.saved, self.due, self.written = self.at.step, False, time.perf_counter()

    def _write(self) -> None:
        scaler = self.accelerator.scaler
        state = {
            "identity": self.settings.identity,
            "position": asdict(self.at),
            "epoch_and_batch": divmod(self.at.step, self.settings.steps_per_epoch),
            "metrics_length": self.metrics.sync(),
            "random": random_numbers(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
            "left_out": list(self.settings.left_out),
        }
        self.store.save(Checkpoint(self.at.step, state_dict(self.parameters, self.optimizer, self.best), state))

    def _restore(self) -> int:
        """Take up the last checkpoint.

        Returns:
            The length to which the metrics file is cut.

        Raises:
            CheckpointError: it belongs to another configuration.
        """
        checkpoint = self.processes.on_main(self.store.latest)
        if checkpoint is None:
            return 0
        state = checkpoint.state
        if state["identity"] != self.settings.identity:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} belongs to another configuration or other data",
                "one of this run",
                "Name another --out, or remove the folder checkpoints.",
            )
        for what, now in (("threads", torch.get_num_threads()), ("processes", self.processes.count)):
            before = state.get(what, 1)
            if before != now:
                log.warning(
                    "the run was started with %d %s and goes on with %d: its last bits may differ", before, what, now
                )
        self.at = TrainerState(**state["position"])
        self.best = load_state_dict(checkpoint.tensors, self.parameters, self.optimizer)
        set_random_numbers(state["random"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.window = self.at.window if self.processes.main else 0.0
        self.saved = checkpoint.step
        log.info("going on from the checkpoint of step %d of %d", checkpoint.step, self.settings.steps)
        return state["metrics_length"]
