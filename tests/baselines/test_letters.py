"""Lettered options: how they stand in a question, and which answers name one."""

import pytest

from masp.baselines.base import SystemPrediction, named
from masp.baselines.zero_shot import lettered, letters_of, named_by_letter, read_letter
from masp.core.errors import UsageError

OPTIONS = ("joy", "fear", "awe")


def test_options_have_one_line_each() -> None:
    assert lettered(OPTIONS) == "A. joy\nB. fear\nC. awe"


@pytest.mark.parametrize("text", ["B", "b", " B\n", "(B)", "B.", "B) fear", "B. Fear.", "[b]: fear", "B\nbecause"])
def test_a_letter_names_its_option(text: str) -> None:
    assert read_letter(text, OPTIONS) == "fear"


@pytest.mark.parametrize("text", ["", "D", "A happy dog", "Because", "fear", "B. joy", "1", "?"])
def test_anything_else_names_none(text: str) -> None:
    assert read_letter(text, OPTIONS) is None


@pytest.mark.parametrize(
    ("text", "predicted", "exact"),
    [("B", "fear", True), (" B\n", "fear", True), ("b", "fear", False), ("B. fear", "fear", False), ("Q", None, False)],
)
def test_an_exact_answer_is_the_letter_alone(text: str, predicted: str | None, exact: bool) -> None:
    assert named_by_letter(text, OPTIONS) == SystemPrediction(predicted, answer=text, exact=exact)


@pytest.mark.parametrize(
    ("text", "predicted", "exact"),
    [("fear", "fear", True), (" fear ", "fear", True), ("Fear", "fear", False), ("fear.", "fear", False)],
)
def test_an_exact_answer_is_the_label_character_for_character(text: str, predicted: str, exact: bool) -> None:
    assert named(text, OPTIONS) == SystemPrediction(predicted, answer=text, exact=exact)
    assert named(f"{text} or awe", OPTIONS) == SystemPrediction(None, answer=f"{text} or awe", exact=False)


def test_there_are_no_more_options_than_letters() -> None:
    assert letters_of([str(number) for number in range(26)])[-1] == "Z"
    with pytest.raises(UsageError, match="27 options"):
        letters_of([str(number) for number in range(27)])
