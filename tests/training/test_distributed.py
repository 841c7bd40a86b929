"""Several processes: they learn and measure what one does, share the work, and end together, in words."""

import copy
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from fixtures import processes as several
from fixtures import tiny, toy_stage
from fixtures import training as small_training
from fixtures.toy_stage import ToyStage
from masp.core import runtime
from masp.core.errors import Agreement, DataError, MaspError, UsageError
from masp.training import distributed as room
from masp.training.checkpoints import CheckpointStore
from masp.training.disk_cache import DiskCache
from masp.training.distributed import ALONE, Processes, launched, patience
from masp.training.feature_cache import FeatureCache, ImageReading
from masp.training.signals import Interrupted, StopRequest
from masp.training.trainer import Trainer

NEAR = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return several.prepare(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def one(folder):
    done = several.lab(1, folder, "one", "learn", "measure")
    assert done.code == 0, done.err[-3000:]
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder, one):
    """What two processes made of the same, and what they said."""
    done = several.lab(2, folder, "two", "learn", "measure", "count")
    assert done.code == 0, done.err[-3000:]
    return folder / "two", done.reports


def weights(run):
    return load_file(run / "adapter" / "weights.safetensors")


def figures(folder):
    """A measurement: the bytes of its predictions, and everything else but how long it took."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["provenance"]["seconds"], summary["provenance"]["finished"]
    return (folder / "predictions.jsonl").read_bytes(), summary


def distance(left, right):
    """The largest difference of two adapters."""
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


# --- one process, many threads: the protocol itself ------------------------------------------------------------------


class Table:
    """A meeting place of threads, in the place of a network."""

    def __init__(self, count):
        self.barrier, self.values = threading.Barrier(count, timeout=several.LIMIT), {}

    def meet(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        told = copy.deepcopy([self.values[number] for number in range(len(self.values))])  # as a network hands it on
        self.barrier.wait()
        return told


def together(monkeypatch, work, count=3):
    """What `work` gave or raised in each of several processes, which are threads here."""
    table = Table(count)
    found: list[Any] = [None] * count
    monkeypatch.setattr(Processes, "_meet", lambda self, value: table.meet(self.rank, value))

    def one(rank):
        try:
            found[rank] = work(Processes(rank, count))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_parts_are_divided_and_come_back_in_order(monkeypatch):
    done = []

    def work(processes):
        return list(processes.share(range(7), lambda part: (done.append((part, processes.rank)), part * part)[1]))

    assert together(monkeypatch, work) == [[0, 1, 4, 9, 16, 25, 36]] * 3
    assert sorted(done) == [(part, part % 3) for part in range(7)]


def test_an_error_of_one_is_raised_by_all_and_told_by_one(monkeypatch):
    def work(processes):
        def fail():
            if processes.rank == 1:
                raise DataError("an image is gone", "it there", "Put it back.")
            return processes.rank

        processes.all_gather(fail)

    found = together(monkeypatch, work)
    assert [type(error) for error in found] == [DataError] * 3
    assert {str(error) for error in found} == {"an image is gone; expected it there. Put it back."}
    assert [error.agreed.tells for error in found] == [True, False, False]


def test_an_error_between_two_meetings_reaches_the_others_at_their_next_one(monkeypatch):
    """Process 2 fails in deep water; the others are two meetings further inside and hear of it there."""

    def work(processes):
        with processes.guarded():
            processes.all_gather(lambda: None)
            if processes.rank == 2:
                raise ValueError("made up\nin two lines")
            processes.on_main(lambda: "written")
            return "nobody comes here"

    found = together(monkeypatch, work)
    assert {str(error) for error in found} == {"process 2 failed: ValueError: made up in two lines"}
    assert [error.agreed.tells for error in found] == [True, False, False]


def test_guards_inside_guards_meet_once(monkeypatch):
    def work(processes):
        with processes.guarded(), processes.guarded():
            processes.all_gather(lambda: 1 / processes.rank)

    assert {str(error) for error in together(monkeypatch, work)} == {
        "process 0 failed: ZeroDivisionError: division by zero"
    }


def test_a_signal_to_one_stops_all_of_them(monkeypatch):
    """The other one may just be doing the next part."""
    done = []

    def work(processes):
        stop = StopRequest()

        def part(number):
            done.append((number, processes.rank))
            if processes.rank == 1:
                stop.received = "SIGTERM"

        list(processes.share(range(6), part, stop))

    found = together(monkeypatch, work, 2)
    assert [type(error) for error in found] == [Interrupted] * 2
    assert sorted(done) == [(0, 0), (1, 1), (2, 0)]


def test_a_signal_that_comes_while_they_ask_each_other_is_kept_for_the_next_time(monkeypatch):
    stop = StopRequest()

    def meet(self, value):
        stop.received = "SIGTERM"  # behind the question
        return [value, (None, None)]

    monkeypatch.setattr(Processes, "_meet", meet)
    Processes(0, 2).check(stop)
    with pytest.raises(Interrupted, match="SIGTERM"):
        Processes(0, 2).check(stop)


def test_a_signal_behind_the_last_check_is_heard_by_all(monkeypatch):
    def work(processes):
        with processes.stopping() as stop:
            processes.check(stop)
            if processes.rank == 2:
                stop.received = "SIGTERM"

    assert [type(error) for error in together(monkeypatch, work)] == [Interrupted] * 3


class Exact(ToyStage):
    """The toy without its noise, which each process would draw for itself."""

    def losses(self, share):
        self.seen.append((share.step, share.examples))
        return (share.loaded @ self.weight + self.bias - self.outputs[list(share.examples)]) ** 2


@pytest.mark.parametrize("micro", [None, 1, 2])
def test_the_pieces_of_all_processes_are_the_whole_step(micro):
    """Eight examples of weights of their own, by three processes."""
    settings = replace(
        toy_stage.SETTINGS, steps=1, steps_per_epoch=1, batches=lambda epoch, first: [range(8)], micro_batch=micro
    )
    found, calls = [], []
    for processes in (ALONE, *(Processes(rank, 3) for rank in range(3))):
        stage = Exact(weights=torch.linspace(0.1, 1.9, 11))
        own = replace(settings, micro_batch=None) if processes is ALONE else settings
        trainer = Trainer(stage, own, CheckpointStore(Path("unused")), Accelerator(cpu=True), processes)
        total, _, _ = trainer._accumulate(iter(stage.load(trainer._shares())))
        assert total == 8
        gradients = [stage.weight.grad, stage.bias.grad[None]]  # pyright: ignore[reportOptionalSubscript]
        found.append(torch.cat(gradients))
        calls.append(len(stage.seen))
    assert (torch.stack(found[1:]).sum(0) - found[0]).abs().max() <= 1e-5 * found[0].abs().max()
    assert calls[1:] == {None: [1, 1, 1], 1: [3, 3, 2], 2: [2, 2, 1]}[micro]


def refusing(refused):
    """`Path.read_bytes`, for which the system has no file handle left when it comes to one of the files."""
    read = Path.read_bytes

    def reading(self):
        if self == refused:
            raise OSError(24, "Too many open files")
        return read(self)

    return reading


def test_an_image_that_one_process_could_not_read_is_not_remembered_as_bad(monkeypatch, tmp_path):
    """20 images in two groups; the second, which is read by process 1, is handed on without the shelf."""
    paths = [record.path for record in small_training.write_dataset(tmp_path / "data", train=20, val=0).split("train")]
    monkeypatch.setattr(Path, "read_bytes", refusing(paths[17]))

    def work(processes):
        shelf = DiskCache(tmp_path / "shelf", 10**9)
        store = FeatureCache(tiny.backbone(), paths, ImageReading(workers=0), None, shelf, processes)
        store.fill(StopRequest())
        return store.usable, float(store.visual([19]).tokens.sum()), float(store.visual([0]).tokens.sum())

    one, two = together(monkeypatch, work, 2)
    assert one == two
    assert [number for number, usable in enumerate(one[0]) if not usable] == [17]
    assert len(list((tmp_path / "shelf").glob("*.safetensors"))) == 1


def test_only_the_first_process_writes(monkeypatch):
    wrote = []
    found = together(monkeypatch, lambda processes: processes.on_main(lambda: wrote.append(processes.rank) or "done"))
    assert found == ["done"] * 3
    assert wrote == [0]


def test_a_single_process_passes_errors_through_untouched():
    error = ValueError("as it is")

    def fail():
        raise error

    with pytest.raises(ValueError, match="as it is") as raised:
        list(ALONE.share([1], lambda _: fail()))
    assert raised.value is error
    assert launched(torch.device("cpu")) is ALONE


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_a_wrong_time_to_wait_is_refused(monkeypatch, text):
    monkeypatch.setenv(room.PATIENCE, text)
    with pytest.raises(UsageError, match=f"{room.PATIENCE} is {text}"):
        patience()


def test_what_the_launcher_says(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (runtime.rank(), runtime.local_rank(), runtime.count()) == (0, None, 1)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (runtime.rank(), runtime.local_rank(), runtime.count()) == (5, 1, 8)
    assert not runtime.is_main_process()


def test_weights_are_not_divided_between_processes(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match=r"--use_fsdp.*whole weights.*device=spread"):
        launched(torch.device("cpu"))


def test_the_boundary_says_a_shared_error_once(capsys):
    from masp.cli.console import guarded

    left = []
    for tells in (True, False):
        error = MaspError("a disk is full")
        error.agreed = Agreement(tells, lambda tells=tells: left.append(tells))

        def fail(error=error):
            raise error

        assert guarded(fail, False) == 1
    assert capsys.readouterr().err == "masp: error: a disk is full\n"
    assert left == [True, False]


# --- two real processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_learn_and_measure_what_one_does(one, two):
    both, _ = two
    runs = sorted(path.parent.name for path in one.glob("*/adapter"))
    assert len(runs) == 15
    for name in runs:
        assert distance(one / name, both / name) <= NEAR, name
    start = one / "plain-none"
    assert distance(start, one / "plain-prefix") > 0  # they are compared, not copied
    moved = weights(one / "aspects")["aspects.scene.queries"] - weights(one / "aspects")["aspects.object.queries"]
    assert moved.abs().max() > 100 * NEAR
    for mode in ("score", "generate"):
        assert figures(one / mode) == figures(both / mode)
        lines = (one / mode / "predictions.jsonl").read_text().splitlines()
        assert len({json.loads(line)["image"] for line in lines}) == len(lines) == 12
        assert json.loads((one / mode / "summary.json").read_text())["quarantined"][0]["image"].endswith("006.png")


@pytest.mark.slow
def test_a_shared_store_is_built_together(two):
    """26 images, each through the vision tower and into a prefix once in all; and the one that says how large it is."""
    counts = [report for report in two[1] if "vision" in report]
    assert sorted(report["vision"] for report in counts) == [10, 16]
    assert sorted(report["prefix"] for report in counts) == [11, 17]


@pytest.mark.slow
@pytest.mark.parametrize(("who", "kind"), [(1, "fail"), (0, "fail"), (1, "term"), (1, "kill"), (0, "hang")])
def test_what_happens_to_one_ends_all_and_the_same_run_goes_on_alone(folder, one, who, kind):
    """After three steps of nine; the run is then finished by one process, in another number than it began with."""
    name = f"cut-{who}-{kind}"
    began = time.monotonic()
    cases = (folder, name, f"{who}:{kind}", "resume")
    if kind == "kill":  # here the launcher has a part: it ends the others, if they do not
        done = several.launched(2, several.LAB, *cases, **{room.PATIENCE: "300"})
    else:
        waiting = {room.PATIENCE: "30" if kind == "hang" else "300"}
        done = several.lab(2, *cases, grace=5 if kind == "hang" else several.GRACE, **waiting)
    assert done.code != 0
    assert time.monotonic() - began < several.LIMIT / 2
    said = [line for line in done.err.splitlines() if line.startswith("masp: error")]
    if kind == "fail":
        assert said == [f"masp: error: process {who} failed: ValueError: made up in two lines"]
    elif kind == "term":
        assert len(said) == 1
        assert "the run was interrupted by SIGTERM" in said[0]
        assert "Give the same command again" in said[0]
    else:
        assert any("lost contact with the others" in line for line in said)
    assert not (folder / name / "resumed" / "adapter").exists()
    steps = [path.name for path in (folder / name / "resumed" / "checkpoints").iterdir()]
    assert max(steps) == ("step-00000004" if kind == "term" else "step-00000003")
    again = several.lab(1, folder, name, "resume")
    assert again.code == 0, again.err[-3000:]
    assert distance(folder / name / "resumed", one / "plain-prefix") <= NEAR
    assert not list((folder / name).rglob(".masp*"))


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_behind_the_last_step_lets_nothing_else_begin(folder, who):
    """The run itself is whole; the one that was to follow does not start, in no process."""
    done = several.lab(2, folder, f"late-{who}", f"{who}:late", "resume", "count")
    assert done.code != 0
    said = [line for line in done.err.splitlines() if line.startswith("masp: error")]
    assert len(said) == 1
    assert "the run was interrupted by SIGTERM" in said[0]
    assert (folder / f"late-{who}" / "resumed" / "adapter" / "adapter.json").exists()
    assert not (folder / f"late-{who}" / "counted").exists()


@pytest.mark.slow
def test_a_run_of_one_goes_on_in_three(folder, one):
    done = several.lab(1, folder, "grown", "0:fail", "resume")
    assert done.code == 1
    done = several.lab(3, folder, "grown", "resume")
    assert done.code == 0, done.err[-3000:]
    assert "started with 1 processes and goes on with 3" in done.err
    assert distance(folder / "grown" / "resumed", one / "plain-prefix") <= NEAR


@pytest.mark.slow
def test_the_commands_say_everything_once(folder, tmp_path):
    data, words = tmp_path / "data", ["-m", "masp"]
    for number in range(14):
        place = data / ("train" if number < 9 else "test") / ("joy", "fear")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes((folder / "more" / f"{[0, 1, 2, 3][number % 4]:03}.png").read_bytes())
    few = ["--data", data, "--backbone", folder / "checkpoint", "--out", tmp_path / "run", "backbone.dtype=float32"]
    few += ["backbone.device=cpu", "prompt.batch_size=4", "prompt.epochs=3", "method.prompt_length=2", "data.workers=1"]
    trained = several.launched(2, *words, "train", "prompt", *few, kind="torchrun")
    assert trained.code == 0, trained.err[-3000:]
    assert trained.out.splitlines() == [str(tmp_path / "run" / "adapter")]
    assert trained.err.count("prompt: 9 steps in") == 1
    measured = ["evaluate", "--adapter", tmp_path / "run", "--data", data, "--dtype", "float32", "--device", "cpu"]
    tables = {}
    for count in (1, 2):
        done = several.run(count, *words, *measured, "--batch-size", "2", "--out", tmp_path / f"figures{count}")
        assert done.code == 0, done.err[-3000:]
        tables[count] = done.out
    assert tables[1] == tables[2]
    assert figures(tmp_path / "figures1") == figures(tmp_path / "figures2")
    wrong = several.run(2, *words, "train", "prompt", *few, "prompt.epochs=7")
    assert wrong.code != 0
    assert wrong.err.count("belongs to a run with another configuration") == 1


@pytest.mark.slow
def test_the_launcher_itself_is_interrupted(folder, tmp_path):
    """Ctrl-C for `accelerate launch`: it asks each process once, and each leaves with a checkpoint."""
    child = subprocess.Popen(
        several.launch(2, several.LAB, folder, "ctrl-c", "slow", "resume"),
        env=several.environment(),
        cwd=several.ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoints = folder / "ctrl-c" / "resumed" / "checkpoints"
    until = time.monotonic() + several.LIMIT / 2
    while not (checkpoints.is_dir() and list(checkpoints.glob("step-*"))) and time.monotonic() < until:
        time.sleep(0.2)
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=several.LIMIT)
    assert child.returncode != 0
    assert "the run was interrupted by SIGINT" in err
    assert not (folder / "ctrl-c" / "resumed" / "adapter").exists()


def test_lost_contact_is_told_by_everybody_with_what_to_do(monkeypatch):
    def broken(told, value):
        raise RuntimeError("Connection closed by peer\n[127.0.0.1]:3")

    monkeypatch.setattr(torch.distributed, "all_gather_object", broken)
    with pytest.raises(MaspError, match=r"process 1 of 2 lost contact .*closed by peer \[127.*checkpoint") as raised:
        Processes(1, 2).all_gather(lambda: None)
    assert raised.value.agreed.tells


def test_a_folder_that_only_one_process_sees_is_refused(tmp_path):
    from fixtures import tiny
    from masp.training.disk_cache import DiskCache
    from masp.training.feature_cache import FeatureCache, ImageReading

    path: Path = tmp_path / "a.png"
    tiny.picture(60, 60).save(path)
    shelf = DiskCache(tmp_path / "mine", 10**9)
    store = FeatureCache(tiny.backbone(), [path], ImageReading(), None, shelf, Processes(1, 2))
    store.hashes = ["x"]
    with pytest.raises(MaspError, match=r"process 1 does not find in .*mine.*a store_dir that all processes see"):
        store._fetch([[0]])
