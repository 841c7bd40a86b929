"""What a process runs on: the processor's one name, wherever it is written down, and memory that is kept."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from architecture import ROOT
from masp.core import runtime
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


BATCHES = """
import resource, sys, threading
import numpy as np
from masp.core.runtime import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def work():
    for turn in range(33):
        if turn == 3:  # the first ones are new in any case
            before = faults()
        tensors = [np.ones(2**20) for _ in range(4)]
        del tensors
    print(kept, faults() - before)


thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_batches_in_a_thread_do_not_take_their_memory_anew():
    """Thirty batches of 32 MiB: thousands of pages, or hundreds where pages are huge, unless freed memory is kept."""
    found = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", BATCHES, how], capture_output=True, text=True, check=True)
        kept, found[how] = done.stdout.split()
        glibc = platform.libc_ver()[0] == "glibc"
        assert kept == {"keep": str(glibc), "leave": "None"}[how]
    kept, left = int(found["keep"]), int(found["leave"])
    assert not glibc or (kept < 2_000 and 10 * kept < left)


def test_an_allocator_that_cannot_be_told_is_left_alone(monkeypatch):
    def missing(name: str | None) -> object:
        return object()

    monkeypatch.setattr(runtime.ctypes, "CDLL", missing)
    assert runtime.keep_freed_memory() is False
