"""FI as it is released: an archive of images by emotion, and perhaps the tables of who agreed with the label."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS
from masp.data.file_listing import is_image_file, listing
from masp.data.readers.common import LabelError, Reading, member
from masp.data.records import BadFiles, Record
from masp.data.tables import is_table, read_table

log = logging.getLogger(__name__)

PICTURES = "emotion_dataset"
_CELLS = 4
_OUTVOTED = "images whose label no majority agreed with"


def is_published(root: Path) -> bool:
    """Whether a folder holds the archive's folder of images."""
    return (root / PICTURES).is_dir()


def read_fi(root: Path, account: BadFiles) -> Reading:
    """Records of `root/emotion_dataset/<emotion>/*`, or of `root/<emotion>/*`.

    Tables beside the images have no header and four columns, of which the last two count the people who disagree
    and agree. An image that a table names by its file name is used where more agree than disagree; one that no table
    names is used.

    Raises:
        DataError: the folders or a table cannot be read, or too many images cannot be used.
    """
    labels = LABEL_SETS["fi"]
    votes = _votes(file for folder in {root, root / PICTURES} if folder.is_dir() for file in listing(folder)[1])
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    seen = 0
    for folder in listing(root / PICTURES if is_published(root) else root)[0]:
        for image in filter(is_image_file, listing(folder)[1]):
            try:
                label = member(folder.name, labels)
            except LabelError as error:
                account.reject(image, str(error), "label")
                continue
            account.accept()
            disagree, agree = votes.get((label, image.stem), (0, 1))
            seen += (label, image.stem) in votes
            if agree > disagree:
                records.append(Record(image, label))
            else:
                skipped[_OUTVOTED] += 1
    account.finish()
    if votes and not seen:
        log.warning("the tables in %s name none of its images; all of them are used", root)
    return Reading("fi", labels, {"all": records}, account, skipped=skipped)


def _votes(files: Iterable[Path]) -> dict[tuple[str, str], tuple[int, int]]:
    """(Label, name of the image without suffix) → people who disagree, people who agree."""
    votes: dict[tuple[str, str], tuple[int, int]] = {}
    for file in filter(is_table, files):
        for index, cells in enumerate(read_table(file, header=False).rows):
            if len(cells) != _CELLS or not (cells[2].isdecimal() and cells[3].isdecimal()):
                wanted = "four cells, the last two numbers: who disagrees, who agrees"
                raise DataError(f"row {index} of {file} is {list(cells)!r:.80}", wanted, "Move other tables away.")
            label, image = _sorted(file, cells[0], cells[1])
            votes[label, Path(image.rpartition("/")[2]).stem] = (int(cells[2][:9]), int(cells[3][:9]))
    return votes


def _sorted(file: Path, first: str, second: str) -> tuple[str, str]:
    """Label and image of a row, whichever comes first; without a label, the file's name says it."""
    for label, image in ((first, second), (second, first)):
        try:
            return member(label, LABEL_SETS["fi"]), image
        except LabelError:
            continue
    return member(file.stem.split("_")[0], LABEL_SETS["fi"]), second
