"""The cue head by hand: its words, the optimum of its first layer, effects that add up, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from masp.adapters import load_adapter
from masp.aspects import ASPECTS
from masp.errors import DataError, UsageError
from masp.model import MaspModel
from masp.systems.base import Lesson, Lessons
from masp.systems.catalogue import make_system
from masp.systems.cues import CueHead, CueSettings, fitted_words, present, vocabulary
from masp.systems.probe import logits
from masp.systems.zero_shot import ZeroShot, ZeroShotSettings
from noise_lessons import LABELS, TRAIN, Watched, aspects_of, lessons
from small_adapters import write_adapter

FREELY = CueSettings(fewest=2, cue_strengths=(10.0,), strengths=(1.0,))


def taught(out: Path, images: Watched) -> Lessons:
    """The lessons of noise, with objects that some of them share."""
    made = lessons(out, images)
    told = [{}, {"object": "Cat, Dog"}, {"object": "Dog", "scene": "beach"}]
    rows = [replace(one, aspects=told[one.image % 3]) for one in (*made.train, *made.val)]
    return replace(made, train=tuple(rows[:TRAIN]), val=tuple(rows[TRAIN:]))


def head(over: bool = False, settings: CueSettings = FREELY) -> CueHead:
    backbone = tiny.backbone()
    adapter = load_adapter(aspects_of("qwen2_vl"), backbone)
    model = MaspModel(backbone, adapter.info.method, adapter.aspects)
    return CueHead(model, LABELS, ZeroShot(backbone, LABELS) if over else None, settings)


def test_the_words_are_those_of_enough_images() -> None:
    told = [Lesson(0, "awe", {"object": "Dog, Cat"}), Lesson(1, "awe", {"object": "Cat", "scene": ""})]
    assert vocabulary(told, ("object", "scene"), 1) == {"object": ("Cat", "Dog"), "scene": ()}
    assert vocabulary(told, ("object", "scene"), 2) == {"object": ("Cat",), "scene": ()}
    assert present(told, "object", ("Cat", "Dog")).tolist() == [[1, 1], [1, 0]]
    with pytest.raises(DataError, match="annotated often enough"):
        vocabulary(told, ("object", "scene"), 3)


def test_a_word_is_fitted_to_its_optimum() -> None:
    """Two images at -1 and 1: w² / (2 C) + 2 · log(1 + e^-w) is least where w = 2 C / (1 + e^w)."""
    found = fitted_words(torch.tensor([[-3.0], [5.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 1.0, 100)
    assert found["mean"].tolist() == [1.0]
    assert found["scale"].tolist() == [4.0]
    weights = found["weight"][:, 0].tolist()
    assert weights[0] == pytest.approx(2 / (1 + math.exp(weights[0])), abs=1e-4)
    assert weights[1] == pytest.approx(-weights[0], abs=1e-6)
    assert found["bias"].tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("over", [False, True])
def test_effects_scores_and_bias_are_the_logits(over: bool, tmp_path: Path) -> None:
    system, images = head(over), Watched(tiny.backbone())
    system.learn(taught(tmp_path / "out", images))
    assert system.learned is not None
    layer = {name: system.learned.tensors[f"labels.{name}"] for name in ("weight", "bias", "mean", "scale")}
    visual = images.visual([0, 1, 2])
    scores = None if system.over is None else [one.log_probabilities for one in system.over.answer(visual)]
    for row, (cues, one) in enumerate(zip(system.cues(visual), system.answer(visual), strict=True)):
        assert one.log_probabilities is not None
        odds = layer["bias"] + torch.tensor([sum(cue.effects[label] for cue in cues) for label in LABELS])
        if scores is not None:
            own = scores[row]
            assert own is not None
            told = torch.tensor([own[label] for label in LABELS])
            odds = odds + ((told - layer["mean"][-8:]) / layer["scale"][-8:]) @ layer["weight"][:, -8:].T
        seen = [place for place, label in enumerate(LABELS) if label in ("amusement", "anger", "fear")]
        found = torch.tensor([one.log_probabilities[LABELS[place]] for place in seen])
        assert (found - found[0]).tolist() == pytest.approx((odds[seen] - odds[seen[0]]).tolist(), abs=1e-4)


def test_the_words_of_the_training_images_are_read(tmp_path: Path) -> None:
    """More columns than images, and little penalty: what was annotated is likely, the rest is not."""
    system, images = head(), Watched(tiny.backbone())
    told = taught(tmp_path / "out", images)
    system.learn(told)
    assert {(cue.aspect, cue.word) for cue in system.cues(images.visual([0]))[0]} == {
        ("object", "Cat"),
        ("object", "Dog"),
        ("scene", "beach"),
    }
    for lesson, cues in zip(told.train, system.cues(images.visual(range(TRAIN))), strict=True):
        annotated = {(name, word) for name, text in lesson.aspects.items() for word in text.split(", ")}
        assert {(cue.aspect, cue.word) for cue in cues if cue.probability > 0.5} == annotated
        assert [cue.probability for cue in cues] == sorted((cue.probability for cue in cues), reverse=True)


def test_the_words_come_from_the_tokens_of_their_own_aspect(tmp_path: Path) -> None:
    system, images = head(), Watched(tiny.backbone())
    system.learn(taught(tmp_path / "out", images))
    assert system.learned is not None
    visual = images.visual([4])
    tokens = system.model.aspect_tokens(visual).tokens[:, ASPECTS.index("scene")].flatten(1)
    layer = {name: system.learned.tensors[f"scene.{name}"] for name in ("weight", "bias", "mean", "scale", "known")}
    (beach,) = logits(layer, tokens).sigmoid()[0].tolist()
    (found,) = [cue.probability for cue in system.cues(visual)[0] if cue.aspect == "scene"]
    assert found == pytest.approx(beach, abs=1e-6)


def test_the_penalty_that_is_likeliest_on_val_is_taken(tmp_path: Path) -> None:
    images, found = Watched(tiny.backbone()), {}
    for name, strengths in {"weak": (100.0,), "strong": (1e-4,), "both": (1e-4, 100.0)}.items():
        system = head(settings=replace(FREELY, cue_strengths=strengths, strengths=strengths))
        system.learn(taught(tmp_path / name, images))
        found[name] = system.describe()["fitted"]
    for part in ("object", "scene"):
        best = max((found[name][part] for name in ("weak", "strong")), key=lambda one: one["log_likelihood"])
        assert found["both"][part] == best


def test_a_prompt_is_added_up_with_its_own_scores(tmp_path: Path) -> None:
    prompt = write_adapter(tmp_path / "prompt", LABELS, aspects=())
    whole = write_adapter(tmp_path / "whole", LABELS)
    images, quick = Watched(tiny.backbone()), ["fewest=2", "cue_strengths=[1.0]", "strengths=[1.0]"]
    said = {}
    for place in (prompt, whole):
        named = [f"aspects={whole}", f"prompt={place}", *quick]
        system = make_system("cues", tiny.backbone(), LABELS, named)
        system.learn(taught(tmp_path / place.name / "out", images))
        said[place.name] = system.answer(images.visual([0, 1]))
        assert system.describe()["over"]["adapter"]["aspects"] == ([] if place is prompt else list(ASPECTS))
    assert said["prompt"] != said["whole"]


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    backbone, bare = tiny.backbone(), write_adapter(tmp_path / "bare", aspects=())
    with pytest.raises(UsageError, match="no aspects"):
        make_system("cues", backbone, LABELS)
    with pytest.raises(UsageError, match="holds no aspect modules"):
        make_system("cues", backbone, LABELS, [f"aspects={bare}"])
    with pytest.raises(UsageError, match="before it learned"):
        head().answer(Watched(backbone).visual([0]))
    model = head().model
    with pytest.raises(UsageError, match="chooses from joy, fear"):
        CueHead(model, LABELS, ZeroShot(backbone, ("joy", "fear")))
    silent = CueHead(model, LABELS, ZeroShot(backbone, LABELS, ZeroShotSettings(reading="generate")), FREELY)
    with pytest.raises(UsageError, match="no probabilities"):
        silent.learn(taught(tmp_path / "silent", Watched(backbone)))
    with pytest.raises(DataError, match="annotated often enough"):
        head(settings=CueSettings()).learn(taught(tmp_path / "rare", Watched(backbone)))
