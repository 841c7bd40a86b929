"""Abstract and ArtPhoto as they are published: one flat folder of images each."""

from collections import Counter
from pathlib import Path

from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS, spelled
from masp.data.file_listing import is_image_file, listing
from masp.data.readers.common import ImageLookup, LabelError, Reading, member
from masp.data.records import BadFiles, Record
from masp.data.tables import Table, read_table

VOTES = "ABSTRACT_groundTruth.csv"
_TIES = "images with as many votes for a second label"


def is_abstract(root: Path) -> bool:
    """Whether a folder holds Abstract's table of votes."""
    return (root / VOTES).is_file()


def is_artphoto(root: Path) -> bool:
    """Whether a folder holds images only, all of them named after one of ArtPhoto's labels."""
    folders, files = listing(root) if root.is_dir() else ([], [])
    images = [file for file in files if is_image_file(file)]
    named = (spelled(image.stem.partition("_")[0], LABEL_SETS["artphoto"]) for image in images)
    return not folders and bool(images) and all(named)


def read_abstract(root: Path, account: BadFiles) -> Reading:
    """Records with the label that most people chose and the distribution of their votes; ties are left out.

    Raises:
        DataError: the table cannot be read, or too many rows cannot be used.
    """
    labels = LABEL_SETS["abstract"]
    table = read_table(root / VOTES)
    columns = _columns(table, labels)
    lookup = ImageLookup(root)
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    for number, cells in enumerate(table.rows, start=1):
        try:
            votes = _counts(cells, columns)
            image = lookup.find(cells[0].strip("'\""))
        except DataError as error:
            account.reject(table.file, f"row {number}: {error}", "annotation")
            continue
        if image is None:
            account.reject(root / cells[0], f"it is in row {number} of {VOTES}, but not in the folder", "picture")
            continue
        account.accept()
        best = [label for label in labels if votes[label] == max(votes.values())]
        if len(best) > 1:
            skipped[_TIES] += 1
            continue
        total = sum(votes.values())
        records.append(Record(image, best[0], distribution={label: vote / total for label, vote in votes.items()}))
    account.finish()
    return Reading("abstract", labels, {"all": records}, account, skipped=skipped)


def _columns(table: Table, labels: tuple[str, ...]) -> dict[str, int]:
    """Label → its place in a row."""
    names = [spelled(name.strip("'\""), labels) for name in table.columns]
    missing = [label for label in labels if label not in names]
    if missing:
        raise DataError(f"{table.file} has no column for {', '.join(missing)}", "eight labels", "Copy it again.")
    return {label: names.index(label) for label in labels}


def _counts(cells: tuple[str, ...], columns: dict[str, int]) -> dict[str, int]:
    if len(cells) <= max(columns.values()):
        raise DataError(f"there are {len(cells)} cells", f"{max(columns.values()) + 1}", "Correct the table.")
    strange = next((cells[column] for column in columns.values() if not cells[column].isdecimal()), None)
    if strange is not None:
        raise DataError(f"a count of votes is {strange!r:.40}", "a whole number", "Correct the table.")
    votes = {label: int(cells[column][:9]) for label, column in columns.items()}
    if not any(votes.values()):
        raise DataError("nobody voted", "at least one vote", "Correct the table.")
    return votes


def read_artphoto(root: Path, account: BadFiles) -> Reading:
    """Records of `root/<label>_<number>.jpg`.

    Raises:
        DataError: the folder cannot be read, or too many names begin with no label.
    """
    labels = LABEL_SETS["artphoto"]
    records: list[Record] = []
    for image in filter(is_image_file, listing(root)[1]):
        try:
            records.append(Record(image, member(image.stem.partition("_")[0], labels)))
        except LabelError as error:
            account.reject(image, str(error), "label")
            continue
        account.accept()
    account.finish()
    return Reading("artphoto", labels, {"all": records}, account)
