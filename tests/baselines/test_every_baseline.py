"""What every system promises, whether visual tokens are a grid, see each other, or depend on the question."""

import json
import math
from pathlib import Path

import pytest

from fixtures import tiny
from fixtures.adapters import OWN
from fixtures.noise_lessons import LABELS, Watched, aspects_of, lessons
from masp.baselines.base import System, SystemPrediction
from masp.baselines.registry import CATALOGUE, make_system
from masp.core.prompts import Questions, load_questions
from masp.training import Interrupted

FAMILIES = ("qwen2_vl", "gemma3", "instructblip")
QUICK = {
    "probe": ("strengths=[0.1, 1.0]",),
    "concepts": ("fewest=2", "strengths=[1.0]"),
    "distilled": (
        *("over=probe", "over.strengths=[0.1]", "teacher_width=8", "hidden=8", "batch_size=5", "checkpoint_every=2"),
        *("teacher_epochs=2", "head_epochs=2", "gate_epochs=2"),
    ),
    "qlora": ("rank=2", "epochs=1", "batch_size=5", "learning_rate=0.01", "checkpoint_every=1"),
    "instruction": ("rank=2", "epochs=1", "batch_size=20", "learning_rate=0.01", "checkpoint_every=1"),
}
"""Settings that make a system quick."""

MODES = [(name, QUICK.get(name, ())) for name in CATALOGUE]
MODES += [(name, ("reading=generate",)) for name in ("zero-shot", "zero-shot-letters", "sepm", "random-prompt")]
MODES += [("qlora", (*QUICK["qlora"], "reading=generate"))]
EVERY = pytest.mark.parametrize(("name", "changes"), MODES, ids=[f"{n}-{len(c)}" for n, c in MODES])
LEARNING = pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.learns])
FAMILY = pytest.mark.parametrize("family", FAMILIES)


def made(name: str, family: str, changes: tuple[str, ...] = (), questions: Questions | None = None) -> System:
    if name in ("aspects", "random-prompt", "concepts"):
        changes = (*changes, f"aspects={aspects_of(family)}")
    return make_system(name, tiny.backbone(family), LABELS, changes, questions=questions)


def learned(name: str, family: str, out: Path, changes: tuple[str, ...] = ()) -> tuple[System, Watched]:
    system, images = made(name, family, changes), Watched(tiny.backbone(family))
    system.fit(lessons(out, images))
    return system, images


def files(folder: Path) -> dict[str, bytes]:
    """What was learned, without the logs, which hold times."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def near(one: SystemPrediction, other: SystemPrediction) -> bool:
    if one.log_probabilities is None or other.log_probabilities is None:
        return one == other
    gaps = [abs(one.log_probabilities[label] - other.log_probabilities[label]) for label in LABELS]
    return one.predicted == other.predicted and one.answer == other.answer and max(gaps) <= 1e-4


@EVERY
@FAMILY
def test_answers(name: str, changes: tuple[str, ...], family: str, tmp_path: Path) -> None:
    system, images = learned(name, family, tmp_path / "out", changes)
    together = system.predict(images.visual([0, 1, 2, 3]))
    assert len(together) == 4
    for number, said in enumerate(together):
        (alone,) = system.predict(images.visual([number]))
        assert near(said, alone), "the answer depends on the other images of the batch"
        assert said.predicted is None or said.predicted in LABELS
        if said.log_probabilities is not None:
            assert tuple(said.log_probabilities) == LABELS
            assert sum(map(math.exp, said.log_probabilities.values())) == pytest.approx(1, abs=1e-6)
            assert said.predicted == max(LABELS, key=said.log_probabilities.__getitem__)
        else:
            assert said.answer is not None or said.predicted is not None


@EVERY
def test_descriptions_are_json_and_name_no_place(name: str, changes: tuple[str, ...], tmp_path: Path) -> None:
    system, _ = learned(name, "qwen2_vl", tmp_path / "out", changes)
    told = dict(system.config())
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text) == told
    assert told["system"]
    assert tiny.checkpoint("qwen2_vl").as_posix() not in text
    assert tmp_path.as_posix() not in text
    assert aspects_of("qwen2_vl").parent.name not in text
    assert system.labels == LABELS
    assert system.backbone is tiny.backbone("qwen2_vl")


@pytest.mark.parametrize("name", CATALOGUE)
def test_questions_of_ones_own_are_asked(name: str, tmp_path: Path) -> None:
    """On a backbone whose visual tokens depend on the question too, so that no system can go without."""
    said, family = {}, "instructblip"
    for title, questions in {"none": None, "package": load_questions(), "own": OWN}.items():
        system, images = made(name, family, QUICK.get(name, ()), questions), Watched(tiny.backbone(family))
        system.fit(lessons(tmp_path / title, images))
        said[title] = system.predict(images.visual([0, 1, 2]))
    assert said["none"] == said["package"]
    assert said["own"] != said["package"]


@LEARNING
def test_the_catalogue_knows_what_a_seed_changes(name: str, tmp_path: Path) -> None:
    said = []
    for seed in (0, 1):
        system, images = made(name, "qwen2_vl", QUICK.get(name, ())), Watched(tiny.backbone())
        system.fit(lessons(tmp_path / str(seed), images, seed))
        said.append(system.predict(images.visual([0, 1, 2])))
    assert (said[0] != said[1]) == CATALOGUE[name].seeded


@LEARNING
@FAMILY
def test_learning_again_reads_nothing_and_changes_nothing(name: str, family: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    system, images = learned(name, family, out, QUICK.get(name, ()))
    assert images.calls > 0
    before, expected = files(out), system.predict(images.visual([0, 1, 2]))
    again, silent = learned(name, family, out, QUICK.get(name, ()))
    assert silent.calls == 0
    assert files(out) == before
    assert again.predict(images.visual([0, 1, 2])) == expected


@LEARNING
def test_interrupted_and_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    changes = QUICK.get(name, ())
    system, images = learned(name, "qwen2_vl", tmp_path / "whole", changes)
    out, starts = tmp_path / "cut", 0
    while True:
        again = made(name, "qwen2_vl", changes)
        try:
            again.fit(lessons(out, Watched(tiny.backbone(), signal_at=0)))
            break
        except Interrupted:
            starts += 1
            assert starts < 3 * images.calls, "it does not get on"
    assert starts > 0
    assert again.predict(images.visual([0, 1, 2])) == system.predict(images.visual([0, 1, 2]))
    learned_files = {path: content for path, content in files(out).items() if "learned" in path}
    assert learned_files == {path: content for path, content in files(tmp_path / "whole").items() if "learned" in path}
    assert not list(out.rglob(".masp*"))


def test_a_former_name_still_makes_the_system(caplog: pytest.LogCaptureFixture) -> None:
    system = make_system("cues", tiny.backbone(), LABELS, (*QUICK["concepts"], f"aspects={aspects_of('qwen2_vl')}"))
    assert (system.config()["system"], len(caplog.records)) == ("concepts", 1)
    assert "cues is named concepts now" in caplog.text
