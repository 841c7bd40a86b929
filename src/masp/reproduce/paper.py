"""The numbers of the paper, as it prints them: `paper.json`, read once and never computed with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

BACKBONES: Mapping[str, tuple[str, ...]] = {
    "LLaVA-v1.5": ("llava-1.5", "llava-v1.5"),
    "LLaVA-Next": ("llava-next", "llava-v1.6"),
    "Qwen2.5-VL-7B": ("qwen2.5-vl-7b",),
    "Qwen2-VL-7B": ("qwen2-vl-7b",),
    "InstructBLIP": ("instructblip",),
}
"""Zero-shot row of Table 1 → what the name of such a backbone holds, in lower case."""


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        title: what it shows.
        datasets: its columns.
        rows: row → a number for each column, in per cent; None where the paper has none.
    """

    title: str
    datasets: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]

    def number(self, row: str, dataset: str) -> float | None:
        """The number in a row under a data set; None where the paper prints none."""
        if row not in self.rows or dataset not in self.datasets:
            return None
        return self.rows[row][self.datasets.index(dataset)]


@dataclass(frozen=True)
class Paper:
    """What the paper prints.

    Attributes:
        source: the paper.
        datasets: the seven data sets, in the order of Table 1.
        tables: "table1", "table2", "table3", "figure3" and "figure4".
        parameters: row of Table 4 → trained numbers.
    """

    source: str
    datasets: tuple[str, ...]
    tables: Mapping[str, PaperTable]
    parameters: Mapping[str, int]


def load_paper() -> Paper:
    """The numbers that come with the package."""
    content = json.loads(resources.files("masp.reproduce").joinpath("paper.json").read_text(encoding="utf-8"))
    tables = {name: _printed(value) for name, value in content.items() if isinstance(value, dict) and name != "table4"}
    return Paper(content["source"], tuple(content["datasets"]), tables, dict(content["table4"]["rows"]))


def zero_shot_row(backbone: str) -> str | None:
    """The row of Table 1 that a backbone's name belongs to; None for one that the paper did not measure."""
    folded = backbone.casefold()
    return next((row for row, names in BACKBONES.items() if any(name in folded for name in names)), None)


def _printed(table: Mapping[str, Any]) -> PaperTable:
    rows = {name: tuple(numbers) for name, numbers in table["rows"].items()}
    return PaperTable(table["title"], tuple(table["datasets"]), rows)
