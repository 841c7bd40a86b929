"""The backbone alone, asked for the emotion: with the list of labels, or with lettered options."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from masp.backbones.base import Backbone
from masp.baselines.base import Reading, SystemPrediction, emotion_question, named, plain, question_by_letter
from masp.baselines.prompted import Prompted
from masp.core.config import MethodConfig
from masp.core.errors import UsageError
from masp.core.labels import normalise_answer, validate_labels
from masp.core.prompts import Questions
from masp.model.masp_model import MaspModel

_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:,\n]|$)\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class ZeroShotSettings:
    """How a backbone is asked.

    Attributes:
        reading: the most probable label, or the greedy answer, which must name one.
        options: the labels as a list in the question of MASP, or as lettered options.
    """

    reading: Reading = "score"
    options: Literal["list", "letters"] = "list"


def zero_shot_system(
    backbone: Backbone,
    labels: tuple[str, ...],
    settings: ZeroShotSettings | None = None,
    questions: Questions | None = None,
) -> Prompted:
    """A frozen backbone without anything trained.

    Args:
        backbone: is asked.
        labels: what it chooses from.
        settings: how.
        questions: texts; None: the package's own.

    Raises:
        UsageError: more labels than letters.
        DataError: labels that cannot be told apart.
    """
    settings, labels = settings or ZeroShotSettings(), validate_labels(labels)
    name, question, words, read = "zero-shot", emotion_question(labels, questions), labels, named
    if settings.options == "letters":
        name, words, read = "zero-shot-letters", letters_of(labels), named_by_letter
        question = question_by_letter(questions).replace("{}", lettered(labels))

    def facts() -> dict[str, Any]:
        return {"system": name, "trained": 0, "settings": plain(settings), "question": question}

    model = MaspModel(backbone, MethodConfig())
    return Prompted(model, labels, question, facts, reading=settings.reading, words=words, read=read)


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
