"""Options with letters: how they stand in a question, and how a letter is read back from an answer."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from masp.baselines.base import SystemPrediction
from masp.core.errors import UsageError
from masp.core.labels import normalise_answer

_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:,\n]|$)\s*(.*)", re.DOTALL)


def letters_of(options: Sequence[str]) -> tuple[str, ...]:
    """A capital letter for each option, in order.

    Raises:
        UsageError: more options than letters.
    """
    if len(options) > len(ascii_uppercase):
        todo = "Ask with the list of labels instead: the system zero-shot."
        raise UsageError(f"there are {len(options)} options", f"at most {len(ascii_uppercase)}, one a letter", todo)
    return tuple(ascii_uppercase[: len(options)])


def lettered(options: Sequence[str]) -> str:
    """One line for each option: "A. amusement"."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters_of(options), options, strict=True))


def named_by_letter(text: str, options: Sequence[str]) -> SystemPrediction:
    """What a generated text says where options have letters; exact is the letter alone."""
    option = read_letter(text, options)
    letters = dict(zip(options, letters_of(options), strict=True))
    return SystemPrediction(option, answer=text, exact=option is not None and text.strip() == letters[option])


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer names by its letter ("B", "(b)", "B. awe"), or None.

    A letter that goes on as a word is none: "A happy dog" names no option. Where the letter is followed by the text of
    another option, the answer contradicts itself and names none either.
    """
    found = _LETTER.match(text.strip())
    if found is None:
        return None
    option = dict(zip(letters_of(options), options, strict=True)).get(found[1].upper())
    others = {normalise_answer(other) for other in options if other != option}
    return None if normalise_answer(found[2]) in others else option
