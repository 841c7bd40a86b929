"""A data set layout: a folder of images with `metadata.jsonl`, as the datasets library's ImageFolder writes it."""

import json
from pathlib import Path

from masp.core.config import DataConfig
from masp.core.errors import DataError
from masp.data.readers.common import Reading
from masp.data.readers.open_dataset import DatasetLayout
from masp.data.records import BadFiles, Record

METADATA = "metadata.jsonl"


def fits(root: Path, settings: DataConfig) -> bool:
    """Whether a path looks like this layout."""
    return (root / METADATA).is_file()


def read(root: Path, settings: DataConfig, account: BadFiles) -> Reading:
    """One record for each line; every line is either accepted or rejected with a reason, and both are counted.

    Raises:
        DataError: too many lines cannot be used.
    """
    records: list[Record] = []
    for number, line in enumerate((root / METADATA).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(record(root, line))
        except DataError as error:
            account.reject(root / METADATA, f"line {number}: {error}", "annotation")
            continue
        account.accept()
    account.finish()
    labels = tuple(sorted({one.label for one in records if one.label is not None}))
    return Reading("metadata", labels, {"all": records}, account)


def record(root: Path, line: str) -> Record:
    """The image of one line with its label and, for stage 1, the annotated scene."""
    try:
        cells = json.loads(line)
        path, label = root / cells["file_name"], cells["emotion"]
    except (ValueError, KeyError, TypeError):
        raise DataError("no file_name or no emotion", '{"file_name": …, "emotion": …}', "Correct the line.") from None
    if not path.is_file():
        raise DataError(f"{path.name} is not there", "an image", "Copy it, or remove the line.")
    return Record(path, label, {"scene": cells["scene"]} if "scene" in cells else {})


ENTRY = DatasetLayout("metadata", fits, read)
"""The line in `LAYOUTS` of masp.data.readers.open_dataset; the first layout that fits is taken."""
