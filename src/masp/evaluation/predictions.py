"""Predictions as a file: one JSON object per line and image, ours and those of any other system.

`docs/reference/results.md` describes the format. Nothing here knows of models or loads one.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from masp.core.atomic_io import write_file
from masp.core.errors import DataError, did_you_mean, shown
from masp.core.labels import parse, spelled

PREDICTIONS = "predictions.jsonl"
"""Beside a result: what was said about every image."""

LOWEST = -708.0
"""Log-probability, in nats, that stands for a probability of 0; JSON has no minus infinity."""

_SLACK = 0.02  # probabilities that another system rounded
_EXACT = 1e-6
_LONGEST_LINE = 1_048_576


@dataclass(frozen=True)
class LabelledPrediction:
    """One image, its label and what a system said.

    Attributes:
        image: the file, as seen from the data set's folder.
        truth: its label.
        predicted: the most probable label, or the one that the generated text names; None if it names none.
        log_probabilities: of every label, in nats, normalised over the labels; None where the system gives none.
        answer: the generated text; None where there is none.
        exact: whether that text is the answer asked for, character for character; None where there is none, or it was
            written by a version that did not look.
    """

    image: str
    truth: str
    predicted: str | None
    log_probabilities: Mapping[str, float] | None = None
    answer: str | None = None
    exact: bool | None = None

    @property
    def counted(self) -> str | None:
        """The label that counts in the paper's measure: of generated text, an exact answer only."""
        return None if self.exact is False else self.predicted

    @property
    def probabilities(self) -> Mapping[str, float] | None:
        """Of every label; they sum to 1. None where the system gives none."""
        logs = self.log_probabilities
        return None if logs is None else {label: math.exp(value) for label, value in logs.items()}


@dataclass(frozen=True)
class ExternalLine:
    """One line of a file that may come from anywhere.

    Attributes:
        line: its number.
        image: as the file names it.
        predicted: see `Answered`.
        log_probabilities: see `Answered`.
        answer: see `Answered`; beside a label that was read elsewhere it may be any text.
        truth: the label; None where the line does not name it.
        from_text: whether `predicted` is what the answer names, and nothing else in the line decided it.
    """

    line: int
    image: str
    predicted: str | None
    log_probabilities: Mapping[str, float] | None
    answer: str | None
    truth: str | None
    from_text: bool


def write_predictions(file: Path, answers: Iterable[LabelledPrediction]) -> None:
    """Writes a line for every answer, in their order: the same answers give the same bytes.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    write_file(file, content_of(answers))


def content_of(answers: Iterable[LabelledPrediction]) -> bytes:
    """All that `write_predictions` writes."""
    return "".join(line_of(answer) for answer in answers).encode()


def line_of(answer: LabelledPrediction) -> str:
    """An answer as a line of the file; what nobody looked at is not in it."""
    content = asdict(answer)
    if answer.exact is None:
        del content["exact"]
    return json.dumps(content, allow_nan=False) + "\n"


def read_predictions(file: Path) -> tuple[LabelledPrediction, ...]:
    """What `write_predictions` wrote, value for value.

    Raises:
        DataError: the file cannot be read, or was written by something else (then `read_foreign` may read it).
    """
    answers = []
    for number, content in _lines(file):
        known = content.keys() - {"exact"} == {"image", "truth", "predicted", "log_probabilities", "answer"}
        if not known or not isinstance(content["image"], str) or not isinstance(content["truth"], str):
            expected = "image and truth as text, beside predicted, log_probabilities and answer"
            raise DataError(f"{file}, line {number} holds {', '.join(content)}", expected, "Measure it again.")
        answers.append(LabelledPrediction(**content))
    return tuple(answers)


def read_foreign(file: Path, labels: Sequence[str]) -> tuple[ExternalLine, ...]:
    """The predictions of any system, in the spelling of a label set.

    A line needs `image`, and one of `predicted`, `log_probabilities`, `probabilities` and `answer`. Where `predicted`
    is absent it is the most probable label, or the one that the answer names. A label may be written otherwise ("sad"
    for "sadness"). Probabilities may be rounded: within 2 % of 1 they are normalised.

    Raises:
        DataError: a line that cannot be used, an image that occurs twice, or a label outside the set.
    """
    rows: list[ExternalLine] = []
    seen: dict[str, int] = {}
    for number, content in _lines(file):
        row = _foreign(f"{file}, line {number}", number, content, labels)
        if row.image in seen:
            raise DataError(
                f"{file}, line {number}: {row.image} was in line {seen[row.image]} already", "every image once"
            )
        seen[row.image] = number
        rows.append(row)
    if not rows:
        raise DataError(f"{file} holds no predictions", "a JSON object per line", "See docs/reference/results.md.")
    return tuple(rows)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every line that is not blank."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{file}, line {number} has over {_LONGEST_LINE:,} characters", "one image a line")
                if line.strip():
                    yield number, _object(line, f"{file}, line {number}")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})", "", "Check the path and the rights.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not text in UTF-8", "JSON lines", "See docs/reference/results.md.") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON ({error})", "a JSON object per line", "See docs/reference/results.md."
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{where} is {shown(content)}", "a JSON object", "See docs/reference/results.md.")
    return content


def _foreign(where: str, number: int, content: dict[str, Any], labels: Sequence[str]) -> ExternalLine:
    image, answer = content.get("image"), content.get("answer")
    if not isinstance(image, str) or not image:
        raise DataError(f"{where}: the image is {shown(image)}", "its file, as seen from the data set's folder")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"{where}: the answer is {shown(answer)}", "text, or null")
    logs = _logs(content, where, labels)
    if "predicted" in content:
        predicted = _label(content["predicted"], "predicted", where, labels)
    elif logs is not None:
        predicted = max(logs, key=lambda label: logs[label])
    elif answer is not None:
        predicted = parse(answer, labels)
    else:
        expected = "one of predicted, log_probabilities, probabilities and answer"
        raise DataError(f"{where} says nothing about {image}", expected, "See docs/reference/results.md.")
    from_text = logs is None and answer is not None and predicted == parse(answer, labels)
    truth = _label(content.get("truth"), "truth", where, labels)
    return ExternalLine(number, image, predicted, logs, answer, truth, from_text)


def _label(name: object, key: str, where: str, labels: Sequence[str]) -> str | None:
    if name is None:
        return None
    found = spelled(name, labels) if isinstance(name, str) else None
    if found is None:
        todo = did_you_mean(name, labels) if isinstance(name, str) else ""
        raise DataError(f"{where}: {key} is {shown(name)}", f"one of {', '.join(labels)}, or null", todo)
    return found


def _logs(content: dict[str, Any], where: str, labels: Sequence[str]) -> dict[str, float] | None:
    """The log-probabilities of a line, whichever of the two keys it has, in the order of the labels."""
    given = {key: content[key] for key in ("log_probabilities", "probabilities") if content.get(key) is not None}
    if not given:
        return None
    if len(given) > 1:
        raise DataError(f"{where} has both log_probabilities and probabilities", "one of them")
    key, table = next(iter(given.items()))
    if not isinstance(table, dict):
        raise DataError(f"{where}: {key} is {shown(table)}", "a number for every label")
    found: dict[str, float] = {}
    for name, value in table.items():
        label = _label(name, f"a label of {key}", where, labels)
        if label is None or label in found:
            raise DataError(f"{where}: {key} names {shown(name)} twice", "every label once")
        found[label] = _log(value, f"{where}: {key} of {label}", key == "probabilities")
    missing = [label for label in labels if label not in found]
    if missing:
        raise DataError(f"{where}: {key} lacks {', '.join(missing)}", "a number for every label")
    total = sum(map(math.exp, found.values()))
    if abs(total - 1) > _SLACK:
        raise DataError(f"{where}: the probabilities sum to {total:.3g}", "1", "Normalise them over the labels.")
    shift = math.log(total) if abs(total - 1) > _EXACT else 0.0
    return {label: max(LOWEST, found[label] - shift) for label in labels}


def _log(value: object, what: str, plain: bool) -> float:
    """A number of the file as a logarithm; `plain` if it is none yet."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf if value > 0 else -math.inf
    if plain and 0 <= number <= 1 + _SLACK:
        return math.log(number) if number > 0 else LOWEST
    if not plain and number <= _SLACK:  # minus infinity too
        return max(LOWEST, number)
    expected = "a probability from 0 to 1" if plain else "a logarithm of a probability, 0 or less"
    raise DataError(f"{what} is {shown(value)}", expected)
