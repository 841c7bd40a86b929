"""`masp data split`: a division of a data set that is the same on every machine."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

`masp data split photos --out photos-split.json`

`masp data split Emotion6 --kind paper-like --out divided`

`masp data split photos --out s.json data.splits.train=0.7 data.splits.val=0.1 data.splits.test=0.2`
"""


class Kind(StrEnum):
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
        typer.Option(metavar="FILE|DIR", help="A split file (.json), a table (.csv), or a folder that gets both."),
    ],
    kind: Annotated[
        Kind,
        typer.Option(
            help="*content*: 80, 5 and 15 %, or the shares you set; *paper-like*: the test share that the paper's "
            "figures imply, 30 % for Emotion6 and 20 % for others."
        ),
    ] = Kind.content,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another division.")] = 0,
) -> None:
    """Divide a data set into train, val and test, every label alike, by a hash of the files' content.

    The same files are divided in the same way on every machine, whatever their names and order, and copies land on the
    same side. The data set itself is not changed; train with the division through `data.splits.file=FILE`.
    """
    from masp.cli.check_data import refuse_inside, settings_of
    from masp.cli.show import counts_table, results, say, waiting
    from masp.data.readers import open_dataset
    from masp.data.splits import write_division
    from masp.errors import UsageError

    settings = settings_of([f"data.splits.kind={kind.value}", f"data.splits.seed={seed}", *data])
    if len(settings) != 1:
        raise UsageError(f"{len(settings)} data sets are named", "one", "Divide them one by one.")
    refuse_inside(out, settings[0])
    with waiting("reading and hashing every image"):
        dataset = open_dataset(settings[0])
    write_division(out, dataset)
    counts = {name: Counter(str(record.label) for record in records) for name, records in dataset.splits.items()}
    results().print(counts_table(dataset.labels, counts))
    for bad in dataset.rejected:
        say(f"left out {bad.path}: {bad.reason}")
    say(f"divided by {dataset.split_by}, seed {settings[0].splits.seed}; it is in {out}")
