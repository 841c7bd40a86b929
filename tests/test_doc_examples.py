"""The examples of the documents run and print what the pages say; the notebook is the page of the first hour."""

import os
import sys
from pathlib import Path

import pytest

import doc_examples
from doc_examples import NOTEBOOK, TUTORIAL, Example, examples, in_process, lines, notebook, pages, run

PAGES = pages()


def fast(blocks: list[Example]) -> list[Example]:
    """Those before the first slow one, on which the others may depend."""
    slow = [number for number, block in enumerate(blocks) if block.slow]
    return blocks[: slow[0]] if slow else blocks


def check(blocks: list[Example]) -> None:
    for block, printed in zip(blocks, run(blocks, in_process), strict=True):
        if block.output is not None:
            assert printed == block.output, "run `make examples`"


@pytest.mark.parametrize("name", [name for name, blocks in PAGES.items() if fast(blocks)])
def test_the_examples_of_a_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(fast(PAGES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, blocks in PAGES.items() if fast(blocks) != blocks])
def test_the_slow_examples_of_a_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(PAGES[name])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    content = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(content, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    for block, cell in zip(PAGES["first-hour.md"], cells, strict=True):
        if block.output is not None:  # what goes to stderr, such as a warning, is an output of its own
            assert "".join(one.text for one in cell.outputs if one.get("name") == "stdout") == block.output
    assert (tmp_path / "runs" / "first" / "adapter" / "adapter.json").is_file()  # a shell line that fails is no error


def test_the_notebook_is_the_page() -> None:
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook(TUTORIAL.read_text(encoding="utf-8")), "run `make examples`"


def test_every_python_block_that_needs_nothing_else_is_an_example() -> None:
    """Blocks of the pages that teach, which are not marked, need a hub, a trained adapter or another backbone."""
    unmarked = []
    for page in [TUTORIAL, *sorted((doc_examples.DOCS / "how-to").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for block in examples(text)[::-1]:
            text = text[: block.span[0]] + text[block.span[1] :]
        unmarked += [f"{page.name}: {part.partition('```')[0]}" for part in text.split("```python\n")[1:]]
    served = "serving.md"  # its examples need a server; tests/serving/test_serving_document.py runs them
    assert [block for block in unmarked if "someone/" not in block and not block.startswith(served)] == []


PAGE = """Text.

<!-- example -->
```sh
masp one \\
    --two  # a word about it
```

<!-- example: slow -->
```python
number = 6 * 7
print(number)
```

<!-- output -->
```
42
```

```python
not an example
```
"""


def test_what_the_collector_finds_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell, python = examples(PAGE)
    assert (shell.kind, lines(shell.code), shell.slow, shell.output) == ("sh", ["masp one --two"], False, None)
    assert (python.kind, python.slow, python.output) == ("python", True, "42\n")
    called = []
    assert list(run([shell, python], lambda words: called.append(words) or 0)) == ["", "42\n"]
    assert called == [["one", "--two"]]
    with pytest.raises(RuntimeError, match="masp one --two ended with 1"):
        list(run([shell], lambda words: 1))
    with pytest.raises(RuntimeError, match="only masp"):
        list(run([Example("sh", "rm x\n", False, None, (0, 0))], lambda words: 0))
    assert fast([shell, python, shell]) == [shell]


def test_a_page_is_written_with_what_it_prints_now() -> None:
    stale = PAGE.replace("42", "41").replace("<!-- example -->", "")
    assert doc_examples.with_outputs(stale) == PAGE.replace("<!-- example -->", "")
