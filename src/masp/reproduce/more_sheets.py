"""The sheets that are no tables of accuracies: paired differences, trained numbers, attention."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from masp.adapters import portable
from masp.aspects import ASPECTS
from masp.errors import DataError
from masp.evaluation import metrics
from masp.evaluation.metrics import Paired
from masp.evaluation.predictions import PREDICTIONS, read_predictions
from masp.evaluation.spread import spread_of
from masp.reproduce.cells import cell_name
from masp.reproduce.counts import of_paper_backbone
from masp.reproduce.planning import seeds_of, takes_part
from masp.reproduce.recipes import ATTENTION, PARAMETERS, TABLE2, Recipe
from masp.reproduce.sheets import Sheet, percent
from masp.reproduce.tables import Results, seed_values
from masp.reproduce.workshop import result_folder

BASES = (TABLE2[0], TABLE2[2])
"""Rows of Table 2 that the others are compared with: V and V+S."""


def differences(results: Results) -> Sheet | None:
    """Paired differences between rows of Table 2, on the same images with the same seed; None where there are none."""
    rows, lines = [], []
    for source in results.job.sources:
        if not takes_part("table2", source.name, results.paper):
            continue
        for base in BASES:
            for recipe in TABLE2[TABLE2.index(base) + 1 :]:
                found = paired(results, source.name, base, recipe)
                if found:
                    rows.append(_difference_row(source.name, base, recipe, found))
                    lines += [_difference_line(source.name, base, recipe, seed, one) for seed, one in found]
    if not rows:
        return None
    head = ("data set", "difference", "points", "± sd", "each seed", "95 % interval, first seed", "McNemar p")
    note = (
        "Points of accuracy on the same images. Interval: bootstrap over images; p: exact McNemar test, the largest "
        "of all seeds."
    )
    return Sheet(
        "table2-differences", "Paired differences between rows of Table 2", head, tuple(rows), (note,), tuple(lines)
    )


def paired(results: Results, dataset: str, base: Recipe, recipe: Recipe) -> list[tuple[int, Paired]]:
    """Each seed with how much more of the same images `recipe` gets right than `base`."""
    found = []
    for seed in results.job.seeds:
        names = [
            cell_name(dataset, one, seed if seed in seeds_of(results.job, one) else seeds_of(results.job, one)[0])
            for one in (base, recipe)
        ]
        outcomes = [results.outcomes.get(name) for name in names]
        if not all(outcome is not None and outcome.state == "done" for outcome in outcomes):
            continue
        try:
            first, second = (read_predictions(result_folder(results.job, name) / PREDICTIONS) for name in names)
        except DataError:
            continue  # the work folder is gone; the accuracies are still there
        truth = [one.truth for one in first]
        if [one.image for one in first] == [one.image for one in second]:
            said = ([one.predicted for one in first], [one.predicted for one in second])
            found.append((seed, metrics.compare(truth, *said, seed)))
        if len(seeds_of(results.job, recipe)) == len(seeds_of(results.job, base)) == 1:
            break
    return found


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
    """Figure 4 as numbers: mean over the test pictures and the seeds; None where nothing was measured."""
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


def _difference_row(dataset: str, base: Recipe, recipe: Recipe, found: list[tuple[int, Paired]]) -> tuple[str, ...]:
    points = spread_of([100 * one.difference for _, one in found])
    first = found[0][1]
    spread = "" if points.deviation is None else f"{points.deviation:.1f}"
    each = " · ".join(f"{value:+.1f}" for value in points.values)
    interval = f"[{100 * first.low:+.1f}, {100 * first.high:+.1f}]"
    p_value = max(one.p_value for _, one in found)
    name = f"{recipe.name} − {base.name}"
    return (dataset, name, f"{points.mean:+.1f}", spread, each, interval, f"{p_value:.2g}")


def _difference_line(dataset: str, base: Recipe, recipe: Recipe, seed: int, one: Paired) -> dict[str, Any]:
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
