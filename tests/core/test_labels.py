"""Labels: rendered in a question, read back from an answer, and told apart."""

import ast
import itertools
import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from masp.core.errors import DataError, MaspError
from masp.core.labels import (
    LABEL_SETS,
    MAPPINGS,
    SPELLINGS,
    TAXONOMIES,
    common_spelling,
    label_set,
    mapping,
    normalise_answer,
    parse,
    render_labels,
    spelled,
    taxonomy_of,
    validate_labels,
)

WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=11)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_every_label_survives_render_and_parse(name: str) -> None:
    labels = validate_labels(LABEL_SETS[name])
    assert render_labels(labels, "comma").split(", ") == list(labels)
    assert ast.literal_eval(render_labels(labels, "python")) == list(labels)
    for label in labels:
        assert parse(label, labels) == label
        assert parse(f"  {label.upper()}.\nBecause of the light.", labels) == label
        assert parse(f"'{label}'", labels) == label


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Sadness", "sadness"),
        ("\n\n  “Sadness.”  \nfear", "sadness"),
        ("very   Sad", "very sad"),
        ("", ""),
        ("...", ""),
        ("sad-ness!", "sad-ness"),
        ("e\N{COMBINING ACUTE ACCENT}mu", "\N{LATIN SMALL LETTER E WITH ACUTE}mu"),
    ],
)
def test_answers_are_normalised(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@pytest.mark.parametrize("text", ["", "sadnes", "sad", "I think sadness", "sadness or fear", "?"])
def test_only_an_exact_answer_counts(text: str) -> None:
    assert parse(text, LABEL_SETS["emotion6"]) is None


def test_a_name_means_itself_before_it_means_its_synonym() -> None:
    both = ("joy", "happiness", "sadness")
    assert [spelled(name, both) for name in ("joy", "Happiness.", "HAPPINESS", "Sad")] == [
        "joy",
        "happiness",
        "happiness",
        "sadness",
    ]
    assert [spelled(name, both[::-1]) for name in ("joy", "happiness")] == ["joy", "happiness"]
    assert spelled("happiness", ("joy", "sadness")) == "joy"
    assert spelled("surprise", both) is None


@given(st.lists(WORDS, min_size=2, max_size=7))
def test_labels_of_any_name_survive_or_are_refused(labels: list[str]) -> None:
    try:
        validate_labels(labels)
    except DataError:
        assume(False)
    for label in labels:
        assert parse(label, labels) == label
        assert parse(f'"{label}".', labels) == label
        assert ast.literal_eval(render_labels(labels, "python")) == labels


@given(st.lists(st.text(string.ascii_lowercase + " é漢", min_size=1), min_size=2, max_size=5))
def test_valid_labels_are_pairwise_different_after_normalisation(labels: list[str]) -> None:
    normal = [normalise_answer(label) for label in labels]
    if all(normal) and len(set(normal)) == len(normal):
        assert validate_labels(labels) == tuple(labels)
    else:
        with pytest.raises(DataError):
            validate_labels(labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["joy", "Joy."], r"the labels 'joy' and 'Joy\.' are the same answer; expected .*\. Rename one of them"),
        (["joy", ""], "the label '' is empty"),
        (["joy", "?!"], r"the label '\?!' is empty; expected a word with letters or digits"),
        (["joy", "a\nb"], r"holds a line break or a control character; expected one line of text"),
        (["joy", "a\udc80"], "holds a line break or a control character"),
        (["joy"], r"there are too few labels \('joy'\); expected at least two"),
        ([], r"there are too few labels \(none\)"),
    ],
)
def test_labels_that_cannot_work_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate_labels(labels)


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


def test_a_way_round_never_contradicts_the_direct_way() -> None:
    for source, middle, target in itertools.permutations(TAXONOMIES, 3):
        for label, between in MAPPINGS[source, middle].items():
            if between in MAPPINGS[middle, target] and label in MAPPINGS[source, target]:
                assert MAPPINGS[middle, target][between] == MAPPINGS[source, target][label]


@pytest.mark.parametrize(("alias", "word"), list(SPELLINGS.items()))
def test_an_alias_is_its_label_and_no_other(alias: str, word: str) -> None:
    for labels in LABEL_SETS.values():
        there = [label for label in labels if label in (alias, word)]
        assert [label for label in labels if spelled(alias, labels) == label] == there
        assert spelled(alias.upper() + ".", labels) == spelled(word, labels)
    assert common_spelling(word) == word


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
