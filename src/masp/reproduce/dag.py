"""Experiments, their result files, and the order in which they are run: each once, behind what it needs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from masp.core.atomic_io import write_file
from masp.core.errors import DataError
from masp.reproduce.config import DatasetSource, ReproduceConfig, SkippedDataset
from masp.reproduce.specs import DATA, FULL, OTHERS, PARAMETERS, STAGE1, Paper, Spec, over_of, spec_of, specs_of

FORMAT = 1

State = Literal["done", "failed", "waiting"]


@dataclass(frozen=True)
class Experiment:
    """One run: a spec on a data set with a seed."""

    dataset: str  # name of the data set
    spec: Spec  # what is run
    seed: int  # of training and of everything random
    needs: tuple[str, ...] = ()  # names of the cells that have to be done before

    @property
    def name(self) -> str:
        """Its name, and its place below the folders of results and of runs."""
        return cell_name(self.dataset, self.spec, self.seed)


@dataclass(frozen=True)
class ExperimentResult:
    """What became of a cell."""

    cell: str  # its name
    state: State  # `done`, `failed`, or `waiting` where something that it needs failed
    figures: Mapping[str, Any]  # what was measured, ready for JSON
    identity: Mapping[str, Any]  # everything that decides the figures
    about: Mapping[str, Any]  # its provenance as `masp evaluate` writes it, and how its training went
    seconds: float = 0.0  # that it took when it was run
    error: str = ""  # why it failed, on one line
    correct: str = ""  # "1" or "0" for each test image in order: whether its label was predicted; "" without answers
    targets_hash: str = ""  # of these images and their labels


def cell_name(dataset: str, spec: Spec, seed: int) -> str:
    """Name of a cell: data set, system and seed."""
    system = spec.name.replace(" ", "-").replace("/", "-")
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


SCOPE: Mapping[str, tuple[str, ...] | None] = {
    "table1": None,
    "table2": ("FI", "Emotion6"),
    "table3": ("FI", "Emotion6", "ArtPhoto"),
    "figure3": ("FI", "Emotion6", "Abstract"),
    "figure4": ("FI", "Emotion6"),
}
"""Experiment → the data sets of the paper that it is run on; None: all of them. Other data sets take part in all."""

NO_ASPECTS = "stage 1 needs annotated aspects: EmoSet at ROOT/EmoSet, annotations of its own, or --aspects ADAPTER"
NO_ANNOTATIONS = "the data set has no annotated aspects to learn from: masp data annotate writes them"


@dataclass(frozen=True)
class ExperimentGraph:
    """The cells of a call."""

    cells: tuple[Experiment, ...]  # in an order in which each follows what it needs
    skipped: tuple[SkippedDataset, ...]  # what is not run, and why


def plan_cells(config: ReproduceConfig, paper: Paper, baselines: tuple[Spec, ...]) -> ExperimentGraph:
    """The cells of all experiments of a call; one that several of them need is there once.

    Args:
        config: what is asked.
        paper: names the data sets whose experiments are limited to some of them.
        baselines: the other systems.
    """
    experiments: dict[str, Experiment] = {}
    skipped: list[SkippedDataset] = list(config.missing)
    wanted = [(source, spec) for source in config.sources for spec in _specs(config, source, paper, baselines)]
    if "table4" in config.experiments:
        wanted.append((config.sources[0], PARAMETERS))
    for seed in config.seeds:
        for source, spec in wanted:
            reason = lacking(config, source, spec)
            if reason:
                if seed == config.seeds[0]:
                    skipped.append(SkippedDataset(source.name, spec.name, reason))
            elif seed == config.seeds[0] or depends_on_seed(config, spec):
                _add(experiments, config, source, spec, seed)
    return ExperimentGraph(tuple(experiments.values()), tuple(skipped))


def takes_part(experiment: str, dataset: str, paper: Paper) -> bool:
    """Whether an experiment is run on a data set."""
    scope = SCOPE[experiment]
    return scope is None or dataset in scope or dataset not in paper.datasets


def depends_on_seed(config: ReproduceConfig, spec: Spec) -> bool:
    """Whether a spec is run with every seed: it trains or draws something, or stands on a stage 1 that does."""
    return spec.seeded or bool(spec.aspects and config.adapter is None)


def seeds_of(config: ReproduceConfig, spec: Spec) -> tuple[int, ...]:
    """The seeds that a spec is run with."""
    return config.seeds if depends_on_seed(config, spec) else config.seeds[:1]


def base_of(config: ReproduceConfig, cell: Experiment) -> Experiment | None:
    """The cell of the system that a system stands on, or whose soft prompt it reads.

    None where it stands on none, or on one of its own.
    """
    if cell.spec.kind != "baseline":
        return None
    over = over_of(cell.spec.name, config.others)
    base = spec_of(over) if over else OTHERS[cell.spec.name].prompt
    if base is None:
        return None
    return Experiment(cell.dataset, base, cell.seed if depends_on_seed(config, base) else config.seeds[0])


def _specs(config: ReproduceConfig, source: DatasetSource, paper: Paper, baselines: tuple[Spec, ...]) -> list[Spec]:
    """What a data set takes part in, each once."""
    length = config.settings.method.prompt_length
    chosen = [name for name in config.experiments if name != "table4" and takes_part(name, source.name, paper)]
    return list(dict.fromkeys(spec for name in chosen for spec in specs_of(name, length, baselines)))


def lacking(config: ReproduceConfig, source: DatasetSource, spec: Spec) -> str:
    """Why a spec cannot be run on a data set; "" where it can."""
    if spec.aspects and config.adapter is None and config.aspects_from(source.name) is None:
        return NO_ASPECTS
    if spec.kind == "baseline" and OTHERS[spec.name].annotated and not source.annotated:
        return NO_ANNOTATIONS
    return ""


def _add(
    experiments: dict[str, Experiment], config: ReproduceConfig, source: DatasetSource, spec: Spec, seed: int
) -> None:
    """A cell, behind those that it needs."""
    if spec.kind == "parameters":
        _put(experiments, Experiment(source.name, spec, seed))
        return
    needs = [_put(experiments, Experiment(source.name, DATA, config.seeds[0]))]
    teacher = config.aspects_from(source.name)
    if spec.aspects and config.adapter is None and teacher is not None:
        seen = Experiment(teacher.name, DATA, config.seeds[0])
        looked = (_put(experiments, seen),) if teacher in config.sources else ()
        needs.append(_put(experiments, Experiment(teacher.name, STAGE1, seed, looked)))
    base = base_of(config, Experiment(source.name, spec, seed))
    if base is not None:
        _add(experiments, config, source, base.spec, base.seed)
        needs.append(base.name)
    if spec.kind == "attention":
        _add(experiments, config, source, FULL, seed)
        needs.append(cell_name(source.name, FULL, seed))
    _put(experiments, Experiment(source.name, spec, seed, tuple(dict.fromkeys(needs))))


def _put(experiments: dict[str, Experiment], cell: Experiment) -> str:
    experiments.setdefault(cell.name, cell)
    return cell.name
