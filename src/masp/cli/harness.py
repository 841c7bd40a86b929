"""`masp data import`, `vecbench` and `lmms-eval`: data sets from elsewhere, and one for another harness."""

from pathlib import Path
from typing import Annotated

import typer

from masp.cli.console import say
from masp.core.runtime import Bar


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
    from masp.data.hub import HubSource, import_dataset

    with Bar("images", None) as bar:
        counts = import_dataset(HubSource(name, image, label, revision, limit), out, bar.advance)
    say(f"{', '.join(f'{split} {count:,}' for split, count in counts.items())} in {out}")


def vecbench(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="VECBench's file, such as test_8k.jsonl.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The images' folder, which gets the tables. Default: FILE's.")
    ] = None,
) -> None:
    """Write a table for each of VECBench's tasks: `masp evaluate --data EmoSet-8.csv` reads it."""
    from masp.data.readers.vecbench import write_tables

    counts = write_tables(file, images)
    say(", ".join(f"{task} {count:,}" for task, count in counts.items()))
    typer.echo(str(images or file.parent))


def lmms_eval(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder or table of the data set.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the data, as for `masp evaluate`.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split becomes the task.")] = "test",
    name: Annotated[str | None, typer.Option(help="Of the task. Default: masp_ and the data set's name.")] = None,
) -> None:
    """Write a task for lmms-eval with our question: the same images and labels as `masp evaluate` measures."""
    from masp.cli.evaluate import data_settings, with_split
    from masp.data.readers.open_dataset import open_dataset
    from masp.serving.lmms_eval import write_task_pack

    settings = data_settings(changes or [], data)
    dataset = with_split(open_dataset(settings), settings, split)
    task = name or f"masp_{dataset.name.lower().replace(' ', '_')}"
    say(f"{write_task_pack(dataset, split, out, task):,} images")
    typer.echo(f"lmms-eval --include_path {out} --tasks {task} --model masp --model_args adapter=DIR")
