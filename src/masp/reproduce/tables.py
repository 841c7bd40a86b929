"""From outcomes to tables: which cells stand in which row, and the paper's number beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from masp.adapters import portable
from masp.baselines.prompted import TABLE2 as MEANINGS
from masp.baselines.registry import CATALOGUE
from masp.core.aspects import ASPECTS
from masp.evaluation import metrics
from masp.evaluation.metrics import Interval, SeedStats, spread_of
from masp.reproduce.config import ReproduceConfig, SkippedDataset
from masp.reproduce.dag import ExperimentResult, cell_name, depends_on_seed, lacking, seeds_of, takes_part
from masp.reproduce.specs import (
    BACKBONES,
    DATA,
    FULL,
    LENGTHS,
    LOW_LEVEL,
    OTHERS,
    PLAIN,
    SOFT,
    TABLE2,
    Paper,
    Prompt,
    Spec,
    StepBudget,
    budget_note,
    masp,
    of_length,
    spec_of,
    step_budget,
    zero_shot_row,
)

PATTERN = ("FI", "Emotion6")
"""Data sets of the paper that are shown beside one that it does not have: to compare the pattern, not the numbers."""

PREDICTIONS = "not part of this package: compare through a predictions file (masp evaluate --predictions)"
BOTTLENECK = "MASP with a concept bottleneck"
GENERATED = (
    "Read by generated text. Accuracy: the greedy text is the label exactly, as the paper counts (of lettered options, "
    "the letter alone); every other text counts as wrong. Lenient: other case, and punctuation at the ends, are "
    "forgiven. Unparsed: texts that name no label even then, in brackets those that are no label exactly. Rows without "
    "these figures generate no text: their most probable label counts."
)
OTHER_BACKBONE = "another backbone: run it with --backbone"


@dataclass(frozen=True)
class Texts:
    """How generated texts were read, as shares of the images, mean over the seeds."""

    lenient: float  # accuracy where other case, and punctuation at the ends, are forgiven
    unparsed: float  # texts that name no label even then
    inexact: float  # texts that are no label exactly; in the accuracy of an entry they count as wrong


@dataclass(frozen=True)
class TableCell:
    """What one row says about one data set.

    Attributes:
        values: accuracy with each seed, as shares; none where nothing was measured.
        images: that they were measured on.
        paper: the paper's accuracy, in per cent; None where it has none.
        reason: why nothing was measured.
        calibration: expected calibration error after temperature scaling, mean over the seeds; None where there are
            no probabilities or no validation split.
        seeds: of the values, in their order.
        read: how the answers were read, mean over the seeds; None where no text was generated.
    """

    values: tuple[float, ...] = ()
    images: int = 0
    paper: float | None = None
    reason: str = ""
    calibration: float | None = None
    seeds: tuple[int, ...] = ()
    read: Texts | None = None

    @property
    def over_seeds(self) -> SeedStats | None:
        """Mean and standard deviation over the seeds; None where nothing was measured."""
        return spread_of(self.values) if self.values else None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds."""
        stats = self.over_seeds
        return None if stats is None else stats.mean

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed."""
        stats = self.over_seeds
        return None if stats is None else stats.deviation

    @property
    def interval(self) -> Interval | None:
        """The mean with Wilson's 95 % interval for that many images: which images were drawn, not which seeds."""
        if self.mean is None or not self.images:
            return None
        around = metrics.share(round(self.mean * self.images), self.images)
        return Interval(self.mean, min(around.low, self.mean), max(around.high, self.mean))

    @property
    def difference(self) -> float | None:
        """Points above the paper's number."""
        return None if self.mean is None or self.paper is None else 100 * self.mean - self.paper


@dataclass(frozen=True)
class TableRow:
    """One row; `printed` is the row of the paper that it stands beside, "" for none."""

    name: str
    meaning: str
    printed: str
    entries: Mapping[str, TableCell]


@dataclass(frozen=True)
class ResultTable:
    """Accuracies: systems by data sets."""

    name: str  # "table1" …
    title: str  # what it shows
    datasets: tuple[str, ...]  # its columns
    rows: tuple[TableRow, ...]  # in order
    # data set of the paper → row → its number, for data sets that the paper does not have
    beside: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]  # what a reader has to know


@dataclass(frozen=True)
class Line:
    """Which spec a row shows; None for a row of the paper that nothing is run for, with the reason."""

    name: str
    meaning: str
    spec: Spec | None
    printed: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Results:
    """All that tables are made of."""

    config: ReproduceConfig
    paper: Paper
    outcomes: Mapping[str, ExperimentResult]
    skipped: tuple[SkippedDataset, ...]


def accuracy_table(results: Results, experiment: str) -> ResultTable:
    """One of Table 1, 2, 3 and Figure 3."""
    config, printed = results.config, results.paper.tables[experiment]
    datasets = tuple(source.name for source in config.sources if takes_part(experiment, source.name, results.paper))
    lines = _lines(results, experiment)
    rows = tuple(
        TableRow(
            line.name, line.meaning, line.printed, {name: _entry(results, experiment, line, name) for name in datasets}
        )
        for line in lines
    )
    notes = (*_notes(results, experiment, datasets), *_once(config, lines, rows))
    if experiment == "figure3":
        rows = (*rows, _mean_row(results, rows, datasets))
    beside = {}
    if any(name not in printed.datasets for name in datasets):
        beside = {
            name: {row.printed: number for row in rows if (number := printed.number(row.printed, name)) is not None}
            for name in PATTERN
        }
    title = printed.title.removesuffix(", in per cent").removesuffix(", accuracy in per cent")
    return ResultTable(experiment, title, datasets, rows, beside, notes)


def seed_values(results: Results, spec: Spec, dataset: str) -> tuple[list[ExperimentResult], str]:
    """The outcomes of a spec that are done, one for each seed; and why others are missing."""
    outcomes, reason = [], ""
    for seed in seeds_of(results.config, spec):
        outcome = results.outcomes.get(cell_name(dataset, spec, seed))
        if outcome is not None and outcome.state == "done":
            outcomes.append(outcome)
        elif outcome is not None and not reason:
            reason = f"seed {seed}: {outcome.error}"
    if not outcomes and not reason:
        fits = (s for s in results.skipped if s.dataset in ("", dataset) and s.system in ("", spec.name))
        reason = next((s.reason for s in fits), "not part of this run")
    return outcomes, reason


def _lines(results: Results, experiment: str) -> list[Line]:
    length = results.config.settings.method.prompt_length
    if experiment == "table1":
        return _table1(results)
    if experiment == "table2":
        return [Line(spec.name, MEANINGS[spec.name], spec, spec.name) for spec in TABLE2]
    if experiment == "table3":
        return [Line(str(one), "vectors in the soft prompt", of_length(one, length), str(one)) for one in LENGTHS]
    single = [Line(name, "this aspect alone, P trained for it", masp((name,), "trained"), name) for name in ASPECTS]
    kinds: tuple[tuple[str, Prompt], ...] = (("no", "none"), ("random", "random"))
    low = [
        Line(f"{name}, {prompt} prompt", f"this aspect alone, {prompt} P", masp((name,), kind))
        for name in LOW_LEVEL
        for prompt, kind in kinds
    ]
    ends = [Line("zero-shot", "the backbone alone", PLAIN, "zero-shot"), Line("MASP", "all six aspects", FULL, "MASP")]
    return [*ends[:1], *single, *low, *ends[1:]]


def _table1(results: Results) -> list[Line]:
    backbone = results.config.settings.backbone.id
    own = zero_shot_row(backbone) or ""
    lines = [Line(f"zero-shot ({own or portable(backbone)})", "the backbone alone", PLAIN, own)]
    lines += [
        Line(f"zero-shot ({name})", "another backbone", None, name, OTHER_BACKBONE) for name in BACKBONES if name != own
    ]
    behind = [name for name, other in OTHERS.items() if other.aspects]  # they build on MASP, and stand behind it
    for name, other in OTHERS.items():
        if name in behind:
            continue
        lines.append(Line(name, CATALOGUE[name].meaning, spec_of(name), other.paper))
    lines.append(Line("Emotion-LLaMA", "several encoders, LoRA", None, "Emotion-LLaMA", PREDICTIONS))
    taken = {line.printed for line in lines}
    lines += [
        Line(name, "", None, name, PREDICTIONS)
        for name in results.paper.tables["table1"].rows
        if name not in taken and name != "MASP"
    ]
    lines.append(Line("soft prompt (V+S)", "a soft prompt, no aspects", SOFT))
    lines.append(Line("MASP", "aspects and soft prompt", FULL, "MASP"))
    read = "annotated words read from the aspect tokens, added up beside the scores of V+S; a variant, not in the paper"
    lines += [Line(BOTTLENECK, read, spec_of(name)) for name in behind]
    return lines


def _entry(results: Results, experiment: str, line: Line, dataset: str) -> TableCell:
    paper = results.paper.tables[experiment].number(line.printed, dataset)
    if line.spec is None:
        return TableCell(paper=paper, reason=line.reason)
    outcomes, reason = seed_values(results, line.spec, dataset)
    values = tuple(_accuracy(outcome.figures) for outcome in outcomes)
    scaled = [outcome.figures.get("calibration_error_scaled") for outcome in outcomes]
    calibration = mean(one["value"] for one in scaled if one) if scaled and all(scaled) else None
    images = outcomes[0].figures["images"] if outcomes else 0
    seeds = tuple(int(outcome.cell.rpartition("/seed")[2]) for outcome in outcomes)
    return TableCell(
        values, images, paper, reason, calibration, seeds, _texts([outcome.figures for outcome in outcomes])
    )


def _accuracy(figures: Mapping[str, Any]) -> float:
    """The paper's measure: of generated texts the exact matches, else the share of right labels."""
    return figures.get("exact", figures)["accuracy"]["value"]


def _texts(figures: Sequence[Mapping[str, Any]]) -> Texts | None:
    if not figures or not all("exact" in one for one in figures):
        return None
    return Texts(
        mean(one["accuracy"]["value"] for one in figures),
        mean(one["unparsed"] / one["images"] for one in figures),
        mean(one["exact"]["unparsed"] / one["images"] for one in figures),
    )


def _mean_row(results: Results, rows: Sequence[TableRow], datasets: Sequence[str]) -> TableRow:
    """The mean of the single aspects with each seed that all of them have."""
    name, singles = "mean of single aspects", [row for row in rows if row.name in ASPECTS]
    entries = {}
    for dataset in datasets:
        paper = results.paper.tables["figure3"].number(name, dataset)
        result = [row.entries[dataset] for row in singles]
        accuracies = [dict(zip(entry.seeds, entry.values, strict=True)) for entry in result]
        seeds = tuple(seed for seed in accuracies[0] if all(seed in one for one in accuracies))
        if seeds:
            values = tuple(mean(one[seed] for one in accuracies) for seed in seeds)
            reason = next((entry.reason for entry in result if entry.reason), "")
            entries[dataset] = TableCell(values, result[0].images, paper, reason, seeds=seeds)
        else:
            entries[dataset] = TableCell(paper=paper, reason="not all of them are there")
    return TableRow(name, "", name, entries)


def facts_of(results: Results, dataset: str) -> Mapping[str, object]:
    """What its own cell says about a data set; empty where that failed."""
    outcome = results.outcomes.get(cell_name(dataset, DATA, results.config.seeds[0]))
    return outcome.figures if outcome is not None and outcome.state == "done" else {}


def _notes(results: Results, experiment: str, datasets: Sequence[str]) -> tuple[str, ...]:
    config, notes = results.config, []
    seeds = ", ".join(map(str, config.seeds))
    notes.append(
        f"Backbone {portable(config.settings.backbone.id)}. Mean ± standard deviation over the training seeds {seeds}."
    )
    notes.append("Brackets: 95 % interval (Wilson) for the number of test images; it says nothing about seeds.")
    notes.append("ECE, scaled: expected calibration error after temperature scaling on the validation split.")
    if config.reading == "generate":
        notes.append(GENERATED)
    if experiment == "table1":
        result = budgets(results, datasets)
        left_out = [one for one in OTHERS if all(lacking(config, config.source(name), spec_of(one)) for name in result)]
        notes += [budget_note(result, config.settings, config.others, left_out)] if result else []
    for name in datasets:
        facts = facts_of(results, name)
        if facts:
            notes.append(_facts_note(name, facts))
            notes += _size_note(config, name, facts)
    notes += [
        f"{skipped.dataset}: {skipped.reason}."
        for skipped in results.skipped
        if not skipped.system and takes_part(experiment, skipped.dataset, results.paper)
    ]
    return tuple(notes)


def _once(config: ReproduceConfig, lines: Sequence[Line], rows: Sequence[TableRow]) -> list[str]:
    """Which rows have one value because no seed can give them another, where the others have several."""
    names = [
        line.name
        for line, row in zip(lines, rows, strict=True)
        if line.spec is not None
        and not depends_on_seed(config, line.spec)
        and any(entry.values for entry in row.entries.values())
    ]
    if len(config.seeds) == 1 or not names:
        return []
    return [f"Run once, since nothing in them depends on a seed: {', '.join(names)}."]


def budgets(results: Results, datasets: Sequence[str]) -> dict[str, StepBudget]:
    """How long systems learn on each data set that was looked at."""
    result: dict[str, StepBudget] = {}
    for name in datasets:
        facts = facts_of(results, name)
        splits = facts.get("splits")
        examples = facts.get("learned_from", splits.get("train") if isinstance(splits, Mapping) else None)
        if isinstance(examples, int) and examples:
            result[name] = step_budget(results.config.settings.prompt, examples)
    return result


def _size_note(config: ReproduceConfig, name: str, facts: Mapping[str, object]) -> list[str]:
    """Which images the rows of a table read in different sizes; nothing where there are none."""
    shrunk, side = facts.get("shrunk"), config.side_of(name, alone=False)
    if not shrunk or config.side_of(name, alone=True) == side:
        return []
    return [
        f"{name}: {shrunk} test images have a side of more than {side} pixels. Rows of the backbone alone read them as "
        "its own processor says, all others shrunk to that side first."
    ]


def _facts_note(name: str, facts: Mapping[str, object]) -> str:
    splits, majority, ceiling = facts["splits"], facts["majority"], facts.get("ceiling")
    assert isinstance(splits, Mapping)
    assert isinstance(majority, Mapping)
    sizes = ", ".join(f"{split} {count:,}" for split, count in splits.items())
    text = f"{name}: {sizes} images (split: {facts['split_by']}); always the most frequent label "
    text += f"{100 * majority['value']:.1f} %, a guess {100 * float(str(facts['guess'])):.1f} %"
    if isinstance(ceiling, Mapping):
        text += f", the best that anyone could reach {100 * ceiling['expected']:.1f} %"
    return text + "."
