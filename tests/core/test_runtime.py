"""The processor has one name, wherever it is written down."""

import platform
from pathlib import Path

import pytest

from architecture import ROOT
from masp.core.runtime import processor
from masp.evaluation.result import machine_facts


def test_the_processor_is_called_by_its_own_name(tmp_path: Path) -> None:
    table = tmp_path / "cpuinfo"
    table.write_text("processor\t: 0\nmodel\t\t: 25\nmodel name\t: Made Up 9: Fast\n\nmodel name\t: Another\n")
    assert processor(table) == "Made Up 9: Fast"


@pytest.mark.parametrize("content", [b"", b"processor\t: 0\n", b"model name\t: \n", b"\xff\xfe"])
def test_without_a_name_the_architecture_is_all_there_is(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "cpuinfo"
    assert processor(table) == platform.machine()
    table.write_bytes(content)
    assert processor(table) == platform.machine()


def test_results_hold_that_name() -> None:
    assert machine_facts(None)["processor"] == processor()


def test_nobody_asks_in_another_way() -> None:
    """`platform.processor` gave "x86_64" in some results, beside the real name in others."""
    files = [file for folder in ("src", "benchmarks", "scripts") for file in (ROOT / folder).rglob("*.py")]
    asking = [
        file.name
        for file in files
        if any(word in file.read_text() for word in ("platform.processor()", "platform.machine()", "/proc/cpuinfo"))
    ]
    assert len(files) > 100
    assert asking == ["runtime.py"]
