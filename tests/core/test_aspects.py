"""Annotations become answers: levels at the edges of the 0.1 grid, and texts."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.core.aspects import ASPECTS, LEVELS, MIN_EFFECT, WHOLE_IMAGE, answer_text, deciding_cue, level
from masp.core.errors import DataError


def test_order_of_the_aspects_is_fixed() -> None:
    assert ASPECTS == ("facial_expression", "object", "scene", "human_action", "brightness", "colorfulness")


@pytest.mark.parametrize(
    ("effects", "image", "cue"),
    [
        ({}, None, None),
        ({}, 3.0, None),  # without aspects nothing is compared
        ({"scene": 0.4, "object": 0.3}, None, "scene"),
        ({"scene": -2.0, "object": MIN_EFFECT}, None, "object"),
        ({"scene": -2.0, "object": MIN_EFFECT / 2}, None, None),
        ({"scene": 0.4}, 0.3, "scene"),
        ({"scene": 0.4}, 0.5, WHOLE_IMAGE),
        ({"scene": 0.4}, 0.4, "scene"),
        ({"scene": 0.0}, MIN_EFFECT, WHOLE_IMAGE),
        ({"scene": 0.0}, -1.0, None),
    ],
)
def test_the_cue_with_the_largest_effect_decides(
    effects: dict[str, float], image: float | None, cue: str | None
) -> None:
    assert deciding_cue(effects, image) == cue


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "very low"),
        (0, "very low"),
        (0.1, "very low"),
        (0.19, "very low"),
        (0.2, "low"),
        (0.1 + 0.1, "low"),
        (0.3, "low"),
        (0.4, "moderate"),
        (0.5, "moderate"),
        (0.6, "high"),
        (0.6000000000000001, "high"),
        (0.5999999999999999, "high"),
        (0.1 * 6, "high"),
        (0.7999, "high"),
        (0.8, "very high"),
        (0.9, "very high"),
        (1.0, "very high"),
        (1, "very high"),
        (1.0000000000000002, "very high"),
        (-1e-17, "very low"),
    ],
)
def test_levels(value: float, word: str) -> None:
    assert level(value) == word


@given(st.integers(0, 10), st.integers(-3, 3))
def test_binary_fractions_never_decide_an_edge(tenths: int, steps: int) -> None:
    exact = LEVELS[min(tenths // 2, 4)]
    value = tenths / 10
    for _ in range(abs(steps)):
        value = math.nextafter(value, math.inf if steps > 0 else -math.inf)
    assert level(value) == exact
    (single,) = struct.unpack("f", struct.pack("f", tenths / 10))
    assert level(single) == exact


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_value_is_never_a_lower_level(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert LEVELS.index(level(low)) <= LEVELS.index(level(high))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, -math.inf, 10**400])
def test_a_level_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"is out of range; expected a number from 0 to 1\. Correct the annotation"):
        level(value)


def test_a_truth_value_is_not_a_level() -> None:
    with pytest.raises(DataError, match="the level True is not a number"):
        level(True)


@pytest.mark.parametrize(
    ("aspect", "value", "answer"),
    [
        ("scene", "ice_skating_rink/outdoor", "ice skating rink/outdoor"),
        ("object", ["Tree", "Food & drink"], "tree, food & drink"),
        ("object", ("Tree", " ", "Human_face"), "tree, human face"),
        ("object", [], ""),
        ("human_action", "reading (a book) ", "reading (a book)"),
        ("facial_expression", "Happy", "happy"),
        ("brightness", 0.0, "very low"),
        ("colorfulness", 0.6, "high"),
        ("colorfulness", 1, "very high"),
    ],
)
def test_answers(aspect: str, value: object, answer: str) -> None:
    assert answer_text(aspect, value) == answer


@pytest.mark.parametrize(
    ("aspect", "value", "message"),
    [
        ("scen", "park", r"unknown aspect 'scen'\. Did you mean 'scene'\?"),
        ("brightness", "0.3", "brightness is '0.3'; expected a number from 0 to 1"),
        ("brightness", None, "brightness is None; expected a number"),
        ("scene", 0.3, r"scene is 0\.3; expected a text or a list of texts"),
        ("object", ["tree", 3], r"object is \['tree', 3\]; expected a text or a list of texts"),
        ("object", {"tree": 1}, "expected a text or a list of texts"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(aspect: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        answer_text(aspect, value)
