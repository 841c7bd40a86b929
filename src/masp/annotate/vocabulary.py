"""Lists of words that answers may be restricted to: a file, an annotated data set, or the short published ones."""

from collections.abc import Mapping
from pathlib import Path

from masp.core.aspects import ASPECTS, LEVELS, MEASURED, answer_text
from masp.core.errors import DataError, did_you_mean, shown
from masp.data.bad_files import BadFiles
from masp.data.readers.open_dataset import read_dataset, settings_for
from masp.data.records import read_json

PUBLISHED = "published"
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise")
"""EmoSet's words for facial expressions; its lists of scenes, objects and actions are long and not in this package."""

_SHAPE = "{aspect: [word, …]}, or EmoSet's info.json"

Options = Mapping[str, tuple[str, ...]]


def read_vocabulary(given: str) -> Options:
    """Aspect → what may be answered. Brightness and colorfulness always have their five levels.

    Args:
        given: "published", a JSON file {aspect: [word, …]}, EmoSet's own info.json, or the folder of a data set with
            annotations, whose words are taken.

    Raises:
        DataError: the file or the data set cannot be read, or holds no words.
    """
    levels = dict.fromkeys(MEASURED, LEVELS)
    if given == PUBLISHED and not Path(given).exists():
        return {"facial_expression": EXPRESSIONS, **levels}
    words = _of_dataset(Path(given)) if Path(given).is_dir() else _of_file(Path(given))
    if not words:
        raise DataError(f"the vocabulary {given} holds no words for an aspect", _SHAPE, "Correct it.")
    return words | levels


def _of_file(file: Path) -> dict[str, tuple[str, ...]]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"the vocabulary {file} holds {type(content).__name__}", _SHAPE, "Correct the file.")
    tables = any(isinstance(value, Mapping) and "label2idx" in value for value in content.values())
    found: dict[str, tuple[str, ...]] = {}
    for aspect, value in content.items():
        if aspect not in ASPECTS:
            if tables:  # EmoSet's file holds other things as well
                continue
            raise DataError(f"the vocabulary {file} has the unknown key '{aspect}'", "", did_you_mean(aspect, ASPECTS))
        if aspect in MEASURED:
            continue
        listed = list(value["label2idx"]) if isinstance(value, Mapping) and "label2idx" in value else value
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            raise DataError(f"the vocabulary {file}, key '{aspect}' holds {shown(value)}", _SHAPE, "Correct the file.")
        words = tuple(dict.fromkeys(filter(None, (answer_text(aspect, word) for word in listed))))
        if not words:
            raise DataError(f"the vocabulary {file} has no words for {aspect}", _SHAPE, "Add some, or leave it out.")
        found[aspect] = words
    return found


def _of_dataset(folder: Path) -> dict[str, tuple[str, ...]]:
    """The words that occur in a data set's annotations, sorted."""
    reading = read_dataset(settings_for(folder), BadFiles())
    found: dict[str, set[str]] = {}
    for records in reading.splits.values():
        for record in records:
            for aspect, answer in record.annotations.items():
                if aspect not in MEASURED:
                    found.setdefault(aspect, set()).update(answer.split(", ") if aspect == "object" else [answer])
    return {aspect: tuple(sorted(found[aspect])) for aspect in ASPECTS if aspect in found}
