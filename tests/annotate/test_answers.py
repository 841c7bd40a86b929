"""Generated answers become annotations, or are counted as none; brightness and colorfulness are measured on pixels."""

import math

import numpy as np
import pytest
from PIL import Image

from masp.annotate.ask import CUT, EMPTY, NO_LEVEL, NOTHING, ParsedAnswer, measured, middle, understood
from masp.core.aspects import LEVELS, level


@pytest.mark.parametrize(
    ("aspect", "answer", "expected"),
    [
        ("scene", "  A Beach_House.\nIt is sunny.", "beach house"),
        ("scene", "ice skating rink/outdoor", "ice skating rink/outdoor"),
        ("facial_expression", "Happy", "happy"),
        ("facial_expression", "Neutral", "neutral"),
        ("human_action", '"reading a book"', "reading a book"),
        ("scene", "A notary's office", "notary's office"),  # begins like "not", and is none of these
        ("scene", "Norwegian fjord", "norwegian fjord"),
        ("scene", "Another planet", "another planet"),  # "an" is an article, "another" is not
        ("object", "A dog, two cats and the ball.", ("dog", "two cats", "ball")),
        ("object", "1. Tree\n2. Food & drink\n- tree", ("tree", "food & drink")),
        ("object", "a sandal", ("sandal",)),  # "and" inside a word parts nothing
        ("object", "cup, none", ("cup",)),
        ("brightness", "Very High", 0.9),
        ("brightness", "The image is very low in brightness.", 0.1),
        ("colorfulness", "moderate", 0.5),
        ("colorfulness", "It is low.", 0.3),
    ],
)
def test_what_an_answer_says(aspect, answer, expected):
    assert understood(aspect, answer, whole=True) == ParsedAnswer(expected)


@pytest.mark.parametrize(
    ("aspect", "answer", "why"),
    [
        ("scene", "", EMPTY),
        ("scene", " \n.", EMPTY),
        ("object", "…", EMPTY),
        ("scene", "Unknown", NOTHING),
        ("scene", "N/A", NOTHING),
        ("object", "None.", NOTHING),
        ("object", "none, nothing", NOTHING),
        ("facial_expression", "There is no person in this image.", NOTHING),
        ("facial_expression", "No face visible", NOTHING),
        ("facial_expression", "not applicable", NOTHING),
        ("human_action", "I'm sorry, but I can’t help with that.", NOTHING),
        ("human_action", "I’m unable to see a person", NOTHING),
        ("human_action", "The image does not show a person.", NOTHING),
        ("human_action", "The picture shows no person.", NOTHING),
        ("object", "there is no picture here", NOTHING),
        ("scene", "No picture", NOTHING),
        ("brightness", "bright", NO_LEVEL),
        ("brightness", "low or high", NO_LEVEL),
        ("colorfulness", "highly colorful", NO_LEVEL),
    ],
)
def test_what_is_no_answer_and_why(aspect, answer, why):
    assert understood(aspect, answer, whole=True) == ParsedAnswer(None, why)


def test_an_answer_that_was_cut_off_keeps_only_what_is_whole():
    assert understood("scene", "a large kitchen with", whole=False) == ParsedAnswer(None, CUT)
    assert understood("object", "cat, dog, ele", whole=False) == ParsedAnswer(("cat", "dog"))
    assert understood("object", "elephan", whole=False) == ParsedAnswer(None, CUT)
    assert understood("brightness", "very high, because the", whole=False) == ParsedAnswer(0.9)


def test_a_level_is_written_as_the_middle_of_its_fifth_and_read_back_as_itself():
    assert [middle(name) for name in LEVELS] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert [level(middle(name)) for name in LEVELS] == list(LEVELS)


def plain(*colours: tuple[int, int, int], height: int = 1) -> Image.Image:
    """One column of each colour."""
    return Image.fromarray(np.array([colours] * height, dtype=np.uint8))


def test_greys_have_no_colour():
    for grey in (0, 51, 255):
        assert measured(plain((grey, grey, grey))) == {"brightness": grey / 255, "colorfulness": 0.0}


def test_one_colour_counts_by_its_mean():
    """Pure red: rg = 255, yb = 127.5, no spread; M = 0.3 · √(255² + 127.5²) = 85.53."""
    found = measured(plain((255, 0, 0)))
    assert found == {"brightness": 0.299, "colorfulness": round(0.3 * math.hypot(255, 127.5) / 109, 4)}
    assert found["colorfulness"] == pytest.approx(0.7847, abs=1e-4)


def test_several_colours_count_by_their_spread():
    """A little red beside a little green: rg is 20 and -20 (σ 20, μ 0), yb is 10 for both (σ 0, μ 10)."""
    found = measured(plain((20, 0, 0), (0, 20, 0), height=600))  # more rows than are read at a time
    assert found["colorfulness"] == round((20 + 0.3 * 10) / 109, 4) == 0.211
    assert found["brightness"] == round((0.299 + 0.587) * 20 / 2 / 255, 4)


def test_nothing_is_above_one():
    assert measured(plain((255, 0, 0), (0, 0, 255), (0, 255, 0)))["colorfulness"] == 1.0
