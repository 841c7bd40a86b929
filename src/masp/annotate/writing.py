"""Annotations in EmoSet's published layout, each of them marked as made by a machine."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from masp.annotate.folder import unwritable
from masp.annotate.pictures import ImageCollection, PendingImage, splits_of
from masp.core.atomic_io import write_file, write_folder

ANNOTATION, IMAGE = "annotation", "image"


def write_emoset(
    out: Path,
    pictures: ImageCollection,
    annotated: Sequence[tuple[PendingImage, Mapping[str, Any]]],
    source: Mapping[str, Any],
    copy: bool,
) -> None:
    """Write annotation/, image/, one list for each split, and info.json last; what was there is replaced.

    Args:
        out: where.
        pictures: all images, readable or not.
        annotated: the readable ones, in order, with what stands in the annotation file of each.
        source: what made the annotations, for info.json.
        copy: whether image/ holds copies; otherwise it holds links to the images where they lie.

    Raises:
        DataError: the disk refuses.
    """

    def notes(folder: Path) -> None:
        for item, content in annotated:
            _new(folder / item.home / f"{item.name}.json").write_text(_text(content), encoding="utf-8")

    def images(folder: Path) -> None:
        for item, _ in annotated:
            place = _new(folder / item.home / _file_name(item))
            if copy:
                shutil.copyfile(item.path, place)
            else:
                place.symlink_to(item.path.resolve())

    numbers = {label: number for number, label in enumerate(pictures.labels)}
    rows: dict[str, list[list[object]]] = {split: [] for split in splits_of(pictures.items)}
    for item, _ in annotated:
        label = None if item.label is None else numbers[item.label]
        places = f"{IMAGE}/{item.home}/{_file_name(item)}", f"{ANNOTATION}/{item.home}/{item.name}.json"
        rows[item.split].append([label, item.name, *places])
    try:
        write_folder(out / ANNOTATION, notes)
        write_folder(out / IMAGE, images)
        for split, listed in rows.items():
            write_file(out / f"{split}.json", _lines(listed))
        write_file(out / "info.json", _text(_info(pictures, source)).encode())
        os.sync()  # the many small files are not flushed one by one
    except OSError as error:
        raise unwritable(out, error) from error


def _info(pictures: ImageCollection, source: Mapping[str, Any]) -> dict[str, Any]:
    """info.json as EmoSet has it, and what made this folder."""
    order = dict(enumerate(pictures.labels))
    tables = {
        "label2idx": {label: number for number, label in order.items()},
        "idx2label": {str(number): label for number, label in order.items()},
    }
    return {"emotion": tables, "labelled": pictures.labelled, "source": dict(source)}


def _file_name(item: PendingImage) -> str:
    """The image's name beside its annotation; a suffix that is no plain word is left out."""
    suffix = item.path.suffix.lower()
    return item.name + (suffix if suffix[1:].isascii() and suffix[1:].isalnum() else "")


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _lines(rows: Iterable[object]) -> bytes:
    """A list with one row on each line."""
    return ("[" + ",\n".join(json.dumps(row) for row in rows) + "]\n").encode()


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
