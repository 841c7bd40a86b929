"""`masp export`: an adapter for other engines."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from masp.cli.options import Accept, AdapterRevision, BackboneOfAdapter, Task, accepted, refuse

EXAMPLES = """
Examples:

`masp export --as vllm --adapter runs/first --out for-vllm`

`masp export --as embedding-rows --adapter runs/plain --out qwen-with-emotions`
"""


class Form(StrEnum):
    """What a soft prompt can be exported as."""

    embedding_rows = "embedding-rows"
    vllm = "vllm"
    vllm_model = "vllm-model"


def export(
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="*embedding-rows*: more tokens in a copy of the backbone's embedding matrix, without aspects. *vllm*: "
            "adapter, chat template and note for an unmodified vLLM and masp's client. *vllm-model*: a copy of the "
            "backbone for vLLM with masp installed beside it, which computes the aspects in the engine.",
        ),
    ],
    adapter: Annotated[str, typer.Option(metavar="DIR|ID", help="What was trained; all tasks of it for vLLM.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    backbone: BackboneOfAdapter = None,
    adapter_revision: AdapterRevision = None,
    task: Task = None,
    accept: Accept = None,
) -> None:
    """Write what another engine needs to serve an adapter: with aspects in vLLM, without them (V+S) in any engine.

    The README in the new folder says what to start and what to send.
    """
    from masp.backbones.export import export_embedding_rows
    from masp.cli.console import say
    from masp.core.errors import counted

    if form is not Form.embedding_rows:
        from masp.serving.vllm_export import export_vllm

        refuse({"--task": task}, f"with --as {form.value}", "no task, as all are exported")
        in_engine = form is Form.vllm_model
        typer.echo(str(export_vllm(adapter, out, backbone, adapter_revision, accepted(accept), in_engine)))
        return
    made = export_embedding_rows(adapter, out, backbone, adapter_revision, task, accepted(accept))
    grown = made.rows - made.rows_before
    where = f"{grown} rows were added" if grown else "spare rows were enough"
    say(f"{counted(len(made.tokens), 'token')}, {made.tokens[0]} to {made.tokens[-1]}; {where} ({made.rows:,} rows)")
    if made.tied:
        say("the output head is the embedding matrix and has these rows too: suppress the new tokens (see README.md)")
    typer.echo(str(out))
