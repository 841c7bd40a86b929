"""Label sets and taxonomies of emotions: how labels are listed in a question, read back from an answer, and mapped."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from masp.core.errors import DataError, UsageError, did_you_mean

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


Taxonomy = Literal["mikels", "ekman", "polarity"]

TAXONOMIES: Mapping[Taxonomy, tuple[str, ...]] = MappingProxyType(
    {
        "mikels": LABEL_SETS["emoset"],
        "ekman": LABEL_SETS["emotion6"],
        "polarity": LABEL_SETS["flickr"],
    }
)
"""The label sets that the published data sets share, up to spelling and order."""

NAMED_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mikels8": TAXONOMIES["mikels"], "ekman6": TAXONOMIES["ekman"], "polarity": TAXONOMIES["polarity"]}
)
"""Label sets by the names that `--labels` takes; the first is chosen from where nothing else is said."""

_MARK = re.compile(r"<[^<>]*>|\[/?[A-Z_]+\]")
"""What special tokens and marks of chat templates look like: "<|im_end|>", "</s>", "[INST]"."""

_SHARED = {"anger": "anger", "disgust": "disgust", "fear": "fear", "sadness": "sadness"}
_BAD_NEWS = dict.fromkeys(_SHARED, "negative")

MAPPINGS: Mapping[tuple[Taxonomy, Taxonomy], Mapping[str, str]] = MappingProxyType(
    {
        ("mikels", "ekman"): _SHARED | dict.fromkeys(("amusement", "contentment", "excitement"), "joy"),
        ("mikels", "polarity"): _BAD_NEWS
        | dict.fromkeys(("amusement", "awe", "contentment", "excitement"), "positive"),
        ("ekman", "mikels"): _SHARED,
        ("ekman", "polarity"): _BAD_NEWS | {"joy": "positive"},
        ("polarity", "mikels"): {},
        ("polarity", "ekman"): {},
    }
)
"""(From, to) → label → label; a label that is not there has no counterpart."""


def label_set(given: str | Sequence[str]) -> tuple[str, ...]:
    """The labels that were asked for: the name of a set, labels with commas between them, or a list of labels.

    Raises:
        UsageError: one word that names no set, or a label that looks like a special token.
        DataError: fewer than two labels, an empty one, or two that cannot be told apart.
    """
    if isinstance(given, str):
        if given.strip() in NAMED_SETS:
            return NAMED_SETS[given.strip()]
        if given.strip() and "," not in given:
            expected = f"{', '.join(NAMED_SETS)}, or two or more labels with commas between them"
            raise UsageError(f"no label set is called '{given}'", expected, did_you_mean(given, NAMED_SETS))
    labels = [label.strip() for label in given.split(",")] if isinstance(given, str) else list(given)
    if len(labels) < 2:
        raise DataError(f"there are too few labels ({', '.join(labels) or 'none'})", "two or more", "Name more.")
    marked = next((label for label in labels if _MARK.search(label)), None)
    if marked is not None:
        raise UsageError(f"the label {marked!r:.60} looks like a special token", "words", "Rename it.")
    return validate_labels(labels)


def taxonomy_of(labels: Iterable[str]) -> Taxonomy:
    """The taxonomy that all labels belong to, whatever their spelling; the first in the order of `TAXONOMIES`.

    Raises:
        DataError: they belong to none.
    """
    words = {label: common_spelling(label) for label in labels}
    for name, members in TAXONOMIES.items():
        if set(words.values()) <= set(members):
            return name
    outside = {name: [label for label in words if words[label] not in members] for name, members in TAXONOMIES.items()}
    nearest = min(outside, key=lambda name: len(outside[name]))
    raise DataError(
        f"the labels {', '.join(words)} belong to no taxonomy ({', '.join(outside[nearest])} is not in {nearest})",
        "; ".join(f"{name}: {', '.join(members)}" for name, members in TAXONOMIES.items()),
        "Leave data.taxonomy at null, or rename the labels.",
    )


def counterpart(label: str, source: Taxonomy, target: Taxonomy) -> str | None:
    """The label of the target taxonomy that a label of the source is, in any spelling; None where there is none.

    Within one taxonomy this settles the spelling: ArtPhoto's "sad" becomes "sadness".
    """
    word = common_spelling(label)
    if source == target:
        return word if word in TAXONOMIES[target] else None
    return MAPPINGS[source, target].get(word)


def mapping(labels: Iterable[str], target: Taxonomy) -> dict[str, str]:
    """Label → label of the target taxonomy, for those that have a counterpart there.

    Raises:
        DataError: the labels belong to no taxonomy.
    """
    names = tuple(labels)
    source = taxonomy_of(names)
    table = {label: counterpart(label, source, target) for label in names}
    return {label: other for label, other in table.items() if other is not None}
