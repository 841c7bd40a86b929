"""Notes, for every family, what the contract's tests found; `make families` writes it down for the documentation."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

COLUMNS = {
    "contract": tuple(f"test_{number}_" for number in range(1, 8)),
    "official processor": ("test_template_and_pixels_",),
    "score": ("test_scores_",),
    "generate": ("test_answers_",),
    "prefix reuse": ("test_a_reused_prefix_",),
    "native positions": ("test_positions_",),
    "attention": ("test_attention_",),
    "4-bit": ("test_four_bit_",),
}
"""Column of the table in docs/reference/backbones.md → how the names of its tests begin."""

RECORD = "MASP_RECORD_FAMILIES"


def cell(item: Any) -> tuple[str, str] | None:
    """Family and column of a test; None for one that is in no column."""
    family = getattr(item, "callspec", None) and item.callspec.params.get("family")
    columns = [column for column, starts in COLUMNS.items() if item.originalname.startswith(starts)]
    return (family, columns[0]) if family and columns else None


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        if "contract" in item.path.parts and (place := cell(item)):
            item.user_properties.append(("cell", place))


@pytest.fixture
def cells(request: pytest.FixtureRequest) -> Counter[tuple[str, str]]:
    """How many tests of this run belong to each cell."""
    properties = [pair for item in request.session.items for pair in item.user_properties]
    return Counter(tuple(map(str, place)) for name, place in properties if name == "cell")  # pyright: ignore[reportReturnType]


_found: dict[str, dict[str, Counter[str]]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    for name, place in report.user_properties:
        if name == "cell":
            family, column = map(str, place)  # pyright: ignore[reportArgumentType]
            _found.setdefault(family, {}).setdefault(column, Counter())[report.outcome] += 1


def pytest_sessionfinish() -> None:
    if target := os.environ.get(RECORD):
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        Path(target).write_text(json.dumps({**versions, "families": _found}, indent=1, sort_keys=True) + "\n")
