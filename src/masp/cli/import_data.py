"""`masp data import`: a data set of the Hugging Face hub as folders."""

from pathlib import Path
from typing import Annotated

import typer


def import_data(
    name: Annotated[str, typer.Argument(metavar="ID", help="Its name on the hub, such as `owner/name`.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write it; a folder that is new or empty.")],
    image: Annotated[str | None, typer.Option(metavar="COLUMN", help="Default: the only column of images.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Default: the only column of labels.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch. Default: the newest.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images per split at most. Default: all.")] = None,
) -> None:
    """Copy a data set of the Hugging Face hub into folders of splits and labels. It needs the extra *hub*.

    The images are copied byte for byte; no code of the data set is run.
    """
    from masp.cli.console import counting, say
    from masp.core.progress import Bar
    from masp.data.hub import HubSource, import_dataset

    with Bar("images", None) as bar:
        counts = import_dataset(HubSource(name, image, label, revision, limit), out, counting(bar))
    say(f"{', '.join(f'{split} {count:,}' for split, count in counts.items())} in {out}")
