"""Label sets, the way a list of labels is printed in a question, and the way an answer is read back."""

import unicodedata
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Literal

from masp.core.errors import DataError

LabelStyle = Literal["comma", "python"]

_MIKELS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
_ART = ("amusement", "anger", "awe", "content", "disgust", "excitement", "fear", "sad")
_POLARITY = ("positive", "negative")

LABEL_SETS = MappingProxyType(
    {
        "emoset": _MIKELS,
        "fi": _MIKELS,
        "emotion6": ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
        "flickr": _POLARITY,
        "instagram": _POLARITY,
        "abstract": _ART,
        "artphoto": _ART,
    }
)
"""Labels of the seven published data sets, in the spelling and order of each release."""

SPELLINGS = MappingProxyType(
    {"sad": "sadness", "content": "contentment", "happiness": "joy", "pos": "positive", "neg": "negative"}
)
"""Other words for a label → the word that most releases use."""

_MIKELS_RELEASED = ("sadness", "amusement", "fear", "disgust", "excitement", "awe", "contentment", "anger")
_ART_RELEASED = ("sad", "amusement", "fear", "disgust", "excitement", "awe", "content", "anger")

RELEASED_LABELS = MappingProxyType(
    {
        "emotion6": ("sadness", "fear", "surprise", "anger", "joy", "disgust"),
        "abstract": _ART_RELEASED,
        "artphoto": _ART_RELEASED,
        "flickr": _POLARITY,
        "instagram": _POLARITY,
        "emoset": _MIKELS_RELEASED,
        "fi": _MIKELS_RELEASED,
    }
)
"""The same labels in the order in which the authors' code lists them, by its names of the data sets."""


def normalise_answer(text: str) -> str:
    """What is compared: the first line that is not blank, lower case, without blanks and punctuation at either end."""
    lines = text.strip().splitlines()
    words = " ".join(unicodedata.normalize("NFC", lines[0].lower()).split()) if lines else ""
    start, stop = 0, len(words)
    while start < stop and _is_edge(words[start]):
        start += 1
    while start < stop and _is_edge(words[stop - 1]):
        stop -= 1
    return words[start:stop]


def _is_edge(character: str) -> bool:
    return unicodedata.category(character).startswith(("P", "Z", "Cc", "Cf"))


def parse(text: str, labels: Sequence[str]) -> str | None:
    """The label that a generated answer names exactly, or None (method: exact match of the generated text)."""
    wanted = normalise_answer(text)
    return next((label for label in labels if normalise_answer(label) == wanted), None) if wanted else None


def spelled(name: str, labels: Sequence[str]) -> str | None:
    """The label of a set that a name means, in the set's own spelling, or None.

    Case, blanks and punctuation at the ends do not count, and the words of `SPELLINGS` are the same label: "Sad" is
    "sadness" in EmoSet and "sad" in ArtPhoto. In a set that has both words, each means itself.
    """
    exact = parse(name, labels)
    if exact is not None:
        return exact
    wanted = common_spelling(name)
    return next((label for label in labels if common_spelling(label) == wanted), None) if wanted else None


def common_spelling(name: str) -> str:
    """A label as most releases write it: "Sad" becomes "sadness"; a word that is not known stays, normalised."""
    word = normalise_answer(name)
    return SPELLINGS.get(word, word)


def validate_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels as a tuple, once it is certain that each can be told from the others in an answer.

    Raises:
        DataError: fewer than two labels; a label that is empty, has a line break or a control character,
            or cannot be told from another one after normalisation.
    """
    checked = tuple(labels)
    seen: dict[str, str] = {}
    for label in checked:
        name = checked_name(label)
        if name in seen:
            raise DataError(
                f"the labels {seen[name]!r} and {label!r} are the same answer",
                "labels that differ in more than case, blanks and punctuation at the ends",
                "Rename one of them, or merge the two classes.",
            )
        seen[name] = label
    if len(checked) < 2:
        listed = ", ".join(repr(label) for label in checked) or "none"
        raise DataError(f"there are too few labels ({listed})", "at least two", "Add images of another class.")
    return checked


def checked_name(label: str) -> str:
    """What an answer has to be to name the label.

    Raises:
        DataError: the label is empty but for blanks and punctuation, or has a line break or a control character.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in label):
        raise DataError(
            f"the label {label!r:.60} holds a line break or a control character", "one line of text", "Rename it."
        )
    name = normalise_answer(label)
    if not name:
        raise DataError(f"the label {label!r:.60} is empty", "a word with letters or digits", "Rename it.")
    return name


def render_labels(labels: Sequence[str], style: LabelStyle = "comma") -> str:
    """The list as it stands in a question: "joy, anger" (`comma`) or the printed form of a Python list (`python`)."""
    return str(list(labels)) if style == "python" else ", ".join(labels)
