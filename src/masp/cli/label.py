"""`masp label`: labels for any number of images, on one machine or on a cluster of Ray."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.console import say
from masp.cli.options import BackboneOrNoAdapter, Device, Dtype, DtypeOption

if TYPE_CHECKING:
    from masp.labelling.labeller import Job

FEW = 100
"""Images of a dry run."""

label_app = typer.Typer(
    help="Label any number of images: plan a manifest, run it on Ray, look at it, merge it.", no_args_is_help=True
)
Folder = Annotated[str, typer.Argument(metavar="DIR", help="What `masp label plan` wrote; a folder, s3:// or gs://.")]


class Explain(StrEnum):
    """What is written beside the labels."""

    none = "none"
    words = "words"


@label_app.command(no_args_is_help=True)
def plan(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Folders, tar files, lists (.txt), tables (.csv, .tsv, .parquet); also s3://, gs://."
        ),
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="A new folder, here or in an object store.")],
    chunk: Annotated[int, typer.Option(min=1, help="Images of a unit of work, and of a file of labels.")] = 1024,
) -> None:
    """List the images into a manifest. Only names and sizes are read."""
    from masp.labelling.manifest import SHARD, write_manifest

    made = write_manifest(sources, out, chunk, max(SHARD // chunk, 1) * chunk)
    say(f"{made.images:,} images in {len(made.shards):,} files, manifest {made.sha256[:12]}")
    typer.echo(out)


@label_app.command(no_args_is_help=True)
def run(
    folder: Folder,
    adapter: Annotated[str | None, typer.Option(metavar="DIR|ID", help="As for `masp predict`.")] = None,
    backbone: BackboneOrNoAdapter = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task of an adapter with several; may be given several times.")
    ] = None,
    explain: Annotated[Explain, typer.Option(help="*words*: also what each aspect saw.")] = Explain.none,
    address: Annotated[
        str | None, typer.Option(metavar="ray://HOST:PORT|auto", help="A Ray cluster. Default: this machine.")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Models at a time. Default: one for each GPU.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Label the first 100 images here, write nothing, and say how long all take."),
    ] = False,
) -> None:
    """Label what is not labelled yet. The same command goes on after an interruption of any kind."""
    from masp.core.runtime import Bar
    from masp.labelling import run as labelling
    from masp.labelling.labeller import Job
    from masp.labelling.manifest import read_manifest

    manifest = read_manifest(folder)
    words = (adapter, backbone, tuple(task or ()), explain.value, batch_size, dtype.value, device)
    job = Job(str(Path(folder).absolute()) if "://" not in folder else folder, manifest.sha256, *words)
    if dry_run:
        _estimate(job, manifest.images)
        return
    before, counts = labelling.status(job.folder), Counter[str]()
    with Bar("labelling", manifest.images, before.done) as bar:

        def tell(found: dict[str, int]) -> None:
            counts.update(found)
            bar.show(before.done + sum(counts.values()))

        done = labelling.run(job, address, actors, tell)
    say(f"{done.done:,} images: {_listed(done.counts)}")
    typer.echo(folder)


def _estimate(job: "Job", images: int) -> None:
    from masp.labelling.run import try_few

    counts, rate = try_few(job, FEW)
    hours = images / rate / 3600
    say(f"{sum(counts.values())} images: {_listed(counts)}; {rate:.1f} images/s")
    say(f"all {images:,} would take {hours:,.1f} hours of one model like this; divide by the number of actors")


@label_app.command(no_args_is_help=True)
def status(
    folder: Folder,
    price: Annotated[float | None, typer.Option(help="Of an hour of all machines, to say what is left to pay.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say how many images have which status, how fast they come, and what is left."""
    import json

    from masp.labelling.run import status as read_status

    counts = read_status(folder)
    left = counts.seconds_left
    if as_json:
        typer.echo(json.dumps({**vars(counts), "done": counts.done, "seconds_left": left}))
        return
    typer.echo(f"{counts.done:,} of {counts.images:,} images ({counts.chunks:,} of {counts.all_chunks:,} chunks)")
    typer.echo(_listed(counts.counts))
    if counts.rate is not None and left is not None:
        typer.echo(f"{counts.rate:,.1f} images/s, {left / 3600:,.1f} hours left at that rate")
        if price is not None:
            typer.echo(f"{left / 3600 * price:,.2f} left to pay at {price:,.2f} an hour")


@label_app.command(no_args_is_help=True)
def merge(
    folder: Folder,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder for one Parquet data set.")],
    partial: Annotated[bool, typer.Option("--partial", help="Also where chunks are missing.")] = False,
) -> None:
    """Write one Parquet data set, in the order of the manifest, out of the labels."""
    from masp.labelling.run import merge as merge_parts

    say(f"{merge_parts(folder, out, partial):,} rows")
    typer.echo(out)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if count) or "none yet"
