"""What the card of the embedded backbone says of its lessons: the data set's rule is never told about a picture."""

import sys
from pathlib import Path

import numpy as np
import pytest

from masp.core.aspects import ASPECTS
from masp.data.emoji.dataset import scene
from masp.data.emoji.label_model import INTERACTIONS, Cues, cue_scores, label_probabilities, softmax, without

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "pretrain"))

import texts


def only(cues: Cues, named: list[str]) -> Cues:
    for aspect in ASPECTS:
        if aspect not in named:
            cues = without(cues, aspect)
    return cues


def named_in(turn: texts.Turn) -> list[str]:
    """The aspects that a question names: "By the face and the light: …"."""
    opening, found, _ = turn.question.partition(": ")
    if not found or not opening.startswith("By the "):
        return []
    return [aspect for aspect, word in texts.CUE_NAMES.items() if f"the {word}" in opening]


@pytest.fixture(scope="module")
def scenes() -> list[Cues]:
    return [scene("pretrain", 7, index).drawing.cues for index in range(40)]


def test_a_lesson_with_a_picture_never_names_all_cues_nor_cues_that_interact(scenes):
    rng, counted = np.random.default_rng(0), 0
    for cues in scenes * 10:
        present = list(texts.aspect_answers(cues))
        words = [aspect for aspect in present if rng.random() < 0.7]
        for turn in texts.lesson_turns(rng, cues, words, picture=True):
            named = named_in(turn)
            if turn.probabilities is None or not named:
                continue
            counted += 1
            assert not set(present) <= set(named)
            assert not any(one.holds(only(cues, named)) for one in INTERACTIONS)
            if set(turn.probabilities) == set(texts.EMOTIONS):
                total = sum((cue_scores(cues)[aspect] for aspect in named), np.zeros(8))
                wanted = dict(zip(texts.EMOTIONS, softmax(texts.INVERSE_TEMPERATURE * total), strict=True))
                assert turn.probabilities == pytest.approx(wanted)
    assert counted > 1000


def test_without_a_picture_only_told_cues_are_asked_for_and_they_may_interact(scenes):
    rng, interacting = np.random.default_rng(1), 0
    for cues in scenes * 10:
        present = list(texts.aspect_answers(cues))
        words = [aspect for aspect in present if rng.random() < 0.7] or present[:1]
        for turn in texts.lesson_turns(rng, cues, words, picture=False):
            named = named_in(turn)
            if not named:
                continue
            assert set(named) & set(present) <= set(words)
            if set(turn.probabilities) == set(texts.EMOTIONS):
                wanted = label_probabilities(only(cues, named))
                assert list(turn.probabilities.values()) == pytest.approx(wanted.tolist())
                interacting += any(one.holds(only(cues, named)) for one in INTERACTIONS)
    assert interacting > 20


def test_things_and_actions_of_a_picture_alone_are_asked_about_rarely(scenes):
    rng, rare, lessons = np.random.default_rng(2), 0, 0
    for cues in scenes * 25:
        asked = [
            turn.question for turn in texts.lesson_turns(rng, cues, [], picture=True) if turn.probabilities is None
        ]
        of_rare = [text for aspect in texts.RARE for text in texts.QUESTIONS.aspect(aspect)]
        rare, lessons = rare + any(text in of_rare for text in asked), lessons + 1
    assert rare / lessons < 0.04
