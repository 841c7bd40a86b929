"""Messages say what was found, what was expected and what to do, on one line."""

import pickle
from pathlib import Path

import pytest

from masp.core.errors import (
    AdapterError,
    BackboneError,
    CheckpointError,
    ConfigError,
    DataError,
    ImageError,
    MaspError,
    UsageError,
    counted,
    did_you_mean,
    nearest,
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


@pytest.mark.parametrize(
    "kind", [ConfigError, DataError, ImageError, BackboneError, AdapterError, CheckpointError, UsageError]
)
def test_all_errors_are_one_tree(kind: type[MaspError]) -> None:
    assert issubclass(kind, MaspError)
    assert issubclass(ImageError, DataError)


def test_did_you_mean_finds_the_nearest_or_lists_all() -> None:
    assert did_you_mean("Learning_rat", ["learning_rate", "epochs"]) == "Did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["learning_rate", "epochs"]) == "Known: learning_rate, epochs."
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", [f"name{n}" for n in range(23)]).endswith("name19, ….")


def test_nearest_is_none_when_nothing_is_near() -> None:
    assert nearest("scen", ["object", "scene"]) == "scene"
    assert nearest("q", ["object", "scene"]) is None


def test_a_number_goes_with_its_noun():
    assert [counted(count, "image") for count in (0, 1, 2, 1200)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,200 images",
    ]
