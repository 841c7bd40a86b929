"""What the embedded backbone's language model meets in pre-training: texts about emoji scenes, as a web crawl might hold.

It has read about the cues far more than it has looked at them:

- *captions* tell some cues of a scene in words, alone or in front of the picture;
- what one to three *named* cues suggest ("By the face and the place: ..."), under three label sets, of what a caption
  tells and, of pictures without one, of the face, the place, the light and the colors only;
- the bare emotion question, answered as its writers happened to: half by the place, a quarter by the light, a quarter
  by the colors;
- what a single cue is: asked of captions, and now and then of a close-up; never of a whole picture.

The data set's own rule (all six cues together, and their interactions) is never among them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from masp.aspects import ASPECTS, LEVELS, answer_text, level
from masp.data.emoji.glyphs import ACTIONS, EXPRESSIONS, GLYPHS, OBJECTS, SCENES
from masp.data.emoji.world import EMOTIONS, INVERSE_TEMPERATURE, Cues, cue_scores, softmax
from masp.questions import load_questions

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
SEEN = ("facial_expression", *UNNAMED)  # cues whose emotion is asked of pictures without a caption
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


def named_turn(rng: np.random.Generator, cues: Cues, count: int, among: Sequence[str] = ASPECTS) -> Turn:
    """What `count` cues out of `among` suggest together, named in the question; absent ones suggest nothing."""
    scores = cue_scores(cues)
    present = [aspect for aspect in aspect_answers(cues) if aspect in among]
    first = present[int(rng.integers(len(present)))]
    others = [aspect for aspect in rng.permutation(list(among)).tolist() if aspect != first][: count - 1]
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


def picture_turns(rng: np.random.Generator, cues: Cues) -> list[Turn]:
    """The turns about a whole picture without a caption."""
    return [named_turn(rng, cues, 1, SEEN), named_turn(rng, cues, 2, SEEN), unnamed_turn(rng, cues)]


def caption_turns(rng: np.random.Generator, told: Cues) -> list[Turn]:
    """The turns about a caption without its picture: what two of the told cues are, and what they suggest."""
    answers = aspect_answers(told)
    chosen = rng.permutation(list(answers)).tolist()[:2]
    return [
        *(aspect_turn(rng, aspect, answers[aspect]) for aspect in chosen),
        *(named_turn(rng, told, count, list(answers)) for count in (1, 2, 3)),
    ]


def captioned_turns(rng: np.random.Generator, cues: Cues, told: Cues) -> list[Turn]:
    """The turns about a picture behind its caption: what told and seen cues suggest together."""
    answers = list(aspect_answers(told))
    among = [aspect for aspect in ASPECTS if aspect in answers or aspect in SEEN]
    known = replace(cues, objects=told.objects, action=told.action)
    return [
        named_turn(rng, known, 1, answers),
        named_turn(rng, known, 2, among),
        named_turn(rng, known, 3, among),
        unnamed_turn(rng, cues),
    ]


def close_up_turns(rng: np.random.Generator, cues: Cues, cells: np.ndarray) -> list[Turn]:
    """What one cue of a close-up is and what it suggests: only what the cells show."""
    seen = [GLYPHS[index] for index in cells.flatten().tolist() if index >= 0]
    shown = only(cues, [(glyph.aspect, glyph.value) for glyph in seen])
    answers = aspect_answers(shown)
    if not answers:
        shown = replace(shown, brightness=cues.brightness, colorfulness=cues.colorfulness)
        answers = aspect_answers(shown)
    aspect = list(answers)[int(rng.integers(len(answers)))]
    return [aspect_turn(rng, aspect, answers[aspect]), named_turn(rng, shown, 1)]


def phrases_of(cues: Cues) -> list[tuple[str, str]]:
    """What a caption can tell of a scene: (aspect, value), each object by itself."""
    levels = {"brightness": cues.brightness, "colorfulness": cues.colorfulness}
    single = {"facial_expression": cues.expression, "scene": cues.scene, "human_action": cues.action}
    return [
        *((aspect, value) for aspect, value in single.items() if value is not None),
        *(("object", value) for value in cues.objects),
        *((aspect, level(value)) for aspect, value in levels.items() if value is not None),
    ]


def only(cues: Cues, told: Collection[tuple[str, str]]) -> Cues:
    """The scene as somebody knows it who was told these phrases and nothing else."""
    aspects = {aspect for aspect, _ in told}
    return Cues(
        scene=cues.scene if "scene" in aspects else None,
        objects=tuple(value for value in cues.objects if ("object", value) in told),
        expression=cues.expression if "facial_expression" in aspects else None,
        action=cues.action if "human_action" in aspects else None,
        brightness=cues.brightness if "brightness" in aspects else None,
        colorfulness=cues.colorfulness if "colorfulness" in aspects else None,
    )


PHRASES: tuple[tuple[str, str], ...] = (
    *(("scene", value) for value in SCENES),
    *(("object", value) for value in OBJECTS),
    *(("facial_expression", value) for value in EXPRESSIONS),
    *(("human_action", value) for value in ACTIONS),
    *((aspect, value) for aspect in ("brightness", "colorfulness") for value in LEVELS),
)
"""Everything that a caption can tell."""


def phrase_text(aspect: str, value: str) -> str:
    """A phrase in words: "place beach"."""
    return f"{CUE_NAMES[aspect]} {value if value in LEVELS else answer_text('scene', value)}"


def corpus() -> list[str]:
    """Every word of this world in every place it can stand, for the tokenizer."""
    words = [name for names in (SCENES, OBJECTS, EXPRESSIONS, ACTIONS) for name in names]
    lines = [answer_text("scene", word) for word in words]
    lines += ["very low", "low", "moderate", "high", "very high", *EMOTIONS, *JOY, *POLARITY]
    texts = [text for aspect in ASPECTS for text in QUESTIONS.aspect(aspect)]
    texts += [text.format(", ".join(labels)) for text in QUESTIONS.emotion for labels in (EMOTIONS, JOY, POLARITY)]
    texts += [opening(list(ASPECTS)), "You are a helpful assistant.", "system", "user", "assistant"]
    return [*lines, *(" " + line for line in lines), *(f"{line}, {line}" for line in lines), *texts] * 3
