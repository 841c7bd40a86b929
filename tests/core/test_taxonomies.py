"""Every label of every set maps where it should, and nowhere else."""

import itertools
import re

import pytest

from masp.core.errors import DataError, MaspError
from masp.core.labels import (
    LABEL_SETS,
    MAPPINGS,
    SPELLINGS,
    TAXONOMIES,
    common_spelling,
    label_set,
    mapping,
    spelled,
    taxonomy_of,
)

HOMES = {
    "emoset": "mikels",
    "fi": "mikels",
    "abstract": "mikels",
    "artphoto": "mikels",
    "emotion6": "ekman",
    "flickr": "polarity",
    "instagram": "polarity",
}
POLARITY = {
    **dict.fromkeys(("amusement", "awe", "contentment", "content", "excitement", "joy", "positive"), "positive"),
    **dict.fromkeys(("anger", "disgust", "fear", "sadness", "sad", "negative"), "negative"),
}
EKMAN = {
    **dict.fromkeys(("amusement", "contentment", "content", "excitement", "joy"), "joy"),
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "sadness": "sadness",
    "sad": "sadness",
    "surprise": "surprise",
}
MIKELS = {
    **{name: name for name in ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")},
    "content": "contentment",
    "sad": "sadness",
}
EXPECTED = {"polarity": POLARITY, "ekman": EKMAN, "mikels": MIKELS}


@pytest.mark.parametrize(("name", "target"), list(itertools.product(LABEL_SETS, TAXONOMIES)))
def test_every_label_of_every_set_maps_where_it_should(name: str, target: str) -> None:
    labels = LABEL_SETS[name]
    assert taxonomy_of(labels) == HOMES[name]
    known = EXPECTED[target]
    assert mapping(labels, target) == {label: known[label] for label in labels if label in known}


def test_every_mapping_stays_within_its_taxonomies() -> None:
    assert set(MAPPINGS) == set(itertools.permutations(TAXONOMIES, 2))
    for (source, target), table in MAPPINGS.items():
        assert set(table) <= set(TAXONOMIES[source])
        assert set(table.values()) <= set(TAXONOMIES[target])


def test_a_way_round_never_contradicts_the_direct_way() -> None:
    for source, middle, target in itertools.permutations(TAXONOMIES, 3):
        for label, between in MAPPINGS[source, middle].items():
            if between in MAPPINGS[middle, target] and label in MAPPINGS[source, target]:
                assert MAPPINGS[middle, target][between] == MAPPINGS[source, target][label]


def test_what_is_ambiguous_is_not_mapped() -> None:
    assert "awe" not in MAPPINGS["mikels", "ekman"]
    assert {"joy", "surprise"}.isdisjoint(MAPPINGS["ekman", "mikels"])
    assert "surprise" not in MAPPINGS["ekman", "polarity"]
    assert mapping(LABEL_SETS["flickr"], "mikels") == {}


@pytest.mark.parametrize(("alias", "word"), list(SPELLINGS.items()))
def test_an_alias_is_its_label_and_no_other(alias: str, word: str) -> None:
    for labels in LABEL_SETS.values():
        there = [label for label in labels if label in (alias, word)]
        assert [label for label in labels if spelled(alias, labels) == label] == there
        assert spelled(alias.upper() + ".", labels) == spelled(word, labels)
    assert common_spelling(word) == word


def test_every_label_is_spelled_as_itself() -> None:
    for labels in LABEL_SETS.values():
        assert [spelled(label, labels) for label in labels] == list(labels)
        assert spelled("sadder", labels) is None
        assert spelled("", labels) is None


def test_labels_of_no_taxonomy_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"belong to no taxonomy \(calm is not in mikels\); expected mikels: amusement"):
        taxonomy_of(("awe", "sad", "calm"))
    assert taxonomy_of(("anger", "surprise")) == "ekman"
    assert taxonomy_of(("sad", "anger")) == "mikels"


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("mikels8", LABEL_SETS["emoset"]),
        (" ekman6 ", LABEL_SETS["emotion6"]),
        ("polarity", ("positive", "negative")),
        ("joy, deep sorrow,awe", ("joy", "deep sorrow", "awe")),
        (["joy", "fear, or worse"], ("joy", "fear, or worse")),
    ],
)
def test_labels_are_asked_for_by_name_or_one_by_one(given, labels):
    assert label_set(given) == labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mikels9", "Did you mean 'mikels8'"),
        ("joy", "no label set is called 'joy'"),
        ("", "two or more"),
        (["joy"], "two or more"),
        ([], "two or more"),
        ("joy,,fear", "is empty"),
        ("joy,fear,Joy!", "the same answer"),
        ("joy,<|im_end|>", "looks like a special token"),
        (["joy", "fear</s>"], "looks like a special token"),
        ("[INST],joy", "looks like a special token"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(MaspError, match=re.escape(message)):
        label_set(given)
