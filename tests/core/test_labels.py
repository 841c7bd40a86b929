"""Labels: rendered in a question, read back from an answer, and told apart."""

import ast
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS, LabelStyle, normalise_answer, parse, render_labels, spelled, validate_labels

STYLES: list[LabelStyle] = ["comma", "python"]
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


def test_sizes_of_the_published_sets() -> None:
    assert {name: len(labels) for name, labels in LABEL_SETS.items()} == {
        "emoset": 8,
        "fi": 8,
        "emotion6": 6,
        "flickr": 2,
        "instagram": 2,
        "abstract": 8,
        "artphoto": 8,
    }
    assert LABEL_SETS["emoset"][:4] == ("amusement", "awe", "contentment", "excitement")
    assert {"sad", "content"} <= set(LABEL_SETS["artphoto"])


def test_lists_are_printed_in_two_styles() -> None:
    assert render_labels(("joy", "anger"), "comma") == "joy, anger"
    assert render_labels(("joy", "anger"), "python") == "['joy', 'anger']"


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
