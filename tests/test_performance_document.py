"""The arithmetic in docs/explanation/performance.md is what the package computes, and the tests that it names exist."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "explanation" / "performance.md"


def test_the_example_gives_what_is_printed():
    found = doctest.testfile(str(DOCUMENT), module_relative=False)
    assert found.attempted >= 4
    assert found.failed == 0


def test_every_test_that_is_named_exists():
    text = DOCUMENT.read_text()
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(files) > 5
    sources = "".join((ROOT / file).read_text() for file in files)
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in sources, name
