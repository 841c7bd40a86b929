"""`masp push`: an adapter to a hub."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Example: `masp push runs/first someone/emotion6-qwen2-vl-7b --license cc-by-4.0 --private`
"""


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter, or the folder of its run.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that is made now is private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to push to, made if there is none. Default: main.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Licence of the adapter, such as apache-2.0. Default: what the adapter says."),
    ] = None,
) -> None:
    """Push an adapter's three files (weights, description, model card) to a hub, as one commit.

    The backbone is never pushed. Log in first with `hf auth login`.
    """
    from masp.adapters import publish
    from masp.cli.console import say

    address = publish(folder, repo_id, private=private, revision=revision, license=license)
    say("pushed; anyone who may read it can now use --adapter " + repo_id)
    typer.echo(address)
