"""The examples of the documents: found, run, and for the first hour put into a notebook (`make examples`).

An example is a block of Python or of shell lines behind the mark `<!-- example -->`; the tests run it. One that takes
longer than a few seconds is marked `<!-- example: slow -->` and runs in the slow tier. The examples of a page share
names and a folder, in their order. What a Python example prints may follow, in a block behind `<!-- output -->`.
"""

import contextlib
import io
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from generated import ROOT

DOCS = ROOT / "docs"
TUTORIAL, NOTEBOOK = DOCS / "first-hour.md", DOCS / "first_hour.ipynb"
EXAMPLE = re.compile(
    r"<!-- example(?P<slow>: slow)? -->\n```(?P<kind>python|sh)\n(?P<code>.*?)```\n"
    r"(?:\n<!-- output -->\n```\n(?P<output>.*?)```\n)?",
    re.DOTALL,
)
Shell = Callable[[list[str]], int]


@dataclass(frozen=True)
class Example:
    """One block: `python` or `sh`, what it prints where the page says so, and where it stands in the page's text."""

    kind: str
    code: str
    slow: bool
    output: str | None
    span: tuple[int, int]


def examples(text: str) -> list[Example]:
    """The examples of a page, in their order."""
    return [
        Example(found["kind"], found["code"], found["slow"] is not None, found["output"], found.span())
        for found in EXAMPLE.finditer(text)
    ]


def pages() -> dict[str, list[Example]]:
    """Every page with examples, by its path below docs/."""
    found = {str(path.relative_to(DOCS)): examples(path.read_text(encoding="utf-8")) for path in DOCS.rglob("*.md")}
    return {name: blocks for name, blocks in sorted(found.items()) if blocks}


def run(blocks: Sequence[Example], shell: Shell) -> Iterator[str]:
    """Runs the examples of one page in the current folder; what each prints.

    Raises:
        RuntimeError: a shell line is not the command `masp`, or ends with another exit code than 0.
    """
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.kind == "python":
                exec(compile(block.code, "example", "exec"), names)
            else:
                for line in lines(block.code):
                    _one(shlex.split(line), shell)
        yield printed.getvalue()


def lines(code: str) -> list[str]:
    """The commands of a block of shell lines, without comments; a backslash at its end joins a line with the next."""
    joined = re.sub(r"\s*\\\n\s*", " ", code).splitlines()
    return [line.partition("  #")[0].strip() for line in joined if line.strip() and not line.startswith("#")]


def _one(words: list[str], shell: Shell) -> None:
    if words[0] != "masp":
        raise RuntimeError(f"an example calls {words[0]}; only masp can be run")
    code = shell(words[1:])
    if code:
        raise RuntimeError(f"{shlex.join(words)} ended with {code}")


def in_process(words: list[str]) -> int:
    """Runs the command in this process; its exit code."""
    from masp.cli import main

    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def notebook(text: str) -> str:
    """A page as a notebook without outputs: text cells, and a code cell for each example."""
    cells: list[dict[str, object]] = []
    start = 0
    for block in examples(text):
        cells.append(_cell("markdown", text[start : block.span[0]], len(cells)))
        code = block.code if block.kind == "python" else "\n".join(f"!{line}" for line in lines(block.code))
        cells.append(_cell("code", code, len(cells)))
        start = block.span[1]
    cells.append(_cell("markdown", text[start:], len(cells)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(kind: str, source: str, number: int) -> dict[str, object]:
    cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.strip().splitlines(keepends=True)}


def with_outputs(text: str) -> str:
    """The page with what its examples print now."""
    blocks = examples(text)
    printed = list(run(blocks, in_process))
    for block, shown in reversed(list(zip(blocks, printed, strict=True))):
        if block.output is not None:
            start, end = block.span
            text = text[:start] + text[start:end].replace(f"```\n{block.output}```", f"```\n{shown}```") + text[end:]
    return text


def main() -> None:
    for name in pages():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            page = DOCS / name
            page.write_text(with_outputs(page.read_text(encoding="utf-8")), encoding="utf-8")
            os.chdir(ROOT)
        print(f"docs/{name}", "run")
    NOTEBOOK.write_text(notebook(TUTORIAL.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
