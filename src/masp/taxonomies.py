"""Taxonomies of emotions, and which label of one is which label of another: data, not code.

A label that could be two labels of the other taxonomy, or none, is not mapped: a picture of awe shows neither joy nor
fear for certain, joy could be any of four labels of Mikels, and surprise is neither good nor bad news.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from masp.errors import DataError
from masp.labels import LABEL_SETS, common_spelling

Taxonomy = Literal["mikels", "ekman", "polarity"]

TAXONOMIES: Mapping[Taxonomy, tuple[str, ...]] = MappingProxyType(
    {
        "mikels": LABEL_SETS["emoset"],
        "ekman": LABEL_SETS["emotion6"],
        "polarity": LABEL_SETS["flickr"],
    }
)
"""The label sets that the published data sets share, up to spelling and order."""

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
