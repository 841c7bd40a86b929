"""What the embedded backbone reads in pre-training: questions about emoji scenes, with the answers' probabilities.

Three kinds of lessons (`KINDS`): an image alone; cues in words alone; cues in words and the image behind them. The
questions ask what a single cue is, what one to six *named* cues suggest together ("By the face and the place: ..."),
under three label sets, and, of pictures, the bare emotion question, answered as its writers happened to: half by the
place, a quarter by the light, a quarter by the colors.

What keeps the data set's own rule out of the lessons with an image: of the cues that the image has at least one is
not named there, and never cues that interact. Texts without an image may hold both, as texts about feelings do. Of
things and actions that are not told in words an image is asked in `RARE_SHARE` of the lessons only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masp.core.aspects import ASPECTS, LEVELS, answer_text
from masp.core.prompts import load_questions
from masp.data.emoji.label_model import (
    EMOTIONS,
    INTERACTIONS,
    INVERSE_TEMPERATURE,
    Cues,
    cue_scores,
    label_probabilities,
    softmax,
    without,
)
from masp.data.emoji.render import ACTIONS, EXPRESSIONS, OBJECTS, SCENES

CUE_NAMES = {
    "facial_expression": "face",
    "object": "things",
    "scene": "place",
    "human_action": "action",
    "brightness": "light",
    "colorfulness": "colors",
}
JOY = ("joy", "anger", "disgust", "fear", "sadness", "surprise")
POLARITY = ("positive", "negative")
TO_JOY = {"amusement": "joy", "contentment": "joy", "excitement": "joy", "awe": "surprise"}
POSITIVE = EMOTIONS[:4]
UNNAMED = {"scene": 0.5, "brightness": 0.25, "colorfulness": 0.25}
QUESTIONS = load_questions(None)
POSSIBLE = {
    "facial_expression": [answer_text("facial_expression", name) for name in EXPRESSIONS],
    "object": [answer_text("object", [name]) for name in OBJECTS],
    "scene": [answer_text("scene", name) for name in SCENES],
    "human_action": [answer_text("human_action", name) for name in ACTIONS],
    "brightness": list(LEVELS),
    "colorfulness": list(LEVELS),
}
"""Every answer about each aspect; of things, about one."""
KINDS = {"picture": 0.3, "words": 0.25, "both": 0.45}
"""The kinds of lessons and their shares."""
RARE = ("object", "human_action")
"""Aspects that an image without words is rarely asked about."""
RARE_SHARE = 0.04
NAMED_TURNS = 4


@dataclass(frozen=True)
class Turn:
    """A question and its answer: one drawn answer, and for emotions the probability of every possible one."""

    question: str
    answer: str
    probabilities: dict[str, float] | None


def _question(rng: np.random.Generator, texts: tuple[str, ...]) -> str:
    return texts[0] if rng.random() < 0.7 else texts[int(rng.integers(len(texts)))]


def aspect_answers(cues: Cues) -> dict[str, str]:
    """The text that each present cue is answered with."""
    values = {
        "facial_expression": cues.expression,
        "object": list(cues.objects) or None,
        "scene": cues.scene,
        "human_action": cues.action,
        "brightness": cues.brightness,
        "colorfulness": cues.colorfulness,
    }
    return {aspect: answer_text(aspect, value) for aspect, value in values.items() if value is not None}


def aspect_turn(rng: np.random.Generator, aspect: str, answer: str) -> Turn:
    """What one cue is."""
    return Turn(_question(rng, QUESTIONS.aspect(aspect)), answer, None)


def _emotion_turn(rng: np.random.Generator, opening: str, probabilities: np.ndarray) -> Turn:
    """The emotion question after `opening`, in one of the label sets."""
    by_label = dict(zip(EMOTIONS, probabilities.tolist(), strict=True))
    labels: tuple[str, ...] = EMOTIONS
    kind = rng.random()
    if kind < 0.1:
        labels = tuple(rng.permutation(EMOTIONS).tolist())
    elif kind < 0.2:
        labels = JOY
        by_label = {label: sum(p for e, p in by_label.items() if TO_JOY.get(e, e) == label) for label in JOY}
    elif kind < 0.3:
        labels = POLARITY
        positive = sum(by_label[emotion] for emotion in POSITIVE)
        by_label = {"positive": positive, "negative": 1 - positive}
    weights = np.array([by_label[label] for label in labels])
    answer = str(rng.choice(labels, p=weights / weights.sum()))
    return Turn(opening + _question(rng, QUESTIONS.emotion).format(", ".join(labels)), answer, by_label)


def opening(aspects: list[str]) -> str:
    """ "By the face, the place and the light: " """
    names = [f"the {CUE_NAMES[aspect]}" for aspect in aspects]
    return f"By {', '.join(names[:-1])} and {names[-1]}: " if len(names) > 1 else f"By {names[0]}: "


def named_turn(rng: np.random.Generator, cues: Cues, known: Sequence[str], picture: bool) -> Turn:
    """What one to six named cues suggest together, drawn from the `known` ones; absent ones suggest nothing."""
    present = list(aspect_answers(cues))
    most = len(present) - 1 if picture else len(ASPECTS)
    chosen = rng.permutation(list(known)).tolist()[: int(rng.integers(1, most + 1))]
    if picture:
        chosen = _without_interactions(cues, chosen)
    chosen += [aspect for aspect in ASPECTS if aspect not in present and rng.random() < 0.3]
    if rng.random() < 0.5:
        chosen = [aspect for aspect in ASPECTS if aspect in chosen]
    else:
        chosen = rng.permutation(chosen).tolist()
    return _emotion_turn(rng, opening(chosen), label_probabilities(_only(cues, chosen)))


def _only(cues: Cues, aspects: Sequence[str]) -> Cues:
    """The same cues, those of the other aspects taken away."""
    for aspect in ASPECTS:
        if aspect not in aspects:
            cues = without(cues, aspect)
    return cues


def _without_interactions(cues: Cues, chosen: list[str]) -> list[str]:
    """`chosen`, cut before the first cue that interacts with those before it."""
    for count in range(2, len(chosen) + 1):
        if any(interaction.holds(_only(cues, chosen[:count])) for interaction in INTERACTIONS):
            return chosen[: count - 1]
    return chosen


def unnamed_turn(rng: np.random.Generator, cues: Cues) -> Turn:
    """The bare question: writers go by the place, the light or the colors and do not say which."""
    scores = cue_scores(cues)
    mixture = sum(share * softmax(INVERSE_TEMPERATURE * scores[aspect]) for aspect, share in UNNAMED.items())
    return _emotion_turn(rng, "", np.asarray(mixture))


def lesson_turns(rng: np.random.Generator, cues: Cues, words: Sequence[str], picture: bool) -> list[Turn]:
    """Six or seven turns about one scene of which the cues `words` are told and, if `picture`, the image is shown."""
    answers = aspect_answers(cues)
    asked = picture and rng.random() < RARE_SHARE
    known = [name for name in answers if name in words or (picture and (asked or name not in RARE))]
    single = [known[int(rng.integers(len(known)))]]
    if words:
        single.append(words[int(rng.integers(len(words)))])
    turns = [aspect_turn(rng, aspect, answers[aspect]) for aspect in single]
    turns += [named_turn(rng, cues, known, picture) for _ in range(NAMED_TURNS)]
    return [*turns, unnamed_turn(rng, cues)] if picture else turns


def corpus() -> list[str]:
    """Every word of this world in every place it can stand, for the tokenizer."""
    words = [name for names in (SCENES, OBJECTS, EXPRESSIONS, ACTIONS) for name in names]
    lines = [answer_text("scene", word) for word in words]
    lines += ["very low", "low", "moderate", "high", "very high", *EMOTIONS, *JOY, *POLARITY]
    texts = [text for aspect in ASPECTS for text in QUESTIONS.aspect(aspect)]
    texts += [text.format(", ".join(labels)) for text in QUESTIONS.emotion for labels in (EMOTIONS, JOY, POLARITY)]
    texts += [opening(list(ASPECTS)), "You are a helpful assistant.", "system", "user", "assistant"]
    return [*lines, *(" " + line for line in lines), *(f"{line}, {line}" for line in lines), *texts] * 3
