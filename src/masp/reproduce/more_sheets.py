"""The sheets that are no tables of accuracies: paired differences, trained numbers, attention."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from masp.adapters import portable
from masp.core.aspects import ASPECTS
from masp.core.errors import DataError
from masp.evaluation import metrics
from masp.evaluation.metrics import PairedComparison, spread_of
from masp.evaluation.predictions import PREDICTIONS, read_predictions
from masp.reproduce.dag import ExperimentResult, cell_name, seeds_of, takes_part
from masp.reproduce.render import Sheet, percent
from masp.reproduce.runner import of_paper_backbone, result_folder
from masp.reproduce.specs import ATTENTION, FULL, PARAMETERS, PLAIN, SOFT, TABLE2, Spec, recipe_of
from masp.reproduce.tables import Results, seed_values

PAIRS: Mapping[str, tuple[tuple[Spec, Spec], ...]] = {
    "table1": tuple((base, recipe_of("cues")) for base in (SOFT, FULL)),
    "table2": tuple((base, recipe) for base in (PLAIN, SOFT) for recipe in TABLE2[TABLE2.index(base) + 1 :]),
}
"""Experiment → rows that are compared: what the cue head adds; what every part of MASP adds to V and to V+S."""

COMPARED = {"table1": "what the cue head adds", "table2": "rows of Table 2"}


@dataclass(frozen=True)
class DifferenceRow:
    """How much more of the same images one system gets right than another.

    Attributes:
        seeds: of training.
        each: the difference with each of them.
        whole: that of the means over the seeds.
    """

    seeds: tuple[int, ...]
    each: tuple[PairedComparison, ...]
    whole: PairedComparison


def differences_of(experiment: str) -> str:
    """The name of the sheet with the paired differences of an experiment."""
    return f"{experiment}-differences"


def differences(results: Results, experiment: str) -> Sheet | None:
    """Paired differences between rows, on the same images with the same seed; None where there are none."""
    rows, lines = [], []
    for dataset, base, recipe in _pairs(results, experiment):
        found = paired(results, dataset, base, recipe)
        if found is not None:
            rows.append(_difference_row(dataset, base, recipe, found))
            seeds = [("all", found.whole), *zip(found.seeds, found.each, strict=True)]
            lines += [_difference_line(dataset, base, recipe, seed, one) for seed, one in seeds]
    if not rows:
        return None
    head = ("data set", "difference", "points", "± sd", "each seed", "95 % interval over images, all seeds", "p")
    note = (
        "Points of accuracy on the same images; an image counts with the share of the seeds that got it right. "
        "Interval: bootstrap over images; p: exact sign-flip test over images, with one seed McNemar's. Neither says "
        "anything about seeds that were not trained."
    )
    title = f"Paired differences: {COMPARED[experiment]}"
    return Sheet(differences_of(experiment), title, head, tuple(rows), (note,), tuple(lines))


def paired(results: Results, dataset: str, base: Spec, recipe: Spec) -> DifferenceRow | None:
    """How much more of the same images `recipe` gets right than `base`; None where the answers are not there."""
    seeds, truth, said = list[int](), list[tuple[str, str]](), list[tuple[list[str | None], list[str | None]]]()
    for seed, names in _cells(results, dataset, base, recipe):
        try:
            first, second = (read_predictions(result_folder(results.job, name) / PREDICTIONS) for name in names)
        except DataError:
            continue  # the work folder is gone; the accuracies are still there
        truth = truth or [(one.image, one.truth) for one in first]
        if all([(one.image, one.truth) for one in answers] == truth for answers in (first, second)):
            seeds.append(seed)
            said.append(([one.counted for one in first], [one.counted for one in second]))
    if not seeds:
        return None
    labels = [label for _, label in truth]
    each = tuple(metrics.compare(labels, *both, seed) for seed, both in zip(seeds, said, strict=True))
    whole = metrics.compare_seeds(labels, [one for one, _ in said], [one for _, one in said])
    return DifferenceRow(tuple(seeds), each, whole)


def compared(results: Results, experiment: str) -> dict[str, str]:
    """The cells that paired differences are made of: name → hash of what decided the figures, and of these."""
    names = {name for pair in _pairs(results, experiment) for _, both in _cells(results, *pair) for name in both}
    return {name: _hash(results.outcomes[name]) for name in sorted(names)}


def unanswered(results: Results, experiment: str) -> bool:
    """Whether the answers of a cell that is done are gone, so that its differences cannot be computed any more."""
    return any(not (result_folder(results.job, name) / PREDICTIONS).is_file() for name in compared(results, experiment))


def _pairs(results: Results, experiment: str) -> list[tuple[str, Spec, Spec]]:
    """Data set, and two rows that are compared."""
    pairs = PAIRS.get(experiment, ())
    sources = [one.name for one in results.job.sources if pairs and takes_part(experiment, one.name, results.paper)]
    return [(name, *pair) for name in sources for pair in pairs]


def _cells(results: Results, dataset: str, base: Spec, recipe: Spec) -> list[tuple[int, tuple[str, str]]]:
    """Each seed with which both rows are done, and their cells; what is run once stands beside every seed."""
    job, both = results.job, (base, recipe)
    once = all(len(seeds_of(job, one)) == 1 for one in both)
    found = []
    for seed in job.seeds[:1] if once else job.seeds:
        seeds = (seed if seed in seeds_of(job, one) else seeds_of(job, one)[0] for one in both)
        first, second = (cell_name(dataset, one, own) for one, own in zip(both, seeds, strict=True))
        outcomes = [results.outcomes.get(name) for name in (first, second)]
        if all(outcome is not None and outcome.state == "done" for outcome in outcomes):
            found.append((seed, (first, second)))
    return found


def _hash(outcome: ExperimentResult) -> str:
    content = [outcome.identity, outcome.figures]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parameters(results: Results) -> Sheet:
    """Table 4: what is trained, on the paper's backbone by arithmetic and on this one."""
    ours, _ = seed_values(results, PARAMETERS, results.job.sources[0].name)
    here = ours[0].figures if ours else {}
    printed, rows, lines = results.paper.parameters, [], []
    counted = of_paper_backbone()
    known: Sequence[tuple[str, str, str]] = (
        ("QLoRA, rank 8 on query and value projections", "lora", "Instruction tuning"),
        ("soft prompt (stage 2)", "prompt", "Soft prompt tuning"),
        ("aspect modules (stage 1), paper", "aspects paper", ""),
        ("aspect modules (stage 1), released", "aspects released", ""),
        ("aspect modules (stage 1), as set for this run", "aspects", ""),
    )
    for name, key, row in known:
        there, this, paper = counted.get(key), here.get(key), printed.get(row)
        rows.append((name, *(_count(number) for number in (there, paper, this))))
        columns = {"qwen2_vl_7b": there, "paper": paper, "this_backbone": this}
        lines.append({"what": name} | {key: "" if value is None else value for key, value in columns.items()})
    head = (
        "trained",
        "Qwen2-VL-7B, counted",
        "Qwen2-VL-7B, printed in the paper",
        portable(results.job.config.backbone.id),
    )
    notes = (
        "The paper prints no number for stage 1, which is trained once for each backbone, not for each task.",
        "Soft prompt: number of vectors times the width of the language model.",
    )
    return Sheet("table4", "Table 4: trainable parameters", head, tuple(rows), notes, tuple(lines))


def attention(results: Results) -> Sheet | None:
    """Figure 4 as numbers: mean over the test images and the seeds; None where nothing was measured."""
    rows, lines, notes = [], [], []
    for source in results.job.sources:
        if not takes_part("figure4", source.name, results.paper):
            continue
        found, reason = seed_values(results, ATTENTION, source.name)
        if reason:
            notes.append(f"{source.name}: {len(found)} seeds only ({reason}).")
        for aspect in ASPECTS if found else ():
            raw = [outcome.figures["raw"][aspect] for outcome in found]
            shares = [outcome.figures["normalised"][aspect] for outcome in found]
            spread = [outcome.figures["spread"][aspect] for outcome in found]
            seeds = spread_of(shares)
            sd = "" if seeds.deviation is None else percent(seeds.deviation)
            each = " · ".join(percent(share) for share in shares)
            rows.append((source.name, aspect, f"{mean(raw):.4f}", percent(seeds.mean), sd, each, percent(mean(spread))))
            lines.append(
                {
                    "dataset": source.name,
                    "aspect": aspect,
                    "raw": mean(raw),
                    "share": seeds.mean,
                    "images_sd": mean(spread),
                }
            )
    if not rows and not notes:
        return None
    head = ("data set", "aspect", "raw weight", "share, %", "± sd of seeds", "each seed", "sd over images")
    notes += [
        "Final layer, mean over heads and prompt tokens, summed over an aspect's tokens; share: of all aspects.",
        "Attention shows what was read, not what decided.",
    ]
    return Sheet(
        "figure4",
        "Figure 4: attention from the soft prompt to each aspect",
        head,
        tuple(rows),
        tuple(notes),
        tuple(lines),
    )


def _difference_row(dataset: str, base: Spec, recipe: Spec, found: DifferenceRow) -> tuple[str, ...]:
    points, whole = spread_of([100 * one.difference for one in found.each]), found.whole
    spread = "" if points.deviation is None else f"{points.deviation:.1f}"
    each = " · ".join(f"{value:+.1f}" for value in points.values)
    interval = f"[{100 * whole.low:+.1f}, {100 * whole.high:+.1f}]"
    name = f"{recipe.name} − {base.name}"
    return (dataset, name, f"{100 * whole.difference:+.1f}", spread, each, interval, f"{whole.p_value:.2g}")


def _difference_line(dataset: str, base: Spec, recipe: Spec, seed: int | str, one: PairedComparison) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "system": recipe.name,
        "minus": base.name,
        "seed": seed,
        "difference": one.difference,
        "low": one.low,
        "high": one.high,
        "p": one.p_value,
    }


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
