"""Annotation files in EmoSet's format: what they say about the six aspects."""

import sys
from collections.abc import Mapping
from pathlib import Path

from masp.core.aspects import ASPECTS, answer_text
from masp.core.errors import DataError
from masp.data.records import LazyExtra, read_json

_OWN_KEYS = frozenset({*ASPECTS, "image_id", "emotion"})


def read_annotation(file: Path) -> tuple[dict[str, str], Mapping[str, object] | LazyExtra]:
    """Aspect → answer text, and the other keys of the file, which are read only when asked for.

    An aspect whose key is missing, null or blank is absent; a brightness of 0.0 is a value.

    Raises:
        DataError: not a readable JSON object, or a value of the wrong type or range.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {type(content).__name__}", "a JSON object", "Copy it again from its source.")
    answers = annotation_answers(content)
    extra = tuple(sorted(name for name in content if name not in _OWN_KEYS))
    return answers, LazyExtra(file, extra) if extra else {}


def annotation_answers(content: Mapping[str, object]) -> dict[str, str]:
    """The answers of an annotation object that is already in memory.

    Raises:
        DataError: a value of the wrong type or range.
    """
    answers: dict[str, str] = {}
    for aspect in ASPECTS:
        value = content.get(aspect)
        if value is None:
            continue
        answer = answer_text(aspect, value)
        if any("\ud800" <= character <= "\udfff" for character in answer):
            raise DataError(f"{aspect} is {answer!r:.60}", "text without lone surrogates", "Correct the annotation.")
        if answer:
            answers[aspect] = sys.intern(answer)
    return answers
