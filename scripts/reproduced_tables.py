"""The tables that `masp reproduce all --out results` fills: its tables, without rows that say nothing."""

import json
from pathlib import Path
from typing import Any

from generated import percent, table

SHOWN = ("table1", "table1-differences", "table2", "table2-differences", "table3", "figure3", "figure4")
"""Tables in the order of the page; Table 4 does not depend on any run."""

BOTTLENECK = "MASP with a concept bottleneck"
NOTHING = "Not run yet: `masp reproduce all --out results --jobs 2`."
UNLIKE = "Every system that learns has the same images, but not the same number of steps."
"""How the note begins without which Table 1 would read as a race under equal conditions."""

PICTURES = (
    ("figure3.png", "Accuracy with one aspect alone, a bar for each, beside the majority and the ceiling"),
    ("figure4.png", "Attention from the soft prompt to each aspect: the mean and three images"),
)


def reproduction(folder: Path) -> str:
    """The tables of a reproduction for a page in docs/, or that there is none."""
    file = folder / "reproduce.json"
    if not file.is_file():
        return NOTHING
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    tables = {one["name"]: one for one in content["tables"]}
    parts = [_facts(content)]
    parts += _goals(content, tables)
    parts += [_shown(tables[name]) for name in SHOWN if name in tables]
    pictures = [one for one in PICTURES if Path(one[0]).stem in tables and (folder / one[0]).is_file()]
    parts += [f"![{words}](../{folder.name}/{name})" for name, words in pictures]
    if content["failed"]:
        parts.append("Failed: " + ", ".join(f"{cell} ({error})" for cell, error in content["failed"].items()) + ".")
    place = f"{folder.name}/README.md"
    wrote = dict.fromkeys(tables[name].get("command", content["command"]) for name in SHOWN if name in tables)
    commands = ", ".join(f"`{command}`" for command in wrote) or f"`{content['command']}`"
    parts.append(f"Written by {commands}; all of it, and what it depended on: [{place}](../{place}).")
    return "\n\n".join(parts)


def _facts(content: dict[str, Any]) -> str:
    """What the accuracies have to be read against."""
    parts = []
    for name, facts in content["datasets"].items():
        text = f"{facts['images']:,} test images of {name}, training seeds {', '.join(map(str, content['seeds']))}; "
        text += f"a guess {percent(facts['guess'])}, the most frequent label {percent(facts['majority']['value'])}"
        if "ceiling" in facts:
            text += f", the best that anyone could reach {percent(facts['ceiling']['expected'])}"
        parts.append(f"{text}.")
    return " ".join(parts)


def _goals(content: dict[str, Any], tables: dict[str, dict[str, Any]]) -> list[str]:
    """What was wanted on a data set whose ceiling is known, and what came out, as one table."""
    ceilings = [facts["ceiling"]["expected"] for facts in content["datasets"].values() if "ceiling" in facts]
    if len(ceilings) != 1 or "table2" not in tables:
        return []
    measured = _measured(tables["table2"])
    if not all(name in measured for name in ("V", "V+S", "V+A+S")):
        return []
    plain, prompt, full = (float(measured[name][0]) for name in ("V", "V+S", "V+A+S"))
    error, share = float(measured["V+A+S"][1]), full / ceilings[0]
    rows = [
        ("soft prompt over zero-shot", f"{prompt - plain:+.1f} points", "≥ +18", prompt - plain >= 18),
        ("aspects on top of the soft prompt", f"{full - prompt:+.1f} points", "≥ +3", full - prompt >= 3),
        ("MASP, share of the ceiling", f"{share:.0f} %", "≥ 95 %", share >= 95),
        ("calibration error of MASP after scaling", f"{error:.3f}", "≤ 0.03", error <= 0.03),
    ]
    rows += _bottleneck_goals(_measured(tables.get("table1", {"head": [], "rows": []})), prompt, ceilings[0])
    return [table(("goal", "measured", "wanted", "met"), [(*row[:3], "yes" if row[3] else "no") for row in rows])]


def _bottleneck_goals(
    measured: dict[str, tuple[str, str]], prompt: float, ceiling: float
) -> list[tuple[str, str, str, bool]]:
    """The same goals for the variant with a concept bottleneck; none where it was not run."""
    if BOTTLENECK not in measured:
        return []
    accuracy, error = map(float, measured[BOTTLENECK])
    share = accuracy / ceiling
    return [
        (
            "concept bottleneck on top of the soft prompt",
            f"{accuracy - prompt:+.1f} points",
            "≥ +3",
            accuracy - prompt >= 3,
        ),
        ("MASP with a concept bottleneck, share of the ceiling", f"{share:.0f} %", "≥ 95 %", share >= 95),
        ("calibration error with a concept bottleneck, after scaling", f"{error:.3f}", "≤ 0.03", error <= 0.03),
    ]


def _measured(one: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """System → accuracy in per cent and calibration error after scaling, where both were measured."""
    head = one["head"]
    if not all(name in head for name in ("system", "accuracy, %", "ECE, scaled")):
        return {}
    name, *places = (head.index(key) for key in ("system", "accuracy, %", "ECE, scaled"))
    found = {row[name]: (row[places[0]], row[places[1]]) for row in one["rows"]}
    return {system: both for system, both in found.items() if "–" not in both}


def _shown(one: dict[str, Any]) -> str:
    """A table without the rows in which nothing was measured, and of its notes the one that says what was not alike."""
    head = tuple(one["head"])
    known = [tuple(row) for row in one["rows"] if "accuracy, %" not in head or row[head.index("accuracy, %")] != "–"]
    notes = "".join(f"\n\n{note}" for note in one.get("notes", ()) if note.startswith(UNLIKE))
    return f"**{one['title']}**\n\n{table(head, known)}{notes}"
