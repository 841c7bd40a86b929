"""Messages say what was found, what was expected and what to do, on one line."""

import pickle
from pathlib import Path

import pytest

from masp.core.errors import (
    DataError,
    ImageError,
    MaspError,
    did_you_mean,
)


def test_a_message_has_three_parts_on_one_line() -> None:
    error = MaspError("the adapter has\nhidden size 64", "3584,\tthe backbone's", "Load  another backbone.")
    assert str(error) == "the adapter has hidden size 64; expected 3584, the backbone's. Load another backbone."


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("it broke",), "it broke"),
        (("it broke", "", "Mend it."), "it broke. Mend it."),
        (("it broke.", "", "Mend it."), "it broke. Mend it."),
        (("it broke", "it whole"), "it broke; expected it whole"),
    ],
)
def test_empty_parts_are_left_out(parts: tuple[str, ...], message: str) -> None:
    assert str(MaspError(*parts)) == message


def test_an_image_error_names_the_picture() -> None:
    error = ImageError(Path("a/b.png"), "damaged", "Copy it again.")
    assert str(error) == "image a/b.png: damaged. Copy it again."
    assert (error.path, error.reason) == (Path("a/b.png"), "damaged")


@pytest.mark.parametrize("error", [DataError("x", "y", "Z."), ImageError("p.png", "r", "T."), MaspError("only")])
def test_errors_survive_a_trip_to_another_process(error: MaspError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.todo) == (type(error), str(error), error.todo)


def test_that_a_failure_may_pass_is_not_lost_on_the_way() -> None:
    assert [pickle.loads(pickle.dumps(ImageError("p", "r", passing=at))).passing for at in (True, False)] == [
        True,
        False,
    ]


def test_did_you_mean_finds_the_nearest_or_lists_all() -> None:
    assert did_you_mean("Learning_rat", ["learning_rate", "epochs"]) == "Did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["learning_rate", "epochs"]) == "Known: learning_rate, epochs."
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", [f"name{n}" for n in range(23)]).endswith("name19, ….")
