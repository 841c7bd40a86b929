"""Annotating a data set: what the backbone says is what is written, interrupted or not, and stage 1 trains on it."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fixtures import models as small_models
from fixtures import tiny
from fixtures.pictures import ROWS, emoset, put
from masp.annotate.ask import AT_ONCE, PLAIN, AnnotationSettings, Annotator, ParsedAnswer, measured
from masp.annotate.dataset import AnnotationJob, annotate
from masp.annotate.images import find_images
from masp.core.aspects import ASPECTS, LEVELS
from masp.core.config import MethodConfig, load_config
from masp.core.errors import DataError, UsageError
from masp.core.prompts import load_questions
from masp.data.readers.open_dataset import open_dataset
from masp.model.masp_model import MaspModel
from masp.model.scoring import aspect_log_probabilities, describe_aspects, generate, score

ROOT = Path(__file__).parents[2]
QUESTIONS = load_questions()
TEXTS = {name: QUESTIONS.aspect(name)[0] for name in ASPECTS}
OPTIONS = {
    "scene": ("beach", "city", "forest"),
    "object": ("cat", "dog", "cup of tea"),
    "facial_expression": ("happy", "sad"),
    "human_action": ("none", "reading"),
    "brightness": LEVELS,
    "colorfulness": LEVELS,
}


def plain_model(family: str = "qwen2_vl") -> MaspModel:
    return MaspModel(tiny.backbone(family), MethodConfig())


def chooser(family: str = "qwen2_vl", **more: bool) -> Annotator:
    return Annotator(plain_model(family), AnnotationSettings(TEXTS, OPTIONS, **more))


def pictures(path: Path):
    return find_images(load_config(None, [f"data.path={path}"]).data)


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file, and where every link leads."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()  # noqa: PTH115
        for path in files
    }


def write_pictures(root: Path, count: int = 7, labels: tuple[str, ...] = ("calm", "wild")) -> Path:
    for number in range(count):
        home = root / labels[number % len(labels)] if labels else root
        home.mkdir(parents=True, exist_ok=True)
        tiny.picture(84, 56 if number % 3 else 112, seed=number).save(home / f"{number}.png")
    return root


@pytest.fixture
def verbatim(monkeypatch):
    """Free answers as they are: what a random backbone says means nothing in words."""
    monkeypatch.setattr("masp.annotate.ask.understood", lambda aspect, text, whole: ParsedAnswer(text))


# --- what is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_asked_each_question_about_the_whole_picture(family, verbatim):
    """Also where visual tokens depend on the question, and where one prefix serves all questions."""
    model = plain_model(family)
    images = [tiny.picture(90, 62), tiny.picture(118, 90, seed=1)]
    visual = model.backbone.visual_tokens(model.backbone.preprocess(images))
    chosen = chooser(family)
    for row, answers in enumerate(chosen(chosen.prepare(images))):
        for name, options in OPTIONS.items():
            alone = score(model, visual.select([row]), TEXTS[name], options, PLAIN)[0]
            picked = answers[name].value
            best = options[int(alone.argmax())]
            if best in LEVELS:
                assert picked == pytest.approx(LEVELS.index(best) / 5 + 0.1), name
            elif best == "none":
                assert picked is None, name
            else:
                assert picked == ((best,) if name == "object" else best), name
    free = Annotator(model, AnnotationSettings({"scene": TEXTS["scene"], "object": TEXTS["object"]}, longest=5))
    answers = free(free.prepare(images))
    for name in ("scene", "object"):
        for row in (0, 1):
            said = generate(model, visual.select([row]), TEXTS[name], PLAIN, 5)[0]
            assert answers[row][name] == ParsedAnswer(said), name


def test_a_long_list_is_scored_in_parts_and_gives_the_same_choice():
    options = tuple(f"place {number}" for number in range(AT_ONCE + 5))
    model = plain_model()
    ask = Annotator(model, AnnotationSettings({"scene": TEXTS["scene"]}, {"scene": options}))
    images = [tiny.picture(90, 62, seed=seed) for seed in range(4)]
    visual = model.backbone.visual_tokens(model.backbone.preprocess(images))
    whole = score(model, visual, TEXTS["scene"], options, PLAIN).argmax(1).tolist()
    assert [one["scene"].value for one in ask(ask.prepare(images))] == [options[index] for index in whole]


def test_trained_aspects_answer_from_their_own_tokens(verbatim):
    model = small_models.full_model()
    images = [tiny.picture(90, 62), tiny.picture(58, 140, seed=1)]
    visual = model.backbone.visual_tokens(model.backbone.preprocess(images))
    free = Annotator(model, AnnotationSettings(TEXTS, longest=6))
    found = [{name: one.value for name, one in answers.items()} for answers in free(free.prepare(images))]
    assert found == describe_aspects(model, visual, QUESTIONS, 6)
    plain = Annotator(plain_model(), free.asking)
    assert [{name: one.value for name, one in said.items()} for said in plain(plain.prepare(images))] != found
    chosen = Annotator(model, AnnotationSettings(TEXTS, OPTIONS))
    answers = chosen(chosen.prepare(images))
    for name in ("scene", "facial_expression"):
        logs = aspect_log_probabilities(model, visual, name, TEXTS[name], OPTIONS[name])
        best = logs.argmax(1).tolist()
        assert [one[name].value for one in answers] == [OPTIONS[name][index] for index in best]


def test_light_is_measured_on_the_picture_and_not_asked_about(tmp_path):
    root = write_pictures(tmp_path / "d", 3)
    ask = chooser(measured_light=True)
    annotate(pictures(root), ask, tmp_path / "out", AnnotationJob(batch_size=2))
    note = json.loads((tmp_path / "out/annotation/calm/0.json").read_text())
    expected = measured(tiny.picture(84, 112, seed=0))
    assert {name: note[name] for name in expected} == expected
    assert set(note["source"]["question"]) == set(ASPECTS) - set(expected)
    assert "Hasler" in note["source"]["measured"]
    alone = Annotator(plain_model(), AnnotationSettings({"brightness": TEXTS["brightness"]}, measured_light=True))
    assert [set(one) for one in alone(alone.prepare([tiny.picture(90, 62)]))] == [{"brightness"}]


# --- what is written -----------------------------------------------------------------------------------------------


def test_what_is_written_is_read_as_a_data_set_and_marked(tmp_path, caplog):
    root = emoset(tmp_path / "E", ROWS)
    before = content(root)
    found = annotate(pictures(root), chooser(), tmp_path / "out", AnnotationJob(batch_size=2))
    assert content(root) == before
    assert (found.images, found.unreadable, found.again) == (6, 0, False)
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(tmp_path / "out")
    assert "made by a machine" in caplog.text
    theirs = open_dataset(root)
    assert (dataset.layout, dataset.labels) == ("emoset", theirs.labels)
    for split, records in theirs.splits.items():
        ours = dataset.split(split)
        assert [record.label for record in ours] == [record.label for record in records]
        assert [record.path.read_bytes() for record in ours] == [record.path.read_bytes() for record in records]
        assert all(record.annotations["scene"] in OPTIONS["scene"] for record in ours)
    note = json.loads((tmp_path / "out/annotation/fear/fear_00000.json").read_text())
    assert (note["image_id"], note["emotion"]) == ("fear_00000", "fear")
    backbone = tiny.backbone()
    made = note["source"]
    assert (made["machine"], made["fingerprint"]) == (True, backbone.fingerprint())
    assert (made["backbone"], made["revision"]) == (Path(backbone.name).name, None)
    assert made["question"] == TEXTS
    assert made["versions"]["torch"] == torch.__version__
    assert made["picture"] == "image/fear/fear_00000.jpg"
    written = {name: text for name, text in content(tmp_path / "out").items() if not name.startswith("image/")}
    assert not [name for name, text in written.items() if str(tmp_path) in str(text)]
    scene = found.aspects["scene"]
    assert scene.answered == 6
    assert scene.different == len({r.annotations["scene"] for records in dataset.splits.values() for r in records})
    action = found.aspects["human_action"]
    assert action.answered + sum(action.absent.values()) == 6


def test_pictures_without_labels_are_a_data_set_for_stage_1(tmp_path):
    root = write_pictures(tmp_path / "photos", 9, labels=())
    annotate(pictures(root), chooser(), tmp_path / "out", AnnotationJob(copy=True))
    assert (tmp_path / "out/image/unlabelled/0.png").read_bytes() == (root / "0.png").read_bytes()
    assert not (tmp_path / "out/image/unlabelled/0.png").is_symlink()
    dataset = open_dataset(tmp_path / "out")
    assert {record.label for record in dataset.records} == {None}
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 7, "val": 1, "test": 1}
    assert all("scene" in record.annotations for record in dataset.records)


def test_answers_that_the_data_set_has_can_be_kept(tmp_path):
    root = write_pictures(tmp_path / "photos", 3, labels=())
    rows = [
        "image,aspect,value",
        "0.png,scene,moon_base",
        "1.png,object,cat",
        "1.png,object,dog",
        "2.png,human_action,flying",
    ]
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    asking = AnnotationSettings(
        dict.fromkeys(("scene", "brightness"), "What is it?"), OPTIONS, measured_light=True, keep=True
    )
    annotate(
        pictures(root), Annotator(MaspModel(tiny.backbone(), MethodConfig()), asking), tmp_path / "out", AnnotationJob()
    )
    found = {record.path.stem: dict(record.annotations) for record in open_dataset(tmp_path / "out").records}
    assert found["0"]["scene"] == "moon base"
    assert found["1"]["scene"] in OPTIONS["scene"]  # nobody had said it
    assert (found["1"]["object"], found["2"]["human_action"]) == ("cat, dog", "flying")
    assert all("brightness" in answers for answers in found.values())
    sources = {
        path.stem: json.loads(path.read_text())["source"] for path in (tmp_path / "out").rglob("annotation/*/*.json")
    }
    assert [sources[name].get("kept") for name in "012"] == [["scene"], ["object"], ["human_action"]]


def test_unreadable_pictures_are_left_out_and_named(tmp_path):
    root = write_pictures(tmp_path / "d", 5)
    (root / "calm" / "bad.png").write_text("no image")
    found = annotate(pictures(root), chooser(), tmp_path / "out", AnnotationJob(batch_size=2))
    assert (found.images, found.unreadable) == (5, 1)
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "calm/bad.png"
    assert "JPEG, PNG" in json.loads(line)["reason"]
    assert len(open_dataset(tmp_path / "out").records) == 5


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{name}.png").write_text("no image")
    with pytest.raises(DataError, match="none of 2 files can be used"):
        annotate(pictures(tmp_path / "d"), chooser(), tmp_path / "out", AnnotationJob())


# --- interrupted ---------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_and_tries_unreadable_pictures_again(tmp_path):
    root = write_pictures(tmp_path / "d", 7)
    whole = root / "calm" / "0.png"
    kept = whole.read_bytes()
    annotate(pictures(root), chooser(), tmp_path / "whole", AnnotationJob(batch_size=2))
    whole.write_bytes(b"x" * len(kept))  # as on a disk that was away for a moment

    def stop(done: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(pictures(root), chooser(), tmp_path / "cut", AnnotationJob(batch_size=2, progress=stop))
    assert len(list((tmp_path / "cut/progress").iterdir())) == 2
    whole.write_bytes(kept)
    seen: list[int] = []
    annotate(pictures(root), chooser(), tmp_path / "cut", AnnotationJob(batch_size=2, progress=seen.append))
    assert seen == [2, 4, 6, 7]  # one batch of an earlier start counts, the one with the bad image does not
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    again = annotate(pictures(root), chooser(), tmp_path / "cut", AnnotationJob(batch_size=2))
    assert again.again
    assert again.aspects == annotate(pictures(root), chooser(), tmp_path / "whole", AnnotationJob(batch_size=2)).aspects


def test_a_folder_of_something_else_is_refused(tmp_path):
    root = write_pictures(tmp_path / "d", 3)
    annotate(pictures(root), chooser(), tmp_path / "out", AnnotationJob())
    with pytest.raises(UsageError, match=r"another configuration \(batch_size: 8 there, 3 now\)"):
        annotate(pictures(root), chooser(), tmp_path / "out", AnnotationJob(batch_size=3))
    put(tmp_path / "full" / "a.png")
    with pytest.raises(UsageError, match="full is not empty; expected a new folder"):
        annotate(pictures(root), chooser(), tmp_path / "full", AnnotationJob())
    (tmp_path / "full" / "run.json").write_text('{"format": 7}')
    with pytest.raises(UsageError, match=r"run\.json cannot be read: format 7"):
        annotate(pictures(root), chooser(), tmp_path / "full", AnnotationJob())


KILLER = """
import json, os, signal, sys
from pathlib import Path
import torch
from test_run import AnnotationJob, annotate, chooser, content, pictures
torch.set_num_threads(1)
root, points = Path(sys.argv[1]), int(sys.argv[2])
ask = chooser()

def child(out, limit=None, report=None):
    pid = os.fork()
    if pid == 0:
        seen = [0]
        def watched(call):
            def wrapper(*words, **named):
                if seen[0] == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen[0] += 1
                if report:
                    report.write_text(str(seen[0]))
                return call(*words, **named)
            return wrapper
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "symlink_to")):
            setattr(owner, name, watched(getattr(owner, name)))
        status = 1
        try:
            annotate(pictures(root / "d"), ask, out, AnnotationJob(batch_size=2, workers=0))
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]

assert child(root / "whole", report=root / "moments") == 0
moments, expected, found = int((root / "moments").read_text()), content(root / "whole"), []
for point in range(points):
    limit, out = point * moments // points, root / f"cut-{point}"
    killed, again = child(out, limit), child(out)
    found.append([limit, killed, again, content(out) == expected])
print(json.dumps([moments, found]))
"""


def killed_at(points: int, folder: Path) -> list[list[object]]:
    write_pictures(folder / "d", 5)
    paths = [str(ROOT / "tests"), str(ROOT / "tests" / "annotate"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(folder), str(points)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    moments, found = json.loads(done.stdout.splitlines()[-1])
    assert moments > 20
    return found


@pytest.mark.parametrize("points", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_kill_9_and_the_same_call_leave_the_same_bytes(tmp_path, points):
    for moment, killed, again, same in killed_at(points, tmp_path):
        assert (killed, again, same) == (signal.SIGKILL, 0, True), moment
