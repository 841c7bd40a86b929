"""Cells: the single runs that tables are made of, each with a result file that says what it depended on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from masp.core.atomic_io import write_file
from masp.core.errors import DataError
from masp.reproduce.specs import Spec

FORMAT = 1

State = Literal["done", "failed", "waiting"]


@dataclass(frozen=True)
class Experiment:
    """One run: a recipe on a data set with a seed.

    Attributes:
        dataset: name of the data set.
        recipe: what is run.
        seed: of training and of everything random.
        needs: names of the cells that have to be done before.
    """

    dataset: str
    recipe: Spec
    seed: int
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name, and its place below the folders of results and of runs."""
        return cell_name(self.dataset, self.recipe, self.seed)


@dataclass(frozen=True)
class ExperimentResult:
    """What became of a cell.

    Attributes:
        cell: its name.
        state: `done`, `failed`, or `waiting` where something that it needs failed.
        figures: what was measured, ready for JSON.
        identity: everything that decides the figures.
        about: its provenance as `masp evaluate` writes it, and how its training went.
        seconds: that it took when it was run.
        error: why it failed, on one line.
    """

    cell: str
    state: State
    figures: Mapping[str, Any]
    identity: Mapping[str, Any]
    about: Mapping[str, Any]
    seconds: float = 0.0
    error: str = ""


def cell_name(dataset: str, recipe: Spec, seed: int) -> str:
    """Name of a cell: data set, system and seed."""
    system = recipe.name.replace(" ", "-").replace("/", "-")
    return f"{dataset}/{system}/seed{seed}"


def result_file(out: Path, name: str) -> Path:
    """Where the result of a cell lies."""
    return out / "cells" / f"{name}.json"


def write_outcome(out: Path, outcome: ExperimentResult) -> None:
    """Writes the result of a cell.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    file = result_file(out, outcome.cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **asdict(outcome)}
    write_file(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_outcome(out: Path, name: str) -> ExperimentResult | None:
    """The result of a cell; None where there is none.

    Raises:
        DataError: it cannot be read, or is of another format.
    """
    file = result_file(out, name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        return ExperimentResult(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no result of a cell ({error})", "", "Remove it; the cell is run again.") from None
