"""What the demo found, as a report."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masp.core.runtime import processor
from masp.demo.measure import DemoMeasurements, Table2
from masp.demo.pictures import DemoPicture
from masp.evaluation import metrics
from masp.evaluation.explanation_metrics import AspectQuality
from masp.predictor import Prediction
from masp.report import sample_of
from masp.report.schema import (
    Ablation,
    AblationRow,
    AspectScore,
    Confusion,
    Curve,
    Difference,
    ExplanationTruth,
    Provenance,
    ReportData,
    Sample,
    Step,
    grouped,
    share,
)

GAINS = ("V+S - V", "V+A - V", "V+A+S - V", "V+A+S - V+S")
"""The differences that the report shows, of all that the table has."""

BEST = "V+A+S"


@dataclass(frozen=True)
class Background:
    """What the result depended on.

    Attributes:
        out: the folder of the demo.
        provenance: as the evaluation records it.
        curves: the loss of each training run.
        steps: the time of each step.
    """

    out: Path
    provenance: Mapping[str, Any]
    curves: tuple[Curve, ...]
    steps: tuple[Step, ...]


def report_of(
    measured: DemoMeasurements,
    labels: Sequence[str],
    pictures: Sequence[tuple[DemoPicture, Prediction]],
    background: Background,
) -> ReportData:
    """The demo's report."""
    return ReportData(
        title="Which emotion, and why",
        summary=summary_of(measured),
        ablation=_ablation(measured),
        aspect_scores=tuple(_aspect_score(one.aspect, one) for one in measured.quality),
        confusion=_confusion(measured.table, labels),
        explanations=_explanations(measured),
        samples=tuple(sample(picture, prediction) for picture, prediction in pictures),
        curves=background.curves,
        provenance=_provenance(background, measured.table.random_seed),
    )


def summary_of(measured: DemoMeasurements) -> str:
    """The result in plain words, whatever it is."""
    rows = {row.name: f"{share(row.accuracy.value)}\N{NO-BREAK SPACE}%" for row in measured.table.rows}
    top = f"{share(measured.ceiling.expected)}\N{NO-BREAK SPACE}%"
    return (
        f"A small, frozen vision-language model looked at {grouped(len(measured.table.truth))} emoji scenes that it "
        f"had never seen and named the emotion of each. By itself it was right in {rows['V']} of them; with a soft "
        f"prompt trained on other scenes, in {rows['V+S']}; with six aspects and a soft prompt trained on top of them, "
        f"in {rows[BEST]}. The emotion of a scene is drawn by chance, so nobody could be right in more than about "
        f"{top}."
    )


def sample(picture: DemoPicture, prediction: Prediction) -> Sample:
    """A shipped scene with what was said about it and what is true of it."""
    said = sample_of(prediction, picture.path, picture.label)
    sights = tuple(replace(seen, truth=picture.annotations.get(seen.aspect, "")) for seen in said.sights)
    return replace(said, name=picture.path.name, sights=sights, expected=picture.probabilities, cause=picture.cause)


def loss_curve_of(name: str, run: Path) -> Curve:
    """The loss that a training run wrote into its metrics."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    points = [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]
    return Curve(name, tuple(step for step, _ in points), tuple(loss for _, loss in points))


def commands(out: Path) -> tuple[str, ...]:
    """What was done, and what can be done with the result."""
    return (
        f"masp demo --out {out}",
        f"masp predict {out / 'pictures'} --adapter {out / 'prompt'} --report {out / 'pictures.html'}",
        f"masp evaluate --adapter {out / 'prompt'} --data {out / 'data'}",
    )


def _ablation(measured: DemoMeasurements) -> Ablation:
    table = measured.table
    gains = {difference.name: difference.paired for difference in table.differences}
    return Ablation(
        rows=tuple(AblationRow(row.name, row.meaning, row.accuracy, row.macro_f1) for row in table.rows),
        images=len(table.truth),
        ceiling=measured.ceiling.expected,
        majority=table.majority.value,
        differences=tuple(Difference(name.replace(" - ", " over "), gains[name]) for name in GAINS),
    )


def _aspect_score(aspect: str, quality: AspectQuality) -> AspectScore:
    """Objects are lists, so what counts is how many of the things are named."""
    if aspect == "object":
        return AspectScore(aspect, "F1 of the list", quality.things.f1, quality.backbone_things.f1)
    return AspectScore(aspect, "exactly right", quality.exact.value, quality.backbone_exact.value)


def _confusion(table: Table2, labels: Sequence[str]) -> Confusion:
    counts = metrics.confusion(table.truth, table.row(BEST).predicted, labels)
    return Confusion(tuple(labels), tuple(map(tuple, counts)))


def _explanations(measured: DemoMeasurements) -> ExplanationTruth:
    own, words = measured.explanations, measured.concepts
    return ExplanationTruth(
        own.cause,
        own.pointing,
        own.cause_by_guess,
        own.pointing_by_guess,
        None if words is None else words.cause,
        None if words is None else words.cause_by_guess,
    )


def _provenance(background: Background, seed: int) -> Provenance:
    known = background.provenance
    backbone, adapter, data = known["backbone"], known["adapter"], known["data"]
    seeds = ", ".join(f"{name} {own}" for name, own in adapter["seeds"].items())
    facts = {
        "versions": ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
        "backbone": f"{backbone['name']} ({backbone['dtype']} on {backbone['device']}), {backbone['fingerprint']}",
        "adapter": f"sha256 {adapter['tensors_sha256']}",
        "data": f"{data['name']}, sha256 {data['fingerprint']}",
        "seeds": f"images and untrained prompt {seed}, {seeds}",
        "question": known["question"],
        "machine": f"{processor()}, {platform.system()}, {os.cpu_count()} cores, {known['threads']} threads",
    }
    return Provenance(tuple(facts.items()), commands(background.out), background.steps)
