"""Zero-shot: the numbers are those of `score`, and letters stand for labels."""

import math
from dataclasses import replace

import pytest
import torch

from fixtures import tiny
from fixtures.noise_lessons import LABELS, Watched
from fixtures.questions import OWN
from masp.baselines.base import predictions_of, question_by_letter
from masp.baselines.zero_shot import ZeroShotSettings, lettered, zero_shot_system
from masp.core.config import MethodConfig
from masp.core.errors import UsageError
from masp.core.labels import parse
from masp.model.masp_model import MaspModel
from masp.model.scoring import generate, score


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next"])
def test_the_list_is_the_question_of_masp(family: str) -> None:
    backbone = tiny.backbone(family)
    visual = Watched(backbone).visual([0, 1])
    question = "Which emotion does this image evoke? Choose one of: " + ", ".join(LABELS) + "."
    plain = MaspModel(backbone, MethodConfig())
    expected = score(plain, visual, question, LABELS)
    for row, one in enumerate(zero_shot_system(backbone, LABELS).predict(visual)):
        assert one.log_probabilities is not None
        assert list(one.log_probabilities.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
        assert one.answer is None
    greedy = zero_shot_system(backbone, LABELS, ZeroShotSettings(reading="generate")).predict(visual)
    texts = generate(plain, visual, question, max_new_tokens=16)
    assert [one.answer[: len(text)] for one, text in zip(greedy, texts, strict=True) if one.answer] == texts
    assert [one.predicted for one in greedy] == [parse(one.answer or "", LABELS) for one in greedy]


def test_letters_are_scored_in_place_of_labels() -> None:
    backbone = tiny.backbone()
    visual = Watched(backbone).visual([0, 1])
    question = f"Which emotion does this image evoke?\n{lettered(LABELS)}\nAnswer with the option's letter."
    expected = score(MaspModel(backbone, MethodConfig()), visual, question, tuple("ABCDEFGH"))
    for row, one in enumerate(zero_shot_system(backbone, LABELS, ZeroShotSettings(options="letters")).predict(visual)):
        assert one.log_probabilities is not None
        assert list(one.log_probabilities.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
        assert one.predicted == LABELS[int(expected[row].argmax())]


def test_questions_of_ones_own_keep_their_words() -> None:
    backbone = tiny.backbone()
    labels, by_letter = ("joy", "fear"), ZeroShotSettings(options="letters")
    listed = zero_shot_system(backbone, labels, questions=OWN)
    assert listed.question == "Dear model, what mood is it? Take a word of joy, fear for it!"
    visual = Watched(backbone).visual([0])
    (expected,) = score(MaspModel(backbone, MethodConfig()), visual, listed.question, labels).log_softmax(1).tolist()
    (one,) = listed.predict(visual)
    assert one.log_probabilities is not None
    assert list(one.log_probabilities.values()) == pytest.approx(expected, abs=1e-6)
    lines = ["Dear model, what mood is it?", "A. joy", "B. fear", "Answer with the option's letter."]
    assert zero_shot_system(backbone, labels, by_letter, questions=OWN).question.split("\n") == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Why? And which mood? One of {}.", ["Why? And which mood?", "{}"]),
        ("Name the mood, one of: {}.", ["Name the mood, one of:", "{}"]),
        ("Of {}, which one is it?", ["Of", "{}", "which one is it?"]),
        ("{}?", ["{}"]),
    ],
)
def test_any_emotion_question_can_be_asked_by_letter(text: str, lines: list[str]) -> None:
    found = question_by_letter(replace(OWN, emotion=(text,)))
    assert found.split("\n") == [*lines, "Answer with the option's letter."]


def test_what_is_said_is_normalised() -> None:
    (one,) = predictions_of(("joy", "fear"), torch.tensor([[1.0, 1.0 + math.log(3)]]))  # odds of 1 to 3
    assert one.predicted == "fear"
    assert one.log_probabilities == pytest.approx({"joy": math.log(0.25), "fear": math.log(0.75)})


def test_more_labels_than_letters_are_refused() -> None:
    with pytest.raises(UsageError, match="27 options"):
        zero_shot_system(tiny.backbone(), tuple(f"label {n}" for n in range(27)), ZeroShotSettings(options="letters"))
