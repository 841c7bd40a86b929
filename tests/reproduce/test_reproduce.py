"""`masp reproduce` from end to end on a tiny random backbone: resumed, half failed, and nothing run twice."""

import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fixtures import ending, tiny
from fixtures.reproduction import PLAN, small_config
from masp.adapters import load_adapter, tensors_sha256
from masp.backbones.loading import load_backbone
from masp.baselines import prompted as variants
from masp.cli.app import main
from masp.core.aspects import ASPECTS
from masp.core.config import DataConfig
from masp.core.errors import UsageError
from masp.data.images import open_image
from masp.data.readers.open_dataset import open_dataset
from masp.demo import pictures
from masp.evaluation.result import read_result
from masp.evaluation.runner import evaluate
from masp.predictor import Masp
from masp.report.load_results import read_sources, trials
from masp.reproduce import executor as pool
from masp.reproduce import runner
from masp.reproduce.config import DatasetSource, ReproduceConfig
from masp.reproduce.dag import Experiment, ExperimentResult, plan_cells, read_outcome, result_file
from masp.reproduce.executor import blocked, run_cells
from masp.reproduce.make_tables import Reproduced, reproduce
from masp.reproduce.specs import DATA, FULL, PARAMETERS, PLAIN, all_specs, load_paper
from masp.reproduce.tables import Results, accuracy_table
from masp.training.run_dir import TrainResult
from masp.training.signals import Interrupted, StopRequest

RUN = ("table2", "table4", "figure4")


def quietly(config: ReproduceConfig, jobs: int = 1) -> tuple[Reproduced, str]:
    """A run, and what a person sees of it."""
    seen = io.StringIO()
    return reproduce(config, jobs, "masp reproduce", Console(file=seen, width=200)), seen.getvalue()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce") / "out"


@pytest.fixture(scope="module")
def first(out: Path) -> tuple[Reproduced, str]:
    return quietly(small_config(out, *RUN))


def outcome(out: Path, name: str) -> ExperimentResult:
    found = read_outcome(out, name)
    assert found is not None
    return found


def test_every_cell_is_done_and_told(first: tuple[Reproduced, str], out: Path) -> None:
    found, seen = first
    assert not found.failed
    assert found.cells == 15  # parameters, data, V; with each of two seeds stage 1, V+A, V+S, V+A+rS, V+A+S, attention
    assert len(re.findall(r"^✓ \d+/15 ", seen, re.MULTILINE)) == 15
    assert "15 cells" in seen.splitlines()[0]
    accuracy = 100 * outcome(out, "emoji-scenes/V+S/seed1").figures["accuracy"]["value"]
    assert f"emoji-scenes/V+S/seed1  {accuracy:.1f} %" in seen


def test_tables_hold_what_the_cells_say(first: tuple[Reproduced, str], out: Path) -> None:
    names = {path.name for path in first[0].written}
    for table in ("table2", "table2-differences", "table4", "figure4"):
        assert {f"{table}.md", f"{table}.csv", f"{table}.tex"} <= names
    page = (out / "README.md").read_text(encoding="utf-8")
    values = [outcome(out, f"emoji-scenes/V+A+S/seed{seed}").figures["accuracy"]["value"] for seed in (0, 1)]
    (row,) = re.findall(r"^\| V\+A\+S \|.*$", (out / "table2.md").read_text(encoding="utf-8"), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2] == f"{100 * sum(values) / 2:.1f}"
    assert cells[4] == " · ".join(f"{100 * value:.1f}" for value in values)
    assert cells[-2:] == ["80.06", "74.75"], "the paper's numbers for FI and Emotion6"
    assert row in page
    assert "the best that anyone could reach" in page
    assert "2,523,136" in page
    content = json.loads((out / "reproduce.json").read_text())
    assert content["seeds"] == [0, 1]
    assert content["failed"] == {}
    for file in (out / "reproduce.json", out / "README.md"):
        assert str(out) not in file.read_text(encoding="utf-8")
        assert str(tiny.checkpoint()) not in file.read_text(encoding="utf-8")


def test_a_result_says_what_it_depended_on(first: tuple[Reproduced, str], out: Path) -> None:
    found = outcome(out, "emoji-scenes/V+A+S/seed1")
    assert found.identity["prompt.seed"] == 1
    assert found.identity["method.prompt_length"] == 3
    assert found.identity["backbone"] == tiny.backbone().fingerprint()
    assert found.about["system"]["numbers"]["prompt"] == 3 * tiny.backbone().dim
    whole = read_result(out / "scratch" / "results" / found.cell)
    assert whole.accuracy.value == found.figures["accuracy"]["value"]
    assert whole.used == PLAN.test
    assert (len(found.correct), found.correct.count("1") / PLAN.test) == (PLAN.test, whole.accuracy.value)
    assert whole.chances.calibrated is not None, "a temperature is fitted on the split val"


def test_a_result_says_what_masp_evaluate_says(first: tuple[Reproduced, str], out: Path) -> None:
    """The same adapter, measured from its folder, has the same facts by the same names and the same accuracy."""
    name = "emoji-scenes/V+A+S/seed1"
    known, about = read_result(out / "scratch" / "results" / name).provenance, outcome(out, name).about
    assert {key: about[key] for key in known} == known
    runs = out / "scratch" / "runs" / "emoji-scenes"
    ((prompt,), (aspects,)) = ((runs / part).glob("seed1-*") for part in ("V+A+S", "stage-1"))
    config = small_config(out, *RUN)
    dataset, backbone = open_dataset(config.sources[0].data), load_backbone(config.settings.backbone)
    measured = evaluate(Masp.from_pretrained(prompt, backbone, aspects=aspects), dataset)
    theirs = measured.provenance
    assert known.keys() == theirs.keys()
    assert measured.accuracy.value == outcome(out, name).figures["accuracy"]["value"]
    for key in ("data", "backbone", "question", "labels", "versions", "machine", "threads", "bootstrap"):
        assert known[key] == theirs[key]
    for key in ("tensors_sha256", "method", "aspects", "seeds", "data"):
        assert known["adapter"][key] == theirs["adapter"][key]
    assert (known["seed"], known["adapter"]["seeds"]) == (1, {"aspects": 1, "prompt": 1})


def test_every_cell_says_where_it_was_run(first: tuple[Reproduced, str], out: Path) -> None:
    plain = outcome(out, "emoji-scenes/V/seed0").about
    assert (plain["seed"], plain["adapter"]) == (None, None)
    stage1 = outcome(out, "emoji-scenes/stage-1/seed1").about
    assert (stage1["seed"], set(stage1["adapter"]["aspects_sha256"])) == (1, set(ASPECTS))
    assert outcome(out, "emoji-scenes/attention/seed1").about["adapter"]["seeds"] == {"aspects": 1, "prompt": 1}
    assert outcome(out, "emoji-scenes/parameters/seed0").about["data"] is None
    for file in (out / "cells").rglob("*.json"):
        about = json.loads(file.read_text(encoding="utf-8"))["about"]
        assert {"versions", "backbone", "data", "machine", "threads", "finished", "seconds", "seed"} <= about.keys()
        assert about["backbone"]["fingerprint"] == tiny.backbone().fingerprint()
        assert str(out) not in file.read_text(encoding="utf-8")


def test_pictures_that_are_left_out_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "scratch" / "data" / "emoji-scenes"
    pictures.draw_dataset(folder, PLAN, lambda _: None)
    config = small_config(tmp_path, "table2", seeds=1)
    record = open_dataset(config.sources[0].data).split("test")[2]
    record.path.write_bytes(b"no image")
    bench = runner.Runner(config)
    assert bench.run(Experiment("emoji-scenes", DATA, 0))[0].figures["unreadable"] == 1
    assert bench.run(Experiment("emoji-scenes", PLAIN, 0))[0].state == "done"
    found = read_result(tmp_path / "scratch" / "results" / "emoji-scenes" / "V" / "seed0")
    assert [bad.image for bad in found.quarantined] == [record.path.relative_to(folder).as_posix()]
    assert (found.used, found.unlabelled) == (PLAN.test - 1, 0)


def test_large_pictures_are_shrunk_for_what_is_trained_only(tmp_path: Path) -> None:
    """One test image of 1,400 pixels: V reads it whole, on every family that works above 1,024 pixels."""
    pictures.draw_dataset(tmp_path / "scratch" / "data" / "emoji-scenes", PLAN, lambda _: None)
    config = small_config(tmp_path, "table2", seeds=1)
    records = open_dataset(config.sources[0].data).split("test")
    tiny.picture(1400, 56).save(records[1].path, format="PNG")
    bench = runner.Runner(config)
    backbone = bench.library.backbone
    for alone, side in ((False, 1024), (True, None)):
        with StopRequest() as stop:
            found = bench.library.images("emoji-scenes", "test", stop, alone)
        by_hand = backbone.visual_tokens(backbone.preprocess([open_image(records[1].path, side)]))
        assert torch.equal(found.images.visual([found.numbers[1]]).tokens, by_hand.tokens)
    assert not torch.equal(by_hand.tokens, bench.library.images("emoji-scenes", "test", stop).images.visual([1]).tokens)
    (data,) = [cell for cell in plan_cells(config, load_paper(), ()).cells if cell.spec == DATA]
    assert bench.run(data)[0].figures["shrunk"] == 1
    plain = bench.run(Experiment("emoji-scenes", PLAIN, 0))[0]
    assert (plain.about["longest_side"], plain.identity["longest_side"]) == (None, None)
    (note,) = [note for note in accuracy_table(results_of(config), "table2").notes if "1 test images" in note]
    assert "1024 pixels" in note


def results_of(config: ReproduceConfig) -> Results:
    """What the cells left so far."""
    cells = plan_cells(config, load_paper(), all_specs()).cells
    found = {cell.name: read_outcome(config.out, cell.name) for cell in cells}
    return Results(config, load_paper(), {name: one for name, one in found.items() if one is not None}, ())


def test_generated_texts_are_counted_exactly_and_beside_it_leniently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other reading of the same trainings: measured again, trained not at all, and another identity."""
    names = [f"emoji-scenes/{spec}/seed0" for spec in ("V", "V+S", "V+A", "V+A+S")]
    quietly(small_config(tmp_path, "table2", seeds=1))
    before = [outcome(tmp_path, name).identity for name in names]
    right = [record.label or "" for record in open_dataset(small_config(tmp_path).sources[0].data).split("test")]
    wrong = ["no idea"] * len(right)
    said = iter([right[0], f" {right[1]} ", f"{right[2].capitalize()}.", *wrong[3:]] * 20)
    monkeypatch.setattr(variants, "generate", lambda _, visual, *__: [next(said) for _ in range(len(visual))])
    for training in ("train_aspects", "train_prompt"):
        real = getattr(runner, training)
        monkeypatch.setattr(runner, training, partial(only_loaded, real, tmp_path))
    monkeypatch.setattr(runner.Runner, "_held", lambda *_: [])
    found, seen = quietly(replace(small_config(tmp_path, "table2", seeds=1), reading="generate"))
    assert not found.failed
    assert seen.count("there already") == 2, "the data set and stage 1"
    for name, known in zip(names, before, strict=True):
        one = outcome(tmp_path, name)
        assert one.identity == {**known, "reading": "generate"}
        assert one.figures["exact"]["accuracy"]["value"] == 2 / PLAN.test
        assert one.correct.count("1") == 2, "as the paper counts"
        assert one.figures["exact"]["unparsed"] == PLAN.test - 2
        assert (one.figures["accuracy"]["value"], one.figures["unparsed"]) == (3 / PLAN.test, PLAN.test - 3)
    content = json.loads((tmp_path / "reproduce.json").read_text())
    assert content["reading"] == "generate"
    line = next(line for line in content["tables"][0]["lines"] if line["system"] == "V+A+S")
    shares = [line[key] for key in ("accuracy", "lenient", "unparsed", "inexact")]
    assert shares == [round(100 * count / PLAN.test, 4) for count in (2, 3, PLAN.test - 3, PLAN.test - 2)]
    (row,) = re.findall(r"^\| V\+A\+S \|.*$", (tmp_path / "table2.md").read_text(), re.MULTILINE)
    assert [cell.strip() for cell in row.split("|")][8:10] == ["42.9", "57.1 (71.4)"]
    assert read_result(tmp_path / "scratch" / "results" / names[0]).mode == "generate"


def only_loaded(real: Callable[..., TrainResult], out: Path, *given: Any, **named: Any) -> TrainResult:
    """A training that must have finished before."""
    (place,) = [one for one in given if isinstance(one, Path) and one.is_relative_to(out) and "runs" in one.parts][-1:]
    assert (place / "adapter").is_dir(), f"{place} is trained again"
    return real(*given, **named)


def test_a_second_run_does_nothing_twice(
    first: tuple[Reproduced, str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    page = (out / "README.md").read_bytes()
    for name in ("train_aspects", "train_prompt"):
        monkeypatch.setattr(runner, name, lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(pictures, "draw_dataset", lambda *_: pytest.fail("drawn again"))
    found, seen = quietly(small_config(out, *RUN))
    assert not found.failed
    assert seen.count("there already") == 15
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")} == before
    assert (out / "README.md").read_bytes() == page


def test_another_setting_is_another_run(first: tuple[Reproduced, str], out: Path) -> None:
    """V, which no training has a part in, is taken as it is; what is trained otherwise is run again."""
    config = small_config(out, "table2", seeds=1, changes=("prompt.learning_rate=0.5",))
    _, seen = quietly(config)
    again = {line.split()[2] for line in seen.splitlines()[1:] if "there already" not in line}
    assert again == {"emoji-scenes/V+S/seed0", "emoji-scenes/V+A+S/seed0"}
    quietly(small_config(out, *RUN))  # and back, for the other tests


def test_trainings_that_are_gone_are_made_again_where_they_are_read(tmp_path: Path) -> None:
    """Results of cells are kept, their work folder is not: a new table trains what it stands on, and nothing else."""
    quietly(small_config(tmp_path, "table2", seeds=1))
    shutil.rmtree(tmp_path / "scratch")
    _, seen = quietly(small_config(tmp_path, "table2", seeds=1))
    assert seen.count("there already") == 7, "nothing has to be run, so nothing that is gone is read"
    found, seen = quietly(small_config(tmp_path, "table2", "figure4", seeds=1))
    assert not found.failed
    run = {line.split()[2] for line in seen.splitlines()[1:] if "there already" not in line}
    assert run == {f"emoji-scenes/{name}/seed0" for name in ("stage-1", "V+A+S", "attention")}


def test_a_failing_cell_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runner.train_aspects

    def broken(*_: object, **__: object) -> None:
        raise UsageError("the disk of | this made-up machine is odd", "a round one")

    monkeypatch.setattr(runner, "train_aspects", broken)
    found, seen = quietly(small_config(tmp_path, "table2", seeds=1))
    states = {one.cell.split("/")[1]: one.state for one in found.failed}
    assert states == {"stage-1": "failed", "V+A": "waiting", "V+A+rS": "waiting", "V+A+S": "waiting"}
    assert "✗ " in seen
    table = (tmp_path / "table2.md").read_text(encoding="utf-8")
    assert "Not run: V+A, V+A+rS, V+A+S (seed 0: it needs emoji-scenes/stage-1/seed0, which failed)." in table
    assert "made-up machine is odd; expected a round one" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| V+S | with a soft prompt trained without aspects | " in table
    monkeypatch.setattr(runner, "train_aspects", real)
    again, seen = quietly(small_config(tmp_path, "table2", seeds=1))
    assert not again.failed
    assert seen.count("there already") == 3  # data, V, V+S


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = runner.train_prompt

    def once(config: object, dataset: object, backbone: object, aspects: object, out: Path, **rest: object) -> object:
        calls.append(out.parent.name)
        if len(calls) == 2:
            raise Interrupted("the run was interrupted by SIGTERM", "a run that goes to its end", "Again.")
        return real(config, dataset, backbone, aspects, out, **rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(runner, "train_prompt", once)
    config = small_config(tmp_path, "table2", seeds=1)
    with pytest.raises(Interrupted):
        quietly(config)
    assert calls == ["V+S", "V+A+S"]
    assert result_file(tmp_path, "emoji-scenes/V+S/seed0").is_file()
    assert not result_file(tmp_path, "emoji-scenes/V+A+S/seed0").exists()
    assert not quietly(config)[0].failed
    assert calls == ["V+S", "V+A+S", "V+A+S"], "what was finished is not trained again"


def test_a_cell_waits_for_nothing_that_is_done() -> None:
    cell = Experiment("a", FULL, 0, ("a/data/seed0",))
    done = ExperimentResult("a/data/seed0", "done", {}, {}, {})
    assert blocked(cell, {}) is None
    assert blocked(cell, {done.cell: done}) is None
    failed = blocked(cell, {done.cell: replace(done, state="failed", error="no")})
    assert failed is not None
    assert failed.error == "it needs a/data/seed0, which failed"


def test_workers_run_cells_side_by_side(tmp_path: Path) -> None:
    """Two processes: one cell is done, one fails, one is left out; and a damaged data set does not end the run."""
    missing = DatasetSource("gone", DataConfig(path=tmp_path / "gone"), annotated=False)
    config = replace(small_config(tmp_path, "table4", seeds=1), drawn=None)
    config = replace(config, sources=(missing, *config.sources))
    pictures.draw_dataset(tmp_path / "scratch" / "data" / "emoji-scenes", PLAN, lambda _: None)
    cells = (
        Experiment("gone", DATA, 0),
        Experiment("emoji-scenes", PARAMETERS, 0),
        Experiment("gone", PLAIN, 0, ("gone/data/seed0",)),
    )
    told: list[str] = []
    found = run_cells(cells, config, 2, lambda outcome, fresh: told.append(f"{outcome.cell} {outcome.state} {fresh}"))
    assert found["emoji-scenes/parameters/seed0"].figures["prompt"] == 3 * tiny.backbone().dim
    assert "gone" in found["gone/data/seed0"].error
    assert sorted(told) == [
        "emoji-scenes/parameters/seed0 done True",
        "gone/V/seed0 waiting False",
        "gone/data/seed0 failed True",
    ]
    with pytest.raises(UsageError, match="--jobs is 0"):
        run_cells(cells, config, 0, lambda *_: None)


def test_a_worker_that_is_asked_to_stop_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_work", ending.asked_to_stop)
    with pytest.raises(Interrupted, match="a worker was interrupted"):
        run_cells(
            (Experiment("emoji-scenes", PARAMETERS, 0),), small_config(tmp_path, "table4", seeds=1), 2, lambda *_: None
        )
    assert not result_file(tmp_path, "emoji-scenes/parameters/seed0").exists()


def test_a_worker_that_dies_has_failed_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_work", ending.broken)
    config = small_config(tmp_path, "table4", seeds=1)
    found = run_cells((Experiment("emoji-scenes", PARAMETERS, 0),), config, 2, lambda *_: None)
    assert "its process died" in found["emoji-scenes/parameters/seed0"].error


def test_a_worker_that_died_while_it_waited_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, cell = (
        pool._WorkerPool(small_config(tmp_path, "table4"), 2, lambda *_: None),
        Experiment("d", PARAMETERS, 0),
    )
    monkeypatch.setattr(pool, "_work", ending.broken)
    future, dead = workers._given(cell)
    with pytest.raises(BrokenProcessPool):
        future.result()
    workers.idle.append(dead)
    monkeypatch.setattr(pool, "_work", ending.done)
    future, fresh = workers._given(cell)
    assert fresh is not dead
    assert future.result() == "done"
    fresh.pool.shutdown()


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, place = tmp_path / "qlora", tmp_path / "distilled" / "tuned"
    (learned / "checkpoints").mkdir(parents=True)
    (learned / "run.json").write_text("{}")
    (learned / "checkpoints" / "last").write_text("weights")
    bench = runner.Runner(small_config(tmp_path, "table1"))
    monkeypatch.setattr(bench, "folder", lambda _: learned)
    real = shutil.copytree

    def killed(source: Path, target: Path, **_: object) -> None:
        shutil.copy(source / "run.json", target)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        bench._borrow(Experiment("emoji-scenes", PLAIN, 0), place)
    assert not place.exists()
    monkeypatch.setattr(shutil, "copytree", real)
    bench._borrow(Experiment("emoji-scenes", PLAIN, 0), place)
    assert (place / "checkpoints" / "last").read_text() == "weights"


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    logging.getLogger("masp").setLevel(logging.WARNING)
    return end.value.code, capsys.readouterr().err


def test_wrong_use_is_told_before_anything_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(["reproduce", "table2", "--data", str(tmp_path), "--out", str(tmp_path / "out")], capsys)
    assert (code, "--backbone" in said) == (2, True)
    code, said = run(["reproduce", "table9"], capsys)
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_1_where_a_cell_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images without annotations: V is measured, and a soft prompt of no known settings cannot be trained."""
    for number in range(12):
        place = tmp_path / "data" / "mine" / ("train", "test")[number % 2] / ("fear", "joy")[number // 2 % 2]
        place.mkdir(parents=True, exist_ok=True)
        tiny.picture(56, 56, seed=number).save(place / f"{number}.png")
    monkeypatch.setattr(runner, "train_prompt", lambda *_, **__: 1 / 0)
    words = ["--data", str(tmp_path / "data"), "--backbone", str(tiny.checkpoint()), "--datasets", "mine"]
    place = tmp_path / "out"
    code, said = run(["reproduce", "table2", *words, "--seeds", "1", "--out", str(place)], capsys)
    assert code == 1
    assert "not there: mine/V+S/seed0 (ZeroDivisionError: division by zero)" in said
    assert "Traceback" not in said
    assert "Not run: V+A, V+A+rS, V+A+S (stage 1 needs annotated aspects" in (place / "table2.md").read_text()


def test_the_concept_bottleneck_reads_the_aspects_and_the_prompt_of_its_own_seed(tmp_path: Path) -> None:
    config = small_config(tmp_path / "out", "table1")
    pictures.draw_dataset(tmp_path / "out" / "scratch" / "data" / "emoji-scenes", PLAN, lambda _: None)
    bench = runner.Runner(config)
    cells = {cell.name: cell for cell in plan_cells(config, load_paper(), all_specs()).cells}
    for seed in (0, 1):
        cell = cells[f"emoji-scenes/concepts/seed{seed}"]
        done = {name: bench.run(cells[name])[0] for name in (*cell.needs, cell.name)}
        assert {one.state for one in done.values()} == {"done"}
        about, prompt = done[cell.name].about, done[f"emoji-scenes/V+S/seed{seed}"].about
        assert about["seed"] == seed
        assert about["system"]["tuned"]["adapter"]["tensors_sha256"] == prompt["adapter"]["tensors_sha256"]
        modules = load_adapter(bench.folder(cells[f"emoji-scenes/stage-1/seed{seed}"]), bench.library.backbone)
        assert about["system"]["aspects_sha256"] == tensors_sha256(modules.aspects.state_dict())
    places = [str(runner.result_folder(config, f"emoji-scenes/concepts/seed{seed}")) for seed in (0, 1)]
    (trial,) = trials(read_sources(places)[0])
    assert [len(system.sources) for system in trial.systems] == [2], "two seeds of one system"
