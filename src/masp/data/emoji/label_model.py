"""The rule of the small world: how the cues of an emoji scene make its emotion.

Each cue value has an affinity to some of EmoSet's eight emotions. The affinities add up, a few interactions of cues
override the sum (a happy face at a grave is not joy), and the label is drawn from the softmax. Because the rule is
known, so are each image's true label probabilities, the best accuracy anyone could reach, and the cue that decided.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from masp.core.aspects import ASPECTS, LEVELS, level
from masp.core.labels import LABEL_SETS

EMOTIONS = LABEL_SETS["emoset"]
"""EmoSet's eight emotions in EmoSet's own order."""

INVERSE_TEMPERATURE = 3.4
"""Sharpness of the label draw; it sets the ceiling (mean of the largest true probability)."""


@dataclass(frozen=True)
class Cues:
    """The six cues of one image; None or an empty tuple means that the cue is absent.

    `brightness` and `colorfulness` lie in [0, 1] on EmoSet's grid of 0.1.
    """

    scene: str | None
    objects: tuple[str, ...]
    expression: str | None
    action: str | None
    brightness: float | None
    colorfulness: float | None


Affinity = Mapping[str, float]

SCENE_AFFINITY: Mapping[str, Affinity] = {
    "beach": {"contentment": 1.2, "excitement": 0.4},
    "mountain": {"awe": 1.4, "contentment": 0.3},
    "city_by_night": {"excitement": 0.7, "awe": 0.5, "fear": 0.3},
    "volcano": {"awe": 0.9, "fear": 0.9},
    "hospital": {"sadness": 0.9, "fear": 0.5},
    "graveyard": {"sadness": 1.2, "fear": 0.5},
    "forest": {"contentment": 0.7, "awe": 0.6},
    "stadium": {"excitement": 1.3},
    "desert": {"awe": 0.7, "sadness": 0.4},
    "amusement_park": {"amusement": 1.1, "excitement": 0.6},
    "garden": {"contentment": 1.3},
    "thunderstorm": {"fear": 1.0, "anger": 0.6},
}
OBJECT_AFFINITY: Mapping[str, Affinity] = {
    "Balloon": {"amusement": 0.7, "excitement": 0.3},
    "Birthday cake": {"amusement": 0.6, "contentment": 0.4},
    "Bomb": {"fear": 0.7, "anger": 0.6},
    "Bouquet": {"contentment": 0.7, "awe": 0.2},
    "Broken heart": {"sadness": 1.0},
    "Butterfly": {"awe": 0.6, "contentment": 0.4},
    "Candle": {"awe": 0.4, "sadness": 0.4},
    "Cat": {"contentment": 0.6, "amusement": 0.4},
    "Cockroach": {"disgust": 1.1},
    "Coffin": {"sadness": 0.9, "fear": 0.4},
    "Dog": {"amusement": 0.7, "contentment": 0.4},
    "Drum": {"excitement": 0.7, "anger": 0.2},
    "Garbage": {"disgust": 0.9},
    "Gift": {"excitement": 0.6, "amusement": 0.4},
    "Guitar": {"excitement": 0.6, "contentment": 0.3},
    "Knife": {"anger": 0.9, "fear": 0.4},
    "Microbe": {"disgust": 0.9, "fear": 0.3},
    "Rainbow": {"awe": 0.9},
    "Rocket": {"excitement": 0.7, "awe": 0.4},
    "Siren": {"anger": 0.6, "fear": 0.5},
    "Skull": {"fear": 0.8, "disgust": 0.3},
    "Snake": {"fear": 0.8, "disgust": 0.4},
    "Spider": {"fear": 0.9, "disgust": 0.5},
    "Tea": {"contentment": 0.9},
    "Trophy": {"excitement": 0.9},
    "Wilted flower": {"sadness": 0.9},
}
EXPRESSION_AFFINITY: Mapping[str, Affinity] = {
    "angry": {"anger": 2.0},
    "disgust": {"disgust": 1.9},
    "fear": {"fear": 1.8},
    "happy": {"amusement": 1.2, "contentment": 0.8, "excitement": 0.5},
    "sad": {"sadness": 1.9},
    "surprise": {"awe": 0.9, "excitement": 0.7, "fear": 0.3},
}
ACTION_AFFINITY: Mapping[str, Affinity] = {
    "bathing": {"contentment": 1.1},
    "climbing": {"awe": 0.8, "excitement": 0.5},
    "cycling": {"excitement": 0.6, "contentment": 0.4},
    "dancing": {"amusement": 0.9, "excitement": 0.6},
    "facepalming": {"disgust": 0.7, "anger": 0.7},
    "fencing": {"anger": 1.3},
    "juggling": {"amusement": 1.4},
    "kneeling": {"sadness": 0.9, "awe": 0.4},
    "meditating": {"contentment": 1.0, "awe": 0.4},
    "running": {"fear": 0.6, "excitement": 0.6},
    "surfing": {"excitement": 1.2},
    "weightlifting": {"excitement": 0.5, "anger": 0.6},
}
BRIGHTNESS_AFFINITY: Mapping[str, Affinity] = {
    "very low": {"fear": 0.8, "sadness": 0.5},
    "low": {"fear": 0.3, "sadness": 0.3},
    "moderate": {},
    "high": {"contentment": 0.3, "amusement": 0.2},
    "very high": {"awe": 0.5, "contentment": 0.4},
}
COLORFULNESS_AFFINITY: Mapping[str, Affinity] = {
    "very low": {"sadness": 0.8, "disgust": 0.2},
    "low": {"sadness": 0.3},
    "moderate": {},
    "high": {"excitement": 0.3, "amusement": 0.2},
    "very high": {"amusement": 0.6, "excitement": 0.5},
}

THREATS = frozenset({"Bomb", "Knife", "Snake", "Spider", "Skull", "Siren"})
TREATS = frozenset({"Balloon", "Birthday cake", "Gift", "Bouquet", "Rainbow", "Trophy"})
MOURNING = frozenset({"graveyard", "hospital"})


@dataclass(frozen=True)
class Interaction:
    """A condition on several cues and what it adds to the emotions' scores."""

    name: str
    holds: Callable[[Cues], bool]
    adds: Affinity


INTERACTIONS: tuple[Interaction, ...] = (
    Interaction(
        "a happy face at a place of mourning",
        lambda cues: cues.expression == "happy" and cues.scene in MOURNING,
        {"disgust": 1.6, "anger": 1.2, "amusement": -1.2, "contentment": -0.8, "excitement": -0.5},
    ),
    Interaction(
        "a surprised face before a treat",
        lambda cues: cues.expression == "surprise" and bool(TREATS & set(cues.objects)),
        {"amusement": 1.0, "excitement": 0.6, "fear": -0.3},
    ),
    Interaction(
        "a surprised face before a threat",
        lambda cues: cues.expression == "surprise" and bool(THREATS & set(cues.objects)),
        {"fear": 1.3, "awe": -0.9, "excitement": -0.7},
    ),
    Interaction(
        "running from a threat",
        lambda cues: cues.action == "running" and bool(THREATS & set(cues.objects)),
        {"fear": 1.0, "excitement": -0.6},
    ),
    Interaction(
        "alone in the dark: a wood or a city",
        lambda cues: cues.scene in {"forest", "city_by_night"} and _is(cues.brightness, LEVELS[:2]),
        {"fear": 1.0, "contentment": -0.7, "excitement": -0.4},
    ),
    Interaction(
        "a colourful skull or spider is a party",
        lambda cues: bool({"Skull", "Spider"} & set(cues.objects)) and _is(cues.colorfulness, LEVELS[3:]),
        {"amusement": 1.1, "fear": -0.7, "disgust": -0.4},
    ),
)


def _is(value: float | None, levels: tuple[str, ...]) -> bool:
    return value is not None and level(value) in levels


def _vector(affinity: Affinity) -> np.ndarray:
    return np.array([affinity.get(emotion, 0.0) for emotion in EMOTIONS])


def cue_scores(cues: Cues) -> dict[str, np.ndarray]:
    """What each aspect alone adds to the score of each emotion: {aspect: (8,)}, zeros for an absent cue."""
    none: Affinity = {}
    return {
        "facial_expression": _vector(EXPRESSION_AFFINITY[cues.expression] if cues.expression else none),
        "object": sum((_vector(OBJECT_AFFINITY[name]) for name in cues.objects), np.zeros(len(EMOTIONS))),
        "scene": _vector(SCENE_AFFINITY[cues.scene] if cues.scene else none),
        "human_action": _vector(ACTION_AFFINITY[cues.action] if cues.action else none),
        "brightness": _vector(BRIGHTNESS_AFFINITY[level(cues.brightness)] if cues.brightness is not None else none),
        "colorfulness": _vector(
            COLORFULNESS_AFFINITY[level(cues.colorfulness)] if cues.colorfulness is not None else none
        ),
    }


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities that sum to 1 from scores along the last axis."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def label_probabilities(cues: Cues) -> np.ndarray:
    """The true probability of each emotion for an image with these cues: (8,), sums to 1."""
    scores = sum(cue_scores(cues).values(), np.zeros(len(EMOTIONS)))
    for interaction in INTERACTIONS:
        if interaction.holds(cues):
            scores = scores + _vector(interaction.adds)
    return softmax(INVERSE_TEMPERATURE * scores)


_WITHOUT = {
    "facial_expression": {"expression": None},
    "object": {"objects": ()},
    "scene": {"scene": None},
    "human_action": {"action": None},
    "brightness": {"brightness": None},
    "colorfulness": {"colorfulness": None},
}


def without(cues: Cues, aspect: str) -> Cues:
    """The same cues with one aspect's cue taken away."""
    return replace(cues, **_WITHOUT[aspect])


def effects(cues: Cues, label: str) -> dict[str, float]:
    """How much the true log-probability of `label` falls when each aspect's cue is taken away."""
    at = EMOTIONS.index(label)
    full = np.log(label_probabilities(cues)[at])
    return {aspect: float(full - np.log(label_probabilities(without(cues, aspect))[at])) for aspect in ASPECTS}


def cause(cues: Cues, label: str) -> str:
    """The aspect whose cue did most for `label`: the one that costs it most when taken away."""
    by_aspect = effects(cues, label)
    return max(ASPECTS, key=lambda aspect: by_aspect[aspect])
