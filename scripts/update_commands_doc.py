"""Write docs/reference/commands.md from the command's own help (`make docs`)."""

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from generated import ROOT, table, update
from masp.cli.app import app

DOCUMENT = ROOT / "docs" / "reference" / "commands.md"
SCRIPT = "scripts/update_commands_doc.py"


def content() -> str:
    """Every command with its arguments, options and examples."""
    root = get_command(app)
    return "\n\n".join(_sections(root, root.context_class(root, info_name="masp")))


def _sections(command: Any, context: Any) -> Iterator[str]:
    """A command and those below it; any, because typer may bring a click of its own."""
    children = getattr(command, "commands", {})
    level = "##" if context.parent is None or context.parent.parent is None else "###"
    parts = [f"{level} `{context.command_path}`", _text(command.help or "")]
    rows = [_row(parameter, context) for parameter in command.get_params(context) if not _hidden(parameter)]
    if rows:
        parts.append(table(("argument or option", "meaning"), rows))
    if command.epilog and not children:
        parts.append(_examples(command.epilog))
    yield "\n\n".join(filter(None, parts))
    for name, child in children.items():
        yield from _sections(child, child.context_class(child, info_name=name, parent=context))


def _hidden(parameter: Any) -> bool:
    return getattr(parameter, "hidden", False) or parameter.name == "help"


def _row(parameter: Any, context: Any) -> tuple[str, str]:
    shown, meaning = parameter.get_help_record(context)
    shown = re.sub(r" <(str|list\[\w+\])>$", "", shown).replace("<int range>", "N").replace("<float range>", "X")
    return f"`{shown}`", " ".join(_text(meaning).split())


def _text(help_text: str) -> str:
    """Help as Markdown: a form feed ends what is shown, and a backspace only keeps lines apart."""
    return help_text.partition("\f")[0].replace("\b", "").strip()


def _examples(epilog: str) -> str:
    """The examples of a command as a block of shell lines, and what else stands below its help as text."""
    lines = [line.strip() for line in epilog.splitlines()]
    shell = [line.strip("`") for line in lines if line.startswith("`")]
    text = [line for line in lines if line and not line.startswith(("`", "Example"))]
    return "\n\n".join(["```\n" + "\n".join(shell) + "\n```", *text])


if __name__ == "__main__":
    changed = update(DOCUMENT, "commands", SCRIPT, content())
    print("docs/reference/commands.md", "written" if changed else "was current")
