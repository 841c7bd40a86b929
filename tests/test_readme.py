"""The README shows what the result files and the source say, and only commands that exist."""

import json
import re
from pathlib import Path

import pytest

import generated
import update_readme
from update_readme import ROOT, results, rooms

README = (ROOT / "README.md").read_text(encoding="utf-8")


def part(document: str, name: str) -> str:
    """What stands between the marks of a generated part."""
    begin, end = generated.marks(name, update_readme.SCRIPT)
    return document.partition(begin)[2].partition(end)[0].strip()


def outside(document: str) -> str:
    """The document without its generated parts."""
    for name in ("rooms", "results"):
        document = document.replace(part(document, name), "")
    return document


@pytest.mark.parametrize(("name", "content"), [("rooms", rooms()), ("results", results())])
def test_generated_parts_are_current(name: str, content: str) -> None:
    assert part(README, name) == content, "run `make docs`"


def test_every_committed_result_is_shown() -> None:
    """A result without a table would be a number that nobody sees."""
    for path in update_readme.RESULTS.glob("*.json"):
        if "table" in json.loads(path.read_text()):
            assert path.name in part(README, "results")


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
    assert results(tmp_path) == update_readme.NOTHING


def test_no_measured_number_is_written_by_hand() -> None:
    """Percentages with a decimal are results; promises ("at least 90 %") are whole numbers."""
    found = re.findall(r"\d+\.\d+ ?(?:%|points|examples/s|images/s)", outside(README))
    assert not found


def test_a_part_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected the lines"):
        generated.replaced("# A page without marks", "rooms", update_readme.SCRIPT, "text")


def test_replacing_a_part_keeps_the_rest() -> None:
    begin, end = generated.marks("rooms", "s.py")
    document = f"before\n{begin}\nold\n{end}\nafter"
    assert generated.replaced(document, "rooms", "s.py", "new") == f"before\n{begin}\nnew\n{end}\nafter"
