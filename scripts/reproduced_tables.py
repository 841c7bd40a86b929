"""The part of the README that `masp reproduce all --out results` fills: its tables, without rows that say nothing."""

import json
from pathlib import Path
from typing import Any

from generated import table

SHOWN = ("table1", "table2", "table2-differences", "table3", "figure3", "figure4")
"""Tables in the order of the README; Table 4 does not depend on any run."""

NOTHING = "Not run yet: `masp reproduce all --out results --jobs 2`."
PICTURES = (
    ("figure3.png", "Accuracy with one aspect alone, a bar for each, beside the majority and the ceiling"),
    ("figure4.png", "Attention from the soft prompt to each aspect: the mean and three pictures"),
)


def reproduction(folder: Path) -> str:
    """The tables of a reproduction, or that there is none."""
    file = folder / "reproduce.json"
    if not file.is_file():
        return NOTHING
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    tables = {one["name"]: one for one in content["tables"]}
    parts = [_facts(content)]
    parts += [_shown(tables[name]) for name in SHOWN if name in tables]
    parts += [f"![{words}]({folder.name}/{name})" for name, words in PICTURES if (folder / name).is_file()]
    if content["failed"]:
        parts.append("Failed: " + ", ".join(f"{cell} ({error})" for cell, error in content["failed"].items()) + ".")
    place = f"{folder.name}/README.md"
    parts.append(f"Written by `{content['command']}`; all of it, and what it depended on: [{place}]({place}).")
    return "\n\n".join(parts)


def _facts(content: dict[str, Any]) -> str:
    """What the accuracies have to be read against."""
    parts = []
    for name, facts in content["datasets"].items():
        text = f"{facts['images']:,} test pictures of {name}, training seeds {', '.join(map(str, content['seeds']))}; "
        text += f"a guess {_percent(facts['guess'])}, the most frequent label {_percent(facts['majority']['value'])}"
        if "ceiling" in facts:
            text += f", the best that anyone could reach {_percent(facts['ceiling']['expected'])}"
        parts.append(f"{text}.")
    return " ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _shown(one: dict[str, Any]) -> str:
    """A table without the rows in which nothing was measured, and without its notes."""
    head = tuple(one["head"])
    known = [tuple(row) for row in one["rows"] if "accuracy, %" not in head or row[head.index("accuracy, %")] != "–"]
    return f"**{one['title']}**\n\n{table(head, known)}"
