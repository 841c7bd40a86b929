"""`masp export`: a soft prompt for other engines."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from masp.cli.options import Accept, AdapterRevision, BackboneOfAdapter, Task, accepted

EXAMPLES = """
Example: `masp export --as embedding-rows --adapter runs/plain --out qwen-with-emotions`
"""


class ExportFormat(StrEnum):
    """What a soft prompt can be exported as."""

    embedding_rows = "embedding-rows"


def export(
    form: Annotated[
        ExportFormat,
        typer.Option("--as", help="*embedding-rows*: more tokens in a copy of the backbone's embedding matrix."),
    ],
    adapter: Annotated[str, typer.Option(metavar="DIR|ID", help="A soft prompt that was trained without aspects.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the copy of the backbone.")],
    backbone: BackboneOfAdapter = None,
    adapter_revision: AdapterRevision = None,
    task: Task = None,
    accept: Accept = None,
) -> None:
    """Write a copy of the backbone that holds the soft prompt, so that any engine can serve it (V+S, no reasons).

    The README in the copy holds the exact text to send.
    """
    from masp.backbones.export import export_embedding_rows
    from masp.cli.console import say
    from masp.core.errors import counted

    assert form is ExportFormat.embedding_rows
    made = export_embedding_rows(adapter, out, backbone, adapter_revision, task, accepted(accept))
    grown = made.rows - made.rows_before
    where = f"{grown} rows were added" if grown else "spare rows were enough"
    say(f"{counted(len(made.tokens), 'token')}, {made.tokens[0]} to {made.tokens[-1]}; {where} ({made.rows:,} rows)")
    if made.tied:
        say("the output head is the embedding matrix and has these rows too: suppress the new tokens (see README.md)")
    typer.echo(str(out))
