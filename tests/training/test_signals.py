"""A signal that nobody asks about any more: it is told when the run is over, and what was finished stays finished."""

import signal

import pytest
import torch

from fixtures import tiny
from fixtures import training as small
from masp.adapters import load_adapter
from masp.cli.console import guarded
from masp.training import Interrupted, train_aspects, train_prompt
from masp.training import run_stage as recipe
from masp.training.signals import StopRequest
from masp.training.stage2 import PromptStage

SHORT = ("aspects.max_steps=1", "prompt.max_steps=1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small.write_dataset(tmp_path_factory.mktemp("data"))


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_behind_the_last_check_is_told_at_the_end(name):
    before, done = handlers(), []
    with pytest.raises(Interrupted, match=f"the run was interrupted by {name}"), StopRequest() as stop:  # noqa: PT012
        stop.check()
        signal.raise_signal(signal.Signals[name])
        done.append("the rest")
    assert done == ["the rest"]
    assert handlers() == before


def test_an_error_is_told_before_a_signal():
    with pytest.raises(ValueError, match="worse"), StopRequest():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("worse")


def test_a_signal_for_an_inner_request_is_not_lost_to_the_outer_one():
    before, done = handlers(), []
    with pytest.raises(Interrupted), StopRequest():  # noqa: PT012
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
        done.append("behind it")
    assert done == []
    assert handlers() == before


def with_signal(monkeypatch, owner, name):
    """Let a call be followed by SIGTERM."""
    call = getattr(owner, name)

    def wrapped(*args, **more):
        found = call(*args, **more)
        signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(("owner", "name"), [(recipe, "save_adapter"), (PromptStage, "validate")])
def test_the_run_is_whole_and_the_same_command_finds_it(tmp_path, dataset, monkeypatch, owner, name):
    with monkeypatch.context() as patch:
        with_signal(patch, owner, name)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train_prompt(small.config(*SHORT), dataset, tiny.backbone(), None, tmp_path / "cut")
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: pytest.fail("it trains"))
    result = train_prompt(small.config(*SHORT), dataset, tiny.backbone(), None, tmp_path / "cut")
    assert result.steps == 1
    assert load_adapter(result.adapter, tiny.backbone()).prompt is not None


def test_stage_2_does_not_begin_behind_a_signal(tmp_path, dataset, monkeypatch, capsys):
    """As `masp train all` does both."""

    def both():
        config = small.config(*SHORT)
        train_aspects(config, dataset, tiny.backbone(), tmp_path / "aspects")
        train_prompt(config, dataset, tiny.backbone(), tmp_path / "aspects", tmp_path / "prompt")

    with monkeypatch.context() as patch:
        with_signal(patch, recipe, "save_adapter")
        assert guarded(both, debug=False) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("masp: error: the run was interrupted by SIGTERM")
    assert said.endswith("Give the same command again: it goes on from there.")
    assert (tmp_path / "aspects" / "adapter" / "adapter.json").is_file()
    assert not (tmp_path / "prompt").exists()
    assert guarded(both, debug=False) == 0
    assert (tmp_path / "prompt" / "adapter" / "adapter.json").is_file()
