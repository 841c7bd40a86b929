"""Which results belong together: seeds of one system, systems on one split of one data set; figures over seeds."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from masp.core.errors import DataError
from masp.data.records import read_json
from masp.evaluation.metrics import Interval, PairedComparison, share, spread_of
from masp.evaluation.result import Bin, Evaluation, LabelledPrediction, RiskCoverage, read_result
from masp.report.schema import Ablation, AblationRow, Difference

POINTS = 200
"""A curve is drawn through at most this many points, whatever the number of images."""


@dataclass(frozen=True)
class Figure:
    """A figure of a system: with its interval where one seed was measured, with `sd` over several."""

    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class PooledBin:
    """Answers of like confidence, of all seeds: from `low` on, with their mean confidence and accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class CurvePlot:
    """Risk over coverage, the mean of the seeds; `area` is the mean risk over all coverages."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    area: float

    def at(self, coverage: float) -> float:
        """The risk where this share of the images is answered."""
        return float(np.interp(coverage, self.coverage, self.risk))


def over_seeds(values: Sequence[Interval | float | None]) -> Figure | None:
    """One figure from those of all seeds; None where a seed lacks it."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    if len(known) == 1:
        one = known[0]
        return Figure(one.value, one.low, one.high) if isinstance(one, Interval) else Figure(one)
    plain = [value.value if isinstance(value, Interval) else value for value in known]
    stats = spread_of(plain)
    return Figure(stats.mean, sd=stats.deviation)


def pooled(runs: Sequence[Sequence[Bin]]) -> tuple[PooledBin, ...]:
    """The bins that hold answers, over all seeds; bins that lie in different places are not put together."""
    edges = sorted({one.low for bins in runs for one in bins})
    ends = [*edges[1:], 1.0]
    result = []
    for low, high in zip(edges, ends, strict=True):
        here = [one for bins in runs for one in bins if one.low == low and one.images]
        images = sum(one.images for one in here)
        if images:
            sure = sum(one.images * one.confidence for one in here) / images
            hits = sum(round(one.images * one.accuracy) for one in here)
            result.append(PooledBin(low, high, images, sure, share(hits, images)))
    return tuple(result)


def mean_curve(runs: Sequence[RiskCoverage]) -> CurvePlot:
    """The mean of the seeds' curves, drawn through a bounded number of points."""
    coverage = np.unique(np.concatenate([run.coverage for run in runs]))
    if len(coverage) > POINTS:
        coverage = coverage[np.unique(np.linspace(0, len(coverage) - 1, POINTS).round().astype(int))]
    risk = np.mean([np.interp(coverage, run.coverage, run.risk) for run in runs], axis=0)
    area = statistics.fmean(run.area.value for run in runs)
    return CurvePlot(tuple(coverage.tolist()), tuple(risk.tolist()), area)


@dataclass(frozen=True)
class ResultSource:
    """A result as it was named: the name given to its system (empty: the result's own), its place, its content."""

    name: str
    place: str
    found: Evaluation


@dataclass(frozen=True)
class Rows:
    """A table of rows, such as Table 2, as it was named and read."""

    place: str
    data: Ablation
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class SystemResults:
    """A system with one run for each seed; `place` is its place among the systems of its trial."""

    name: str
    place: int
    sources: tuple[ResultSource, ...]

    @property
    def runs(self) -> tuple[Evaluation, ...]:
        """The results, one for each seed."""
        return tuple(source.found for source in self.sources)

    @cached_property
    def answers(self) -> Mapping[str, LabelledPrediction]:
        """What the first seed said about each image; empty where no predictions lie beside the result."""
        return {answer.image: answer for answer in self.runs[0].answers}

    @cached_property
    def said(self) -> tuple[Mapping[tuple[str, str], str | None], ...]:
        """For each seed the label that was predicted for each (image, label) that all seeds answered."""
        tables = [{(one.image, one.truth): one.predicted for one in run.answers} for run in self.runs]
        common = [key for key in tables[0] if all(key in table for table in tables)]
        return tuple({key: table[key] for key in common} for table in tables)


@dataclass(frozen=True)
class Comparison:
    """All systems that were measured on one split with one set of labels."""

    dataset: str
    split: str
    labels: tuple[str, ...]
    systems: tuple[SystemResults, ...]

    @property
    def runs(self) -> tuple[Evaluation, ...]:
        """The results of all systems."""
        return tuple(run for system in self.systems for run in system.runs)


def read_sources(words: Sequence[str]) -> tuple[list[ResultSource], list[Rows]]:
    """Every RESULT, each a folder or a file, or NAME=RESULT.

    Raises:
        DataError: one cannot be read or is no result.
    """
    sources: list[ResultSource] = []
    tables: list[Rows] = []
    for word in words:
        name, path = _named(word)
        if path.suffix == ".jsonl":
            todo = f"Measure it first: masp evaluate --predictions {path} --data DIR --out DIR"
            raise DataError(f"{path} is a file of predictions", "the result of an evaluation", todo)
        table = _table(path)
        if table is not None:
            tables.append(table)
        else:
            sources.append(ResultSource(name, str(path), read_result(path)))
    return sources, tables


def trials(sources: Sequence[ResultSource]) -> tuple[Comparison, ...]:
    """The results in the order in which they were named, put together by data set, split and labels."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[ResultSource]] = {}
    for source in sources:
        evaluation = source.found
        groups.setdefault((evaluation.dataset, evaluation.split, tuple(sorted(evaluation.labels))), []).append(source)
    return tuple(
        Comparison(dataset, split, group[0].found.labels, _systems(group))
        for (dataset, split, _), group in groups.items()
    )


def seed_of(evaluation: Evaluation) -> str | None:
    """The training seed of a result as text; None where it is unknown."""
    seed = evaluation.provenance.get("seed")
    return None if seed is None else json.dumps(seed)


def _named(word: str) -> tuple[str, Path]:
    """The name in front of "=" and the place behind it; a place that exists as it stands needs no name."""
    name, equals, path = word.partition("=")
    if equals and name and path and not Path(word).exists():
        return name, Path(path)
    return "", Path(word)


def _systems(group: Sequence[ResultSource]) -> tuple[SystemResults, ...]:
    """Seeds of one system side by side; results of one name that are no seeds of each other keep their place's name."""
    named: dict[tuple[str, str], list[ResultSource]] = {}
    for source in group:
        key = (source.name, "") if source.name else (source.found.system, _settings(source.found))
        named.setdefault(key, []).append(source)
    result: list[tuple[str, list[ResultSource]]] = []
    for (name, _), members in named.items():
        seeds = [seed_of(member.found) for member in members]
        if len(members) == 1 or members[0].name or (None not in seeds and len(set(seeds)) == len(seeds)):
            result.append((name, members))
        else:
            result += [(name, [member]) for member in members]
    taken = [name for name, _ in result]
    return tuple(
        SystemResults(name if taken.count(name) == 1 else f"{name} ({_short(members[0].place)})", index, tuple(members))
        for index, (name, members) in enumerate(result)
    )


def _settings(evaluation: Evaluation) -> str:
    """What the seeds of one system have in common, as text."""
    adapter, backbone = evaluation.provenance.get("adapter"), evaluation.provenance.get("backbone")
    facts = [
        evaluation.mode,
        _trained(adapter),
        backbone.get("fingerprint") if isinstance(backbone, Mapping) else None,
        evaluation.provenance.get("question"),
        _set(evaluation.provenance.get("system")),
    ]
    return json.dumps(facts, sort_keys=True, default=str)


def _trained(adapter: object) -> object:
    """What an adapter is, and how it was trained: on which data, and with which settings but the seed."""
    if not isinstance(adapter, Mapping):
        return None
    stages = adapter.get("training")
    settings = stages.items() if isinstance(stages, Mapping) else ()
    training = {
        stage: {key: value for key, value in values.items() if key != "steps"}
        if isinstance(values, Mapping)
        else values
        for stage, values in settings
    }
    return [{key: adapter.get(key) for key in ("method", "aspects", "task", "data")}, training]


def _set(system: object) -> object:
    """The settings of a system, and of the one it stands on, without the seed that some have among them."""
    if not isinstance(system, Mapping):
        return None
    settings = system.get("settings")
    if isinstance(settings, Mapping):
        settings = {key: value for key, value in settings.items() if key != "seed"}
    return [settings, _set(system.get("tuned"))]


def _short(place: str) -> str:
    """The folder of a result."""
    path = Path(place)
    return path.parent.name if path.suffix == ".json" and path.parent.name else path.name


def _table(path: Path) -> Rows | None:
    """A file that `masp demo` or a Python script wrote with `write_table`; None for anything else."""
    if not path.is_file():
        return None
    content = read_json(path, largest=None)
    if not isinstance(content, dict) or "rows" not in content or "format" in content:
        return None
    try:
        rows = tuple(
            AblationRow(row["name"], row["meaning"], _interval(row["accuracy"]), row.get("macro_f1"))
            for row in content["rows"]
        )
        gains = tuple(
            Difference(one["name"], PairedComparison(**one["paired"])) for one in content.get("differences", ())
        )
        majority = _interval(content["majority"]).value
        data = Ablation(rows, int(content["images"]), majority=majority, differences=gains)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no table of rows ({error})", "what masp wrote", "Measure it again.") from None
    return Rows(str(path), data, content.get("provenance") or {})


def _interval(content: Mapping[str, Any]) -> Interval:
    return Interval(float(content["value"]), float(content["low"]), float(content["high"]))
