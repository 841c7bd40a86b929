"""`masp data split`: a division of a data set that is the same on every machine."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from masp.data.records import Dataset

EXAMPLES = """
Examples:

`masp data split photos --out photos-split.json`

`masp data split Emotion6 --kind paper-like --out divided`

`masp data split photos --out s.json data.splits.train=0.7 data.splits.val=0.1 data.splits.test=0.2`
"""


class SplitKind(StrEnum):
    """How images are divided."""

    content = "content"
    paper_like = "paper-like"


def split_data(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DIR [KEY=VALUE…]", help="The data set, and settings such as `data.splits.test=0.3`."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="A split file (.json), a table (.csv), or a folder that gets a split file and a table of each split.",
        ),
    ],
    kind: Annotated[
        SplitKind,
        typer.Option(
            help="*content*: 80 % train, 5 % val and 15 % test, or the shares you set; *paper-like*: the test share "
            "that the paper's figures imply, 30 % for Emotion6 and 20 % for others, and 5 % val."
        ),
    ] = SplitKind.content,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another division.")] = 0,
) -> None:
    """Divide a data set into train, val and test, every label alike, by a hash of the files' content.

    The same files are divided in the same way on every machine, whatever their names and order, and copies land on the
    same side. The data set itself is not changed; train with the division through `data.splits.file=FILE`.
    """
    from masp.cli.check_data import refuse_inside, settings_of
    from masp.cli.console import results, say, waiting
    from masp.core.errors import UsageError
    from masp.data.readers.open_dataset import open_dataset
    from masp.data.splits import write_division

    settings = settings_of([f"data.splits.kind={kind.value}", f"data.splits.seed={seed}", *data])
    if len(settings) != 1:
        raise UsageError(f"{len(settings)} data sets are named", "one", "Divide them one by one.")
    refuse_inside(out, settings[0])
    with waiting("reading and hashing every image"):
        dataset = open_dataset(settings[0])
    _refuse_unlabelled(dataset)
    write_division(out, dataset)
    results().print(_table(dataset))
    for bad in dataset.rejected:
        say(f"left out {bad.path}: {bad.reason}")
    say(f"divided by {dataset.split_by}, seed {settings[0].splits.seed}; it is in {out}")


def _refuse_unlabelled(dataset: "Dataset") -> None:
    """Make sure that there is something to divide alike.

    Raises:
        DataError: no image has a label.
    """
    from masp.core.errors import DataError, counted

    if all(record.label is None for record in dataset.records):
        raise DataError(
            f"none of {counted(len(dataset.records), 'image')} in {dataset.root} has a label",
            "labels, each of which is divided alike",
            "Name a labelled data set; masp train aspects divides images without labels itself.",
        )


def _table(dataset: "Dataset") -> "Table":
    """Images by label and split; those without a label, which are divided too, in a row of their own."""
    from masp.cli.console import counts_table
    from masp.data.validation.check import NO_LABEL

    counts = {name: Counter(record.label or NO_LABEL for record in found) for name, found in dataset.splits.items()}
    bare = any(NO_LABEL in of_split for of_split in counts.values())
    return counts_table((*dataset.labels, NO_LABEL) if bare else dataset.labels, counts)
