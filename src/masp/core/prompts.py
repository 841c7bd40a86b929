"""The questions that are put to the backbone: several per aspect and for the emotion, the first one at evaluation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from masp.core.aspects import ASPECTS
from masp.core.atomic_io import fingerprint
from masp.core.errors import DataError, did_you_mean, shown

EMOTION = "emotion"
PLACE = "{}"
"""Where the list of labels stands in an emotion question."""

_SHAPE = 'a JSON object {aspect or "emotion": [text, …]} with {} for the labels in each emotion text'


@dataclass(frozen=True)
class Questions:
    """Texts for the six aspects and for the emotion.

    Attributes:
        aspects: at least one text per aspect.
        emotion: at least one text, each with one `{}` where the labels go.
    """

    aspects: Mapping[str, tuple[str, ...]]
    emotion: tuple[str, ...]

    def aspect(self, name: str) -> tuple[str, ...]:
        """The texts for one aspect; the first one is used at evaluation.

        Raises:
            DataError: unknown aspect.
        """
        if name not in self.aspects:
            raise DataError(f"no questions for the aspect '{name}'", "", did_you_mean(name, self.aspects))
        return self.aspects[name]

    def ask_emotion(self, rendered_labels: str, index: int = 0) -> str:
        """An emotion question with the labels in place (braces inside a label are only text)."""
        before, _, after = self.emotion[index].partition(PLACE)
        return before + rendered_labels + after

    def fingerprint(self) -> str:
        """SHA-256 of all the texts in order, as hexadecimal digits."""
        content = {**{name: list(self.aspects[name]) for name in ASPECTS}, EMOTION: list(self.emotion)}
        return fingerprint(content)


def load_questions(file: str | Path | None = None) -> Questions:
    """Questions from a file of the user's, or the package's own when there is none.

    Raises:
        DataError: the file cannot be read, is not JSON, or lacks, misspells or misshapes a question.
    """
    if file is None:
        return _questions(
            _parsed(resources.files("masp.core").joinpath("prompts.json").read_bytes(), "prompts.json"), ""
        )
    try:
        raw = Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"the questions file {file} cannot be read ({error})", "", "Check questions.") from None
    return _questions(_parsed(raw, str(file)), str(file))


def _parsed(raw: bytes, name: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the questions file {name} is not JSON ({error})", _SHAPE, "Correct the file.") from None


def _questions(content: object, file: str) -> Questions:
    name = f"the questions file {file}" if file else "the packaged questions file"
    if not isinstance(content, dict):
        raise DataError(f"{name} holds {type(content).__name__}", _SHAPE, "Correct the file.")
    known = (*ASPECTS, EMOTION)
    for key in content:
        if key not in known:
            raise DataError(f"{name} has the unknown key '{key}'", "", did_you_mean(key, known))
    missing = [key for key in known if key not in content]
    if missing:
        raise DataError(f"{name} has no questions for {', '.join(missing)}", _SHAPE, "Add them.")
    texts = {key: _texts(content[key], f"{name}, key '{key}'") for key in known}
    for key, group in texts.items():
        _check_places(group, f"{name}, key '{key}'", int(key == EMOTION))
    return Questions({key: texts[key] for key in ASPECTS}, texts[EMOTION])


def _texts(value: object, where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise DataError(f"{where} holds {shown(value)}", "a list of texts that are not blank", "Correct the file.")
    return tuple(items)


def _check_places(texts: tuple[str, ...], where: str, wanted: int) -> None:
    for text in texts:
        if text.count(PLACE) != wanted:
            count = "one {} for the labels" if wanted else "no {}"
            raise DataError(
                f"{where}: the text {text!r:.80} has {text.count(PLACE)} places", count, "Correct the file."
            )
