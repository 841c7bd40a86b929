"""What the embedded backbone reads in pre-training: questions about emoji scenes, with the answers' probabilities.

Three kinds of text, as a web crawl might hold them: what a single cue is; what one to three *named* cues suggest ("By
the face and the place: ..."), under three label sets; and the bare emotion question, answered as its writers happened
to: half by the place, a quarter by the light, a quarter by the colors. The data set's own rule (all six cues together,
and their interactions) is never among them.
"""

from dataclasses import dataclass

import numpy as np

from masp.core.aspects import ASPECTS, answer_text
from masp.core.prompts import load_questions
from masp.data.emoji.label_model import EMOTIONS, INVERSE_TEMPERATURE, Cues, cue_scores, softmax
from masp.data.emoji.render import ACTIONS, EXPRESSIONS, GLYPHS, OBJECTS, SCENES

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


def named_turn(rng: np.random.Generator, cues: Cues, count: int) -> Turn:
    """What `count` named cues suggest together; absent ones suggest nothing."""
    scores = cue_scores(cues)
    present = list(aspect_answers(cues))
    first = present[int(rng.integers(len(present)))]
    others = [aspect for aspect in rng.permutation(ASPECTS).tolist() if aspect != first][: count - 1]
    chosen = [aspect for aspect in ASPECTS if aspect in {first, *others}]
    if rng.random() < 0.5:
        chosen = rng.permutation(chosen).tolist()
    total = sum((scores[aspect] for aspect in chosen), np.zeros(len(EMOTIONS)))
    return _emotion_turn(rng, opening(chosen), softmax(INVERSE_TEMPERATURE * total))


def unnamed_turn(rng: np.random.Generator, cues: Cues) -> Turn:
    """The bare question: writers go by the place, the light or the colors and do not say which."""
    scores = cue_scores(cues)
    mixture = sum(share * softmax(INVERSE_TEMPERATURE * scores[aspect]) for aspect, share in UNNAMED.items())
    return _emotion_turn(rng, "", np.asarray(mixture))


def full_turns(rng: np.random.Generator, cues: Cues) -> list[Turn]:
    """The six turns about one whole image."""
    answers = aspect_answers(cues)
    aspect = list(answers)[int(rng.integers(len(answers)))]
    return [
        aspect_turn(rng, aspect, answers[aspect]),
        *(named_turn(rng, cues, count) for count in (1, 1, 2, 3)),
        unnamed_turn(rng, cues),
    ]


def part_turns(rng: np.random.Generator, cues: Cues, cells: np.ndarray, whole: bool) -> list[Turn]:
    """Up to four cue questions about a part of the image: only what its cells show (all of it if `whole`)."""
    answers = aspect_answers(cues)
    if not whole:
        seen = {GLYPHS[index] for index in cells.flatten().tolist() if index >= 0}
        objects = sorted(glyph.value for glyph in seen if glyph.aspect == "object")
        kept = {glyph.aspect for glyph in seen} | {"brightness", "colorfulness"}
        answers = {aspect: answer for aspect, answer in answers.items() if aspect in kept}
        if objects:
            answers["object"] = answer_text("object", objects)
    chosen = rng.permutation(list(answers)).tolist()[:4]
    return [aspect_turn(rng, aspect, answers[aspect]) for aspect in chosen]


def corpus() -> list[str]:
    """Every word of this world in every place it can stand, for the tokenizer."""
    words = [name for names in (SCENES, OBJECTS, EXPRESSIONS, ACTIONS) for name in names]
    lines = [answer_text("scene", word) for word in words]
    lines += ["very low", "low", "moderate", "high", "very high", *EMOTIONS, *JOY, *POLARITY]
    texts = [text for aspect in ASPECTS for text in QUESTIONS.aspect(aspect)]
    texts += [text.format(", ".join(labels)) for text in QUESTIONS.emotion for labels in (EMOTIONS, JOY, POLARITY)]
    texts += [opening(list(ASPECTS)), "You are a helpful assistant.", "system", "user", "assistant"]
    return [*lines, *(" " + line for line in lines), *(f"{line}, {line}" for line in lines), *texts] * 3
