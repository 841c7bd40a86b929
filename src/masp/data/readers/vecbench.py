"""VECBench (Wu et al. 2025, EmoCaliber): one JSON object a line, of nine tasks with labels of their own.

A row has `task`, `ground_truth`, `candidates`, and `conversations` as Qwen's processor takes them, whose user turn
names the image. So says the benchmark's own inference and evaluation code; nothing else of a row is read.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from masp.core.atomic_io import write_file
from masp.core.errors import DataError
from masp.core.labels import spelled


def write_tables(file: Path, images: Path | None = None) -> dict[str, int]:
    """Write a table of path, label and split for each task, which every command reads as a data set.

    Args:
        file: the JSONL file, such as `test_8k.jsonl`.
        images: the folder of the images, which gets the tables: a table names images below itself. None: the file's.

    Returns:
        Task → number of images.

    Raises:
        DataError: it cannot be read, or a row is not as described.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error})", "VECBench's JSONL file", "Check the path.") from None
    home = (images or file.parent).absolute()
    tasks: dict[str, list[tuple[str, str, str]]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                task, path, label = _row(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                what = "task, ground_truth, candidates and an image in conversations"
                raise DataError(f"{file}, line {number}: {error!r:.100}", what) from None
            if not (home / path).is_relative_to(home):
                raise DataError(
                    f"{file}, line {number}: {path} is not below {home}", "images below one folder", "Name it."
                )
            tasks.setdefault(task, []).append((str((home / path).relative_to(home)), label, "test"))
    for task, rows in tasks.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
        write_file(home / f"{task}.csv", text.getvalue().encode())
    return {task: len(rows) for task, rows in tasks.items()}


def _row(row: dict[str, Any]) -> tuple[str, str, str]:
    """Task, path of the image, and label of a row."""
    contents = [turn["content"] for turn in row["conversations"] if isinstance(turn["content"], list)]
    (image,) = [part["image"] for content in contents for part in content if "image" in part]
    label = spelled(row["ground_truth"], row["candidates"])
    if label is None:
        raise ValueError(f"{row['ground_truth']} is none of the candidates")
    if "/" in row["task"]:
        raise ValueError(f"the task {row['task']}")
    return row["task"], str(image).removeprefix("file://"), label
