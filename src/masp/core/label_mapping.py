"""Taxonomies of emotions, and which label of one is which label of another: data, not code.

A label that could be two labels of the other taxonomy, or none, is not mapped: an image of awe shows neither joy nor
fear for certain, joy could be any of four labels of Mikels, and surprise is neither good nor bad news.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.labels import LABEL_SETS, common_spelling, validate_labels

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
"""Label sets by the names that `--labels` takes; the first is chosen from where nobody says otherwise."""

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
    """The labels that somebody asks for: the name of a set, labels with commas between them, or a list of labels.

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
    found = {label: counterpart(label, source, target) for label in names}
    return {label: other for label, other in found.items() if other is not None}
