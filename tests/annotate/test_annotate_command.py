"""`masp data annotate`: from a folder of images to trained aspects, and one line for every mistake."""

import json

import pytest
from test_run import content, write_pictures

from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.pictures import tree
from masp.adapters import read_info


@pytest.mark.parametrize("labels", [("calm", "wild"), ()])
def test_pictures_are_annotated_and_stage_1_trains_on_them(masp, tmp_path, monkeypatch, labels):
    monkeypatch.chdir(tmp_path)
    root = write_pictures(tmp_path / "photos", 8, labels)
    before = content(root)
    backbone = ["--backbone", tiny.checkpoint(), "--dtype", "float32"]
    code, out, err = masp("data", "annotate", root, *backbone[:2], "--vocabulary", "published", "--measured-light")
    assert code == 0, err
    assert content(root) == before
    assert "8 images annotated by machine; EmoSet's layout in photos-annotated" in err
    assert ("without labels" in err) == (not labels)
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert " 8 " in rows["facial expression"]
    assert "scene" in rows
    code, out, err = masp("data", "annotate", root, *backbone[:2], "--vocabulary", "published", "--measured-light")
    assert (code, "8 images had been annotated before" in err) == (0, True)
    code, out, err = masp("data", "check", "photos-annotated")
    assert code == 0, out
    assert ("(no label)" in out) == (not labels)
    settings = ["aspects.max_steps=2", "aspects.batch_size=4", "aspects.aspects=[facial_expression, brightness]"]
    words = ["--data", "photos-annotated", *backbone[:2], "--out", "run", *settings]
    code, _, err = masp("train", "aspects", *words)
    assert code == 0, err
    assert read_info(tmp_path / "run").aspects == ("facial_expression", "brightness")
    code, _, err = masp("data", "annotate", root, *backbone[:2], "--adapter", "run", "--limit", 3, "--out", "second")
    assert code == 0, err
    note = json.loads(next((tmp_path / "second/annotation").rglob("*.json")).read_text())
    assert note["source"]["adapter"]["name"] == "run"
    assert set(note["source"]["question"]) == {"facial_expression", "brightness"}
    assert len(list((tmp_path / "second/annotation").rglob("*.json"))) == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no backbone is named"),
        (["--backbone", "CHECKPOINT", "--aspects", "scenes"], 2, "no aspect 'scenes'. Did you mean 'scene'?"),
        (["--backbone", "CHECKPOINT", "--out", "photos/new"], 2, "lies inside the data set"),
        (["--backbone", "CHECKPOINT", "--vocabulary", "none.json"], 1, "none.json cannot be read"),
        (["--backbone", "CHECKPOINT", "--batch-size", "0"], 2, None),
        (["--backbone", "CHECKPOINT", "prompt.epochs=3"], 2, "prompt.epochs=3 is neither a path nor a setting"),
        (["--adapter", "prompt-only"], 2, "holds no aspects"),
        (["--adapter", "one", "--aspects", "object"], 2, "no aspect 'object'"),
        (["--backbone", "CHECKPOINT", "--out", "file"], 2, "--out file is a file"),
    ],
)
def test_mistakes_are_one_line(masp, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "photos", {"calm": 1, "wild": 1})
    (tmp_path / "file").write_text("")
    write_adapter(tmp_path / "prompt-only", aspects=())
    write_adapter(tmp_path / "one", aspects=("scene",))
    given = [tiny.checkpoint() if word == "CHECKPOINT" else word for word in words]
    found, _, err = masp("data", "annotate", "photos", *given)
    assert found == code
    assert "Traceback" not in err
    if message is not None:
        (line,) = [line for line in err.splitlines() if line.startswith("masp: error: ")]
        assert message in line
    assert not (tmp_path / "photos-annotated").exists()
