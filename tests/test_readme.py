"""The documents show what the result files and the source say."""

import json
import re
from pathlib import Path

import pytest

import generated
import reproduced_tables
import update_readme
from reproduced_tables import reproduction
from update_readme import MEASUREMENTS, README, gained, results

PARTS = update_readme.parts()


def part(document: Path, name: str) -> str:
    """What stands between the marks of a generated part."""
    begin, end = generated.marks(name, update_readme.SCRIPT)
    return document.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()


def outside(document: Path) -> str:
    """The document without its generated parts."""
    text = document.read_text(encoding="utf-8")
    for where, name in PARTS:
        if where == document:
            text = text.replace(part(document, name), "")
    return text


@pytest.mark.parametrize(("document", "name"), PARTS)
def test_generated_parts_are_current(document: Path, name: str) -> None:
    assert part(document, name) == PARTS[document, name], "run `make docs`"


def test_every_committed_result_is_shown() -> None:
    """A result that is not shown would be a number that nobody sees."""
    for path in update_readme.RESULTS.glob("*.json"):
        assert path.name in part(MEASUREMENTS, "results")


def test_a_changed_result_is_noticed(tmp_path: Path) -> None:
    content = {
        "title": "Table 2",
        "command": "masp demo",
        "table": {"head": ["row", "accuracy"], "rows": [["V", 41.7]]},
    }
    (tmp_path / "b.json").write_text(json.dumps(content))
    (tmp_path / "a.json").write_text(json.dumps({"raw": [1, 2]}))
    before = results(tmp_path)
    assert "| V | 41.7 |" in before
    assert "a.json" not in before
    (tmp_path / "b.json").write_text(json.dumps(content).replace("41.7", "47.1"))
    assert results(tmp_path) == before.replace("41.7", "47.1")


def test_no_result_is_said_openly(tmp_path: Path) -> None:
    assert results(tmp_path) == gained(tmp_path) == update_readme.NOTHING


def test_no_measured_number_is_written_by_hand() -> None:
    """Percentages with a decimal are results; promises ("at least 90 %") are whole numbers."""
    for document in (README, MEASUREMENTS):
        assert not re.findall(r"\d+\.\d+ ?(?:%|points|examples/s|images/s)", outside(document))


def test_a_part_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected the lines"):
        generated.replaced("# A page without marks", "rooms", update_readme.SCRIPT, "text")


def test_replacing_a_part_keeps_the_rest() -> None:
    begin, end = generated.marks("rooms", "s.py")
    document = f"before\n{begin}\nold\n{end}\nafter"
    assert generated.replaced(document, "rooms", "s.py", "new") == f"before\n{begin}\nnew\n{end}\nafter"


@pytest.mark.parametrize(("full", "gain", "met"), [("61.5", "-2.7", "no"), ("68.3", "+4.1", "yes")])
def test_a_reproduction_says_which_goals_it_missed(tmp_path: Path, full: str, gain: str, met: str) -> None:
    head = ["system", "accuracy, %", "ECE, scaled"]
    rows = [["V", "40.1", "0.2"], ["V+S", "64.2", "0.07"], ["V+A+S", full, "0.031"]]
    note = f"{reproduced_tables.UNLIKE} Lengths: 7."
    tables = [
        {"name": "table1", "title": "Table 1", "head": head, "rows": rows, "notes": ["of no use", note]},
        {"name": "table2", "title": "Table 2", "head": head, "rows": rows},
    ]
    facts = {"images": 1000, "guess": 0.125, "majority": {"value": 0.2}, "ceiling": {"expected": 0.75}}
    content = {"command": "c", "seeds": [0], "datasets": {"scenes": facts}, "tables": tables, "failed": {}}
    (tmp_path / "reproduce.json").write_text(json.dumps(content))
    shown = reproduction(tmp_path)
    assert "| soft prompt over zero-shot | +24.1 points | ≥ +18 | yes |" in shown
    assert f"| aspects on top of the soft prompt | {gain} points | ≥ +3 | {met} |" in shown
    assert f"| MASP, share of the ceiling | {float(full) / 0.75:.0f} % | ≥ 95 % | no |" in shown
    assert "| calibration error of MASP after scaling | 0.031 | ≤ 0.03 | no |" in shown
    assert note in shown
    assert "of no use" not in shown
