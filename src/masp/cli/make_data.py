"""`masp data`: data sets made on the spot, checked, divided, annotated and fetched."""

from pathlib import Path
from typing import Annotated

import typer

from masp.cli import annotate_data, check_data, import_data, split_data

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@data_app.callback()
def data() -> None:
    """Make, check, divide, annotate and import data sets."""


data_app.command("check", no_args_is_help=True, epilog=check_data.EXAMPLES)(check_data.check_data)
data_app.command("annotate", no_args_is_help=True, epilog=annotate_data.EXAMPLES)(annotate_data.annotate_data)
data_app.command("split", no_args_is_help=True, epilog=split_data.EXAMPLES)(split_data.split_data)
data_app.command(
    "import", no_args_is_help=True, epilog="Example: `masp data import owner/name --out photos --limit 1000`"
)(import_data.import_data)
data_app.command("vecbench", no_args_is_help=True, epilog="Example: `masp data vecbench test_8k.jsonl --out vecbench`")(
    import_data.vecbench
)
data_app.command("lmms-eval", no_args_is_help=True, epilog="Example: `masp data lmms-eval EmoSet --out task`")(
    import_data.lmms_eval
)


@data_app.command(no_args_is_help=True, epilog="Example: `masp data make scenes --images 500 --seed 7`")
def make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it; a folder that is new or empty.")],
    images: Annotated[int, typer.Option(min=1, help="How many pictures, all splits together.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same pictures, byte for byte.")] = 0,
) -> None:
    """Write emoji scenes in EmoSet's published layout: pictures, labels, annotations, and what caused each label."""
    from masp.cli.console import counting, say
    from masp.core.errors import counted
    from masp.core.progress import Bar
    from masp.data.emoji.dataset import write_dataset

    with Bar("pictures", images) as bar:
        write_dataset(folder, images=images, seed=seed, progress=counting(bar))
    say(f"{counted(images, 'picture')} in {folder}")
