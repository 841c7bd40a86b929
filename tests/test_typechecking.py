"""The test run does check shapes and types of the package; otherwise the promise in every signature would be idle."""

from typing import Self

import pytest
import torch
from jaxtyping import TypeCheckError

from fixtures.typechecking import checked
from masp.core.errors import did_you_mean
from masp.core.types import VisualTokens


def test_a_wrong_shape_is_caught() -> None:
    tokens, mask = torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    assert len(VisualTokens(tokens, mask)) == 2
    with pytest.raises(TypeCheckError):
        VisualTokens(tokens, mask[:, :2])
    with pytest.raises(TypeCheckError):
        VisualTokens(tokens, mask.int())


def test_a_wrong_type_is_caught() -> None:
    with pytest.raises(TypeCheckError):
        did_you_mean(3, ["a"])  # pyright: ignore[reportArgumentType]


class Box:
    """Methods as they are written in the package."""

    @checked
    def same(self, times: int) -> Self:
        return self

    @checked
    def later(self, other: "Unknown", times: int) -> "Box | Unknown":  # pyright: ignore[reportUndefinedVariable]
        return other


def test_what_is_not_known_yet_is_let_through_and_the_rest_is_not() -> None:
    box = Box()
    assert box.same(2) is box
    assert box.later(box, 2) is box
    for method in (box.same, lambda times: box.later(box, times)):
        with pytest.raises(Exception, match="violates type hint"):
            method("twice")
