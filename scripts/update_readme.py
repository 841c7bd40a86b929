"""Write the generated parts of README.md, docs/measurements.md, docs/contributing.md and docs/explanation/method.md.

`make docs` calls it. The README shows one prediction and Table 2; everything else that was measured has a page of its
own. A result is a JSON file in benchmarks/results/ that a command wrote, with the `command` in it. How it is shown is
decided in `result_tables.py`; or the file brings a `title`, a `table` (`head` and `rows`), perhaps a `note`.
"""

import ast
import json
from pathlib import Path
from typing import Any

from generated import ROOT, table, update
from reproduced_tables import reproduction
from result_tables import SHAPES, headline, speed

README = ROOT / "README.md"
MEASUREMENTS = ROOT / "docs" / "measurements.md"
CONTRIBUTING = ROOT / "docs" / "contributing.md"
DATA_FLOW = ROOT / "docs" / "explanation" / "method.md"
PREDICTION = ROOT / "docs" / "prediction.txt"
EXAMPLES = ROOT / "docs" / "examples"
RESULTS = ROOT / "benchmarks" / "results"
FIRST = "embedded.json"
REPRODUCED = ROOT / "results"
PACKAGE = ROOT / "src" / "masp"
SCRIPT = "scripts/update_readme.py"
NOTHING = "No results are committed yet. Numbers appear here only from files that a command wrote."


def results(folder: Path = RESULTS) -> str:
    """The table of every result file: first what the section is about, then the others in the order of their names."""
    files = sorted(folder.glob("*.json"), key=lambda path: (path.name != FIRST, path.name))
    parts = [_result(path) for path in files]
    return "\n\n".join(filter(None, parts)) or NOTHING


def _result(path: Path) -> str:
    """One result; a file that is neither of a known shape nor has a table is not for people."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if path.name in SHAPES:
        shown = SHAPES[path.name](content)
    elif "table" in content:
        rows = [tuple(str(cell) for cell in row) for row in content["table"]["rows"]]
        shown = f"**{content['title']}**\n\n{table(tuple(content['table']['head']), rows)}"
    else:
        return ""
    place = f"benchmarks/results/{path.name}"
    note = f"{content['note']} " if content.get("note") else ""
    return f"{shown}\n\n{note}Written by `{content['command']}` to [{place}](../{place})."


def gained(folder: Path = RESULTS) -> str:
    """What is faster than a plain implementation, and what a goal was for it."""
    file = folder / "bench.json"
    return speed(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else NOTHING


def rooms(package: Path = PACKAGE) -> str:
    """One line per file or folder at the top of the package: the first sentence of its docstring."""
    files = [path for path in package.glob("*.py") if not path.stem.startswith("__")]
    folders = [path / "__init__.py" for path in package.iterdir() if (path / "__init__.py").is_file()]
    rows = [(f"`{_shown(path, package)}`", _first_line(path)) for path in sorted([*files, *folders])]
    return table(("where", "what"), rows)


def _shown(path: Path, package: Path) -> str:
    inside = path.relative_to(package)
    return f"{inside.parent}/" if path.name == "__init__.py" else str(inside)


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "`")


def prediction() -> str:
    """What a person sees of `masp predict`, as `make prediction` wrote it."""
    return f"```\n{PREDICTION.read_text(encoding='utf-8').rstrip()}\n```"


def examples() -> dict[str, str]:
    """Name of a file of docs/examples/ without its suffix → the file as a block of code."""
    return {path.stem: f"```python\n{path.read_text(encoding='utf-8')}```" for path in sorted(EXAMPLES.glob("*.py"))}


def parts() -> dict[tuple[Path, str], str]:
    """Document and name of each generated part → what it should say."""
    return {
        (README, "prediction"): prediction(),
        (README, "table2"): headline(json.loads((RESULTS / FIRST).read_text(encoding="utf-8"))),
        (MEASUREMENTS, "reproduction"): reproduction(REPRODUCED),
        (MEASUREMENTS, "speed"): gained(),
        (MEASUREMENTS, "results"): results(),
        (DATA_FLOW, "rooms"): rooms(),
        **{(CONTRIBUTING, name): content for name, content in examples().items()},
    }


if __name__ == "__main__":
    for (document, name), content in parts().items():
        changed = update(document, name, SCRIPT, content)
        print(document.name, name, "written" if changed else "was current")
