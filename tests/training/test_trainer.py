"""The loop itself: order, resumption to the bit, early stopping, weights, and what it says when things go wrong."""

import io
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from fixtures.toy_stage import SETTINGS, ToyStage, numbers, train
from masp.core.errors import CheckpointError, MaspError
from masp.core.runtime import Bar
from masp.core.settings import TrainConfig
from masp.data.splits import Batches
from masp.training.checkpoints import CheckpointStore
from masp.training.run_stage import loop_settings, tell_reach
from masp.training.signals import Interrupted, StopRequest
from masp.training.trainer import RateScale, Trainer, TrainingLength, rate_factor, reach, training_length


def whole(tmp_path: Path) -> tuple[list[float], list[tuple[int, tuple[int, ...]]]]:
    stage = ToyStage()
    torch.manual_seed(3)
    train(tmp_path / "whole", stage)
    return numbers(stage), stage.seen


class Died(Exception):
    """Stands for kill -9 in this process: nothing gets to clean up but what Python itself unwinds."""


def die_at(step: int):
    def before_step(now: int) -> None:
        if now == step:
            raise Died

    return before_step


@pytest.mark.parametrize("step", [0, 1, 3, 4, 7, 19])
def test_a_run_that_died_ends_with_the_same_bits(tmp_path, step):
    expected, order = whole(tmp_path)
    torch.manual_seed(3)
    with pytest.raises(Died):
        train(tmp_path / "cut", ToyStage(die_at(step)))
    torch.manual_seed(4 if step >= 3 else 3)  # a later start must not depend on the seed of its own process
    stage = ToyStage()
    fit = train(tmp_path / "cut", stage)
    assert numbers(stage) == expected
    assert stage.seen == order[step - step % 3 :]  # it went on exactly behind the last checkpoint
    assert fit.steps == 20
    assert fit.examples == 55


def test_every_example_is_seen_once_per_epoch(tmp_path):
    _, order = whole(tmp_path)
    for epoch in range(5):
        seen = [example for step, examples in order if step // 4 == epoch for example in examples]
        assert sorted(seen) == list(range(11))


def test_the_metrics_file_is_cut_back_to_the_checkpoint(tmp_path):
    with pytest.raises(Died):
        train(tmp_path, ToyStage(die_at(8)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')  # a line that was being written
    train(tmp_path, ToyStage())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [3, 6, 9, 12, 15, 18, 20]
    assert [line["step"] for line in lines if line["event"] == "validation"] == [5, 10, 15, 20]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, name):
    expected, order = whole(tmp_path)
    torch.manual_seed(3)
    stage = ToyStage(lambda step: signal.raise_signal(signal.Signals[name]) if step == 7 else None)
    with pytest.raises(Interrupted, match=name):
        train(tmp_path / "cut", stage)
    assert len(stage.seen) == 8
    again = ToyStage()
    train(tmp_path / "cut", again)
    assert stage.seen + again.seen == order
    assert numbers(again) == expected


def test_a_second_interrupt_aborts_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_during_validation_is_not_lost(tmp_path):
    class Slow(ToyStage):
        def validate(self, stop):
            signal.raise_signal(signal.SIGTERM)
            return super().validate(stop)

    expected, _ = whole(tmp_path)
    torch.manual_seed(3)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", Slow())
    stage = ToyStage()
    train(tmp_path / "cut", stage)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "validation"] == [5, 10, 15, 20]
    assert numbers(stage) == expected


def test_patience_is_counted_in_epochs_however_often_is_measured():
    order, found = Batches(10, 5, 0), {}
    for patience, every in [(1, 1), (3, 1), (1, 2), (3, 2), (4, 2), (5, 2), (2, 7)]:
        settings = TrainConfig(patience=patience, evaluate_every=every)
        found[patience, every] = loop_settings(settings, order, "").patience
    # with a validation every second epoch, the first at which 3 epochs have passed without a better one is the second
    assert found == {(1, 1): 1, (3, 1): 3, (1, 2): 1, (3, 2): 2, (4, 2): 2, (5, 2): 3, (2, 7): 1}
    assert loop_settings(TrainConfig(evaluate_every=0), order, "").patience is None


def test_what_was_given_holds_and_what_was_not_follows_from_the_data():
    given = training_length(TrainConfig(learning_rate=0.3, epochs=2, min_steps=100), per_epoch=5, scale=0.1)
    assert given == TrainingLength(0.3, 10, 5)
    free = TrainConfig(learning_rate_scale=0.5, min_steps=100)
    assert training_length(free, per_epoch=5, scale=0.1) == TrainingLength(0.05, 100, 10)  # measured every second epoch
    assert training_length(free, per_epoch=40, scale=2.0) == TrainingLength(1.0, 120, 40)  # three epochs are more
    assert training_length(free.model_copy(update={"max_steps": 30}), per_epoch=5, scale=1.0).steps == 30
    assert training_length(free.model_copy(update={"evaluate_every": 0}), per_epoch=5, scale=1.0).validate_every == 0


@pytest.mark.parametrize(("changes", "kept"), [({"per_epoch": 6}, False), ({"scale": 2.0}, False), ({}, True)])
def test_another_length_or_rate_is_another_run_for_a_checkpoint(changes, kept):
    settings = TrainConfig(min_steps=10)
    usual = {"per_epoch": 5, "scale": 1.0}
    first, second = (
        loop_settings(settings, Batches(5 * own["per_epoch"], 5, 0), "same", own["scale"]).identity
        for own in (usual, usual | changes)
    )
    assert (first == second) == kept


@pytest.mark.parametrize(
    ("rate", "schedule", "level"), [(1e-4, "cosine", "WARNING"), (0.02, "cosine", "INFO"), (2e-4, "constant", "INFO")]
)
def test_how_far_a_number_can_move_is_said_and_too_little_is_a_warning(caplog, rate, schedule, level):
    """69 steps at 1e-4 (cosine) are 0.0035 beside a spread of 0.116."""
    settings = TrainConfig(learning_rate=rate, epochs=1, schedule=schedule)
    budget = training_length(settings, 69, 1.0)
    with caplog.at_level("INFO"):
        tell_reach(settings, budget, RateScale(0.116, 0.116, "the embeddings"))
    assert [record.levelname for record in caplog.records] == [level]
    assert f"{reach(budget, 0.03, schedule):.2g}" in caplog.text


def test_the_sum_of_the_rates_bounds_how_far_a_number_moves():
    parameter = torch.nn.Parameter(torch.zeros(50))
    optimizer, budget = torch.optim.AdamW([parameter], weight_decay=0.0), TrainingLength(0.02, 40, 0)
    for step in range(budget.steps):
        optimizer.param_groups[0]["lr"] = 0.02 * rate_factor(step, budget.steps, 0.03, "cosine")
        parameter.grad = torch.arange(1.0, 51)
        optimizer.step()
    assert float(parameter.detach().abs().max()) == pytest.approx(reach(budget, 0.03, "cosine"), rel=1e-3)


def test_the_last_state_is_kept_if_asked_for(tmp_path):
    class Worsening(ToyStage):
        def validate(self, stop):
            return {"negative_error": -float(len(self.seen))}

    torch.manual_seed(3)
    stage = Worsening()
    found = train(tmp_path, stage, replace(SETTINGS, keep="last"))
    assert found.metrics == {"negative_error": -float(SETTINGS.steps)}
    torch.manual_seed(3)
    last = Worsening()
    train(tmp_path / "unmeasured", last, replace(SETTINGS, validate_every=0))
    assert numbers(stage) == numbers(last)


def test_the_best_state_is_kept_not_the_last(tmp_path):
    class Worsening(ToyStage):
        def validate(self, stop):
            self.rounds = getattr(self, "rounds", 0) + 1
            self.kept = numbers(self) if self.rounds == 2 else getattr(self, "kept", None)
            return {"negative_error": {1: 1.0, 2: 5.0}.get(self.rounds, 2.0)}

    stage = Worsening()
    fit = train(tmp_path, stage)
    assert stage.kept == numbers(stage)
    assert fit.metrics == {"negative_error": 5.0}
    assert fit.steps == 20


def test_patience_ends_the_run_early_and_a_rerun_does_not_go_on(tmp_path):
    class Flat(ToyStage):
        def validate(self, stop):
            return {"negative_error": 1.0}

    settings = replace(SETTINGS, patience=2)
    assert train(tmp_path, Flat(), settings).steps == 15
    again = Flat()
    assert train(tmp_path, again, settings).steps == 15
    assert again.seen == []


def test_weights_multiply_the_losses(tmp_path):
    weights = torch.zeros(11)
    weights[4] = 11.0
    stage = ToyStage(weights=weights)
    train(tmp_path, stage, replace(SETTINGS, steps=4, checkpoint_every=100))
    step = next(step for step, examples in stage.seen if 4 in examples)
    unmoved = ToyStage(weights=weights)
    train(tmp_path / "unmoved", unmoved, replace(SETTINGS, steps=max(step, 1), schedule="constant", warmup=0.0))
    assert numbers(stage) != [0.0] * 6
    assert (numbers(unmoved) == [0.0] * 6) == (step > 0)


def test_a_loss_that_is_no_number_is_an_error_and_not_a_checkpoint(tmp_path):
    class Broken(ToyStage):
        def losses(self, share):
            return super().losses(share) * (float("nan") if share.step == 7 else 1.0)

    with pytest.raises(MaspError, match="the loss became nan"):
        train(tmp_path, Broken())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    train(tmp_path, ToyStage())
    with pytest.raises(CheckpointError, match="another configuration"):
        train(tmp_path, ToyStage(), replace(SETTINGS, identity="other"))


def test_the_schedule_rises_falls_and_never_starts_at_zero():
    cosine = [rate_factor(step, 100, 0.1, "cosine") for step in range(100)]
    assert cosine[0] == pytest.approx(1 / 11)
    assert max(cosine) == cosine[10] == 1.0
    assert cosine[:11] == sorted(cosine[:11])
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert cosine[55] == pytest.approx(0.5)
    assert [rate_factor(step, 4, 0.0, "linear") for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {rate_factor(step, 7, 0.0, "constant") for step in range(7)} == {1.0}


def test_the_bar_shows_loss_pace_and_time_left():
    shown = io.StringIO()
    console = Console(force_terminal=True, width=120, file=shown)
    with Bar("prompt", 40, 10, "images", console) as bar:
        bar.show(20, 1.25, 183.4)
        bar.show(21)
        bar.advance(2)
        bar.advance()
    text = shown.getvalue()
    for part in ("prompt", "24/40", "loss 1.2500", "183 images/s", "0:00:"):
        assert part in text
    silent = io.StringIO()
    with Bar("prompt", 40, console=Console(file=silent)) as bar:
        bar.show(20, 1.25, 183.4)
    assert silent.getvalue() == ""


# --- what a step is made of ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2, 3, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_in_pieces_is_the_whole_step(tmp_path, micro, weighted):
    """Up to rounding, whatever the pieces; their losses are those of the whole batch, in the log too."""
    weights = torch.linspace(0.2, 1.8, 11) if weighted else None
    found, losses = [], []
    for name, size in (("whole", None), ("pieces", micro)):
        stage = ToyStage(weights=weights)
        torch.manual_seed(3)
        train(tmp_path / name, stage, replace(SETTINGS, micro_batch=size))
        found.append(torch.tensor(numbers(stage)))
        logged = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in logged if line["event"] == "step"])
    assert (found[0] - found[1]).abs().max() <= 1e-5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert max(len(examples) for _, examples in stage.seen) == min(micro, 3)
    assert sorted(number for step, examples in stage.seen if step < 4 for number in examples) == list(range(11))


@pytest.mark.parametrize("step", [1, 7])
def test_a_run_in_pieces_that_died_ends_with_the_same_bits(tmp_path, step):
    settings = replace(SETTINGS, micro_batch=2)
    whole = ToyStage()
    torch.manual_seed(3)
    train(tmp_path / "whole", whole, settings)
    torch.manual_seed(3)
    with pytest.raises(Died):
        train(tmp_path / "cut", ToyStage(die_at(step)), settings)
    torch.manual_seed(3)
    again = ToyStage()
    train(tmp_path / "cut", again, settings)
    assert numbers(again) == numbers(whole)


def test_gradients_are_scaled_down_to_the_norm_that_was_asked_for(tmp_path):
    """AdamW does not see the scale of one step, so the gradient itself is compared."""
    norms = []

    class Watched(ToyStage):
        def losses(self, share):
            if share.step == 1:
                moments = trainer.optimizer.state[self.weight]["exp_avg"], trainer.optimizer.state[self.bias]["exp_avg"]
                norms.append(float(torch.cat([one.flatten() for one in moments]).norm()) / 0.1)  # 1 - beta1
            return super().losses(share)

    for clip in (None, 0.5):
        stage = Watched()
        store = CheckpointStore(tmp_path / str(clip), keep=1)
        trainer = Trainer(stage, replace(SETTINGS, steps=2, clip=clip), store, Accelerator(cpu=True))
        with StopRequest() as stop:
            trainer.fit(tmp_path / f"{clip}.jsonl", stop)
    assert norms[0] > 1
    assert norms[1] == pytest.approx(0.5, rel=1e-4)


def steps_kept(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def test_checkpoints_are_written_by_time(tmp_path, monkeypatch):
    """A clock that goes on by a minute a step: with ten minutes between them, after steps 10 and 20, and at the end."""
    now = [0.0]
    monkeypatch.setattr("masp.training.trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def minute(step):
        now[0] += 60.0

    saved = []
    monkeypatch.setattr(CheckpointStore, "save", lambda self, checkpoint: saved.append(checkpoint.step))
    by_time = replace(SETTINGS, steps=25, checkpoint_every=None, checkpoint_seconds=600.0)
    train(tmp_path / "a", ToyStage(minute), by_time)
    assert saved == [10, 20, 25]
    saved.clear()
    train(tmp_path / "b", ToyStage(minute), replace(by_time, checkpoint_every=8))
    assert saved == [8, 16, 24, 25]  # one by steps counts for the time too
    saved.clear()
    train(tmp_path / "c", ToyStage(), replace(by_time, steps=3, checkpoint_seconds=0.0))
    assert saved == [1, 2, 3]


def test_an_interruption_leaves_a_checkpoint_whatever_the_time(tmp_path):
    stage = ToyStage(lambda step: signal.raise_signal(signal.SIGTERM) if step == 7 else None)
    with pytest.raises(Interrupted):
        train(tmp_path, stage, replace(SETTINGS, checkpoint_every=None))
    assert steps_kept(tmp_path) == [8]


def test_settings_reach_the_loop():
    settings = TrainConfig(micro_batch_size=2, max_grad_norm=0.5, checkpoint_minutes=3.0)
    found = loop_settings(settings, Batches(10, 5, 0), "")
    assert (found.micro_batch, found.clip, found.checkpoint_seconds, found.checkpoint_every) == (2, 0.5, 180.0, None)
    usual = loop_settings(TrainConfig(), Batches(10, 5, 0), "")
    assert (usual.micro_batch, usual.clip, usual.checkpoint_seconds) == (None, None, 600.0)
