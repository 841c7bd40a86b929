"""EmoSet as it is published: lists of rows for the splits, one annotation file and one image per row."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from masp.core.aspects import ASPECTS, answer_text
from masp.core.errors import DataError, shown
from masp.core.labels import LABEL_SETS
from masp.data.readers.common import LabelError, Reading, exists, inside, label_of
from masp.data.records import BadFiles, LazyExtra, Record, read_json

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
    extra = tuple(sorted(name for name in content if name not in _OWN_KEYS))
    return answers, LazyExtra(file, extra) if extra else {}


log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "shifted")  # EmoSet has the first three; emoji scenes a shifted test as well
UNDIVIDED = "all"  # the one list of a data set without splits, as `masp data annotate` writes it
INFO = "info.json"


def is_published(root: Path) -> bool:
    """Whether a folder holds the lists of the published layout."""
    if any((root / f"{name}.json").is_file() for name in SPLITS):
        return True
    return (root / f"{UNDIVIDED}.json").is_file() and (root / INFO).is_file()


def read_emoset(root: Path, account: BadFiles) -> Reading:
    """Records of the published layout.

    A row is [label, id, image, annotation] or [label, image, annotation]; the label is a number in the order of
    info.json, or a name; null where nobody knows it. The annotation may be null, and a data set without the folder
    `annotation` has none. One list `all.json` stands for a data set without splits.

    Raises:
        DataError: no list can be read, or too many rows cannot be used.
    """
    labels = _labels(root / INFO)
    has_notes = (root / "annotation").is_dir()
    missing: list[Path] = []
    splits: dict[str, list[Record]] = {}
    divided = any((root / f"{name}.json").is_file() for name in SPLITS)
    for name in SPLITS if divided else (UNDIVIDED,):
        file = root / f"{name}.json"
        if not file.is_file():
            continue
        rows = read_json(file, largest=None)
        if not isinstance(rows, list):
            raise DataError(f"{file} holds {type(rows).__name__}", "a list of rows", "Copy it again from its source.")
        splits[name] = []
        for index, row in enumerate(rows):
            record = _record(_Row(file, index, row), labels, has_notes, account, missing)
            if record is not None:
                splits[name].append(record)
                account.accept()
    account.finish()
    return Reading("emoset", labels, splits, account, tuple(missing))


class _Row(NamedTuple):
    file: Path
    number: int
    content: object

    @property
    def root(self) -> Path:
        return self.file.parent


def _record(
    row: _Row, labels: tuple[str, ...], has_notes: bool, account: BadFiles, missing: list[Path]
) -> Record | None:
    """The image of a row, or None once the account knows what is wrong with the row."""
    try:
        path, label, note = _parts(row, labels)
    except DataError as error:
        fault = "label" if isinstance(error, LabelError) else "row"
        account.reject(row.file, f"row {row.number}: {error}", fault)
        return None
    if not note or not note.strip() or not has_notes:
        return Record(path, label)
    try:
        file = inside(row.root, note)
        if not exists(file):
            missing.append(file)
            return Record(path, label)
        annotations, extra = read_annotation(file)
    except DataError as error:
        account.reject(row.file, f"row {row.number}: {error}", "annotation")
        return None
    return Record(path, label, annotations, extra=extra)


def _parts(row: _Row, labels: tuple[str, ...]) -> tuple[Path, str | None, str | None]:
    """Image, label and name of the annotation file of a row."""
    cells = row.content
    if not isinstance(cells, list) or len(cells) not in (3, 4):
        shapes = "[label, id, image, annotation] or [label, image, annotation]"
        raise DataError(f"the row is {shown(cells)}", shapes, "Correct the list.")
    label, image, note = cells[0], cells[-2], cells[-1]
    if not isinstance(image, str) or not isinstance(note, str | None):
        raise DataError(f"the row is {shown(cells)}", "paths as text", "Correct the list.")
    return inside(row.root, image), _label(label, labels), note


def _label(value: object, labels: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        name = label_of(value.strip())
        if name in labels:
            return name
        if value.strip().isdecimal():
            value = int(value.strip()[:9])
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
        return labels[value]
    raise LabelError(
        f"the label is {shown(value)}", f"0 to {len(labels) - 1}, or one of {', '.join(labels)}", "Correct the list."
    )


def _labels(file: Path) -> tuple[str, ...]:
    """Labels in the order of info.json; EmoSet's own order where it does not say."""
    known = LABEL_SETS["emoset"]
    if not file.is_file():
        log.warning("%s is missing; labels are numbered as in EmoSet: %s", file, ", ".join(known))
        return known
    content = read_json(file)
    if isinstance(content, dict) and machine_made(content):
        log.warning("the annotations in %s were made by a machine, not by people; see its info.json", file.parent)
    homes = [content.get("emotion"), content] if isinstance(content, dict) else []
    for home in homes:
        labels = _order(home)
        if labels:
            return labels
    log.warning("%s names no labels; they are numbered as in EmoSet: %s", file, ", ".join(known))
    return known


def machine_made(content: Mapping[str, object]) -> bool:
    """Whether an info.json or an annotation says of itself that a machine answered."""
    source = content.get("source")
    return isinstance(source, Mapping) and source.get("machine") is True


def _order(home: object) -> tuple[str, ...]:
    """Labels from a list, or from one of the tables name → number and number → name."""
    if isinstance(home, list):
        return tuple(label_of(name) for name in home) if all(isinstance(name, str) for name in home) else ()
    if not isinstance(home, Mapping):
        return ()
    table = home.get("label2idx")
    if not isinstance(table, Mapping) and isinstance(home.get("idx2label"), Mapping):
        table = {name: number for number, name in home["idx2label"].items() if isinstance(name, str)}
    if not isinstance(table, Mapping):
        return _order(home["labels"]) if isinstance(home.get("labels"), list) else ()
    numbered = {str(number).strip(): str(name) for name, number in table.items()}
    if not numbered or set(numbered) != {str(number) for number in range(len(table))}:
        return ()
    return tuple(label_of(numbered[str(number)]) for number in range(len(table)))
