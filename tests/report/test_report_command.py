"""`masp report`: what is written where, what the aspects say, exit codes, and one readable line for every mistake."""

import re
import subprocess
import sys

import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from fixtures.pages import Page
from fixtures.results import result, written
from masp.adapters import tensors_sha256
from masp.evaluation.result import LabelledPrediction
from masp.predictor import Masp


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images, an adapter, a result of that adapter with two mistakes, and one of another system."""
    folder = tmp_path_factory.mktemp("world")
    write_adapter(folder / "adapter")
    for number in range(3):
        home = folder / "data" / LABELS[number]
        home.mkdir(parents=True)
        tiny.picture(84, 112, seed=number).save(home / f"{number}.png")
    chances = {"joy": -2.3, "fear": -0.22, "awe": -2.3}
    said = [LabelledPrediction(f"{label}/{number}.png", label, "fear", chances) for number, label in enumerate(LABELS)]
    own = {"tensors_sha256": tensors_sha256(Masp.from_pretrained(folder / "adapter").model.state_dict())}
    written(folder / "ours", result("ours", said, provenance={"adapter": own, "seed": 0}))
    right = [LabelledPrediction(one.image, one.truth, one.truth, None, one.truth) for one in said]
    written(folder / "theirs", result("theirs", right, mode="generate", provenance={}))
    return folder


def test_a_page_with_what_each_aspect_saw(masp, world, tmp_path):
    out = tmp_path / "new" / "page.html"
    words = ["--data", world / "data", "--adapter", world / "adapter", "--out", out]
    code, printed, told = masp("report", world / "theirs", world / "ours", *words)
    assert (code, printed) == (0, "")
    assert f"report: {out}" in told
    page = Page(out.read_text(encoding="utf-8"))
    assert "Of the 2 wrong answers of ours among 3 images" in page.text  # the adapter's system, not the best one
    assert "which is the system that made these mistakes" in page.text
    assert len(page.labelled("Heatmap of scene")) == 2
    links = [a["href"][1:] for a in page.of("a") if a["href"].startswith("#verdict-")]
    assert links == ["verdict-1000", "verdict-1001"]
    assert set(links) <= {attributes.get("id") for _, attributes in page.tags}
    assert len(re.findall("theirs: joy|theirs: awe", page.text)) == 2


def test_an_adapter_of_another_system_is_called_so(masp, world, tmp_path):
    out = tmp_path / "page.html"
    words = ["--data", world / "data", "--adapter", world / "adapter", "--out", out, "--mistakes", 1]
    other = result("other", [LabelledPrediction("awe/2.png", "awe", None, None, "hm")], mode="generate", provenance={})
    assert masp("report", written(tmp_path / "other", other), *words)[0] == 0
    text = Page(out.read_text(encoding="utf-8")).text
    assert "which is not known to be other: on 1 of these 1 images it names another label" in text
    assert "no label (“hm”)" in text


def test_wrong_use_is_told_in_one_line(masp, world, tmp_path):
    ours = world / "ours"
    for code, words, message in (
        (1, [tmp_path / "nowhere"], "nowhere.* cannot be read"),
        (1, [ours / "predictions.jsonl"], "is a file of predictions"),
        (1, [ours, "--data", tmp_path / "nowhere"], "--data .*nowhere is not there"),
        (2, [ours, "--adapter", world / "adapter"], "--adapter .* without --data"),
        (
            2,
            [ours, "--dtype", "auto"],
            "--dtype was given without --adapter; expected options of a model only",
        ),
        (2, [ours, "--task", "t", "--device", "cpu"], "--task, --device were given without --adapter.*Leave them out"),
        (2, [ours, "--backbone", "embedded"], "--backbone was given without --adapter"),
        (2, [ours, "--against", "thiers"], "no system of made is called 'thiers'"),
        (2, [ours, "--mistakes-of", "nobody"], "no system of made is called 'nobody'"),
        (2, [ours, "--mistakes", 61], "'--mistakes'"),
        (1, [ours, "--out", world / "ours" / "summary.json" / "page.html"], "cannot be written"),
    ):
        found, printed, told = masp("report", *words)
        assert (found, printed) == (code, ""), told
        assert re.search(message, told), told
        assert "Traceback" not in told


def test_no_model_is_loaded_where_nothing_is_explained(world, tmp_path):
    words = ["report", str(world / "ours"), "--out", str(tmp_path / "page.html"), "--data", str(world / "data")]
    program = (
        f"import sys\nfrom masp.cli import main\ntry:\n    main({words!r})\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000
