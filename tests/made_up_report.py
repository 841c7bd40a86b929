"""A study that never happened, to try the report on: every number in it is different, so that a mix-up shows."""

from pathlib import Path

from PIL import Image

from masp.core.aspects import ASPECTS
from masp.evaluation.metrics import Interval, PairedComparison
from masp.report.schema import (
    Ablation,
    AblationRow,
    AspectScore,
    AspectSight,
    Confusion,
    Curve,
    Difference,
    ExplanationTruth,
    Provenance,
    ReportData,
    Sample,
    Step,
)

ROWS, COLUMNS = 3, 5


def heatmap(row: int, column: int) -> tuple[tuple[float, ...], ...]:
    """A map with half of its attention in one cell (counted from 0)."""
    rest = 0.5 / (ROWS * COLUMNS - 1)
    return tuple(tuple(0.5 if (r, c) == (row, column) else rest for c in range(COLUMNS)) for r in range(ROWS))


def sight(place: int, effect: float | None) -> AspectSight:
    return AspectSight(ASPECTS[place], f"answer {place}", effect, heatmap(place % ROWS, place % COLUMNS), "answer 0")


def sample(name: str = "one.png", picture: Path | Image.Image | None = None) -> Sample:
    effects = (0.31, 1.37, -0.43, 0.02, -0.07, None)
    return Sample(
        name=name,
        image=picture or Image.new("RGB", (40, 24), (200, 120, 40)),
        label="fear",
        probabilities={"awe": 0.123, "fear": 0.701, "joy": 0.176},
        sights=tuple(sight(place, effect) for place, effect in enumerate(effects)),
        answer="dread",
        truth="awe",
        expected={"awe": 0.617, "fear": 0.353, "joy": 0.03},
        cause="scene",
        prompt_attention={"object": 0.03, "scene": 0.01},
    )


def ablation() -> Ablation:
    shares = (0.413, 0.437, 0.617, 0.373, 0.677)
    names = ("V", "V+A", "V+S", "V+A+rS", "V+A+S")
    rows = (
        AblationRow(name, f"meaning of {name}", Interval(value, value - 0.021, value + 0.023), value - 0.057)
        for name, value in zip(names, shares, strict=True)
    )
    gain = Difference("V+A+S over V", PairedComparison(0.264, 0.239, 0.289, 1e-9, 11, 101))
    return Ablation(tuple(rows), 2003, ceiling=0.793, majority=0.197, differences=(gain,))


def study() -> ReportData:
    """A report with every part."""
    return ReportData(
        title="A made-up study",
        summary="Nothing here was measured.",
        ablation=ablation(),
        aspect_scores=(AspectScore("scene", "accuracy", 0.971, 0.883), AspectScore("object", "list F1", 0.719, None)),
        confusion=Confusion(("awe", "fear", "joy"), ((211, 7, 3, 0), (5, 223, 13, 0), (17, 19, 227, 29))),
        explanations=ExplanationTruth(Interval(0.643, 0.611, 0.673), {"scene": Interval(0.987, 0.981, 0.991)}, 0.317),
        samples=(sample("one.png"), sample("two.png")),
        left_out=1234,
        failures=(("broken.jpg", "it is truncated"),),
        curves=(Curve("stage 1", (10, 20, 30), (1.9, 1.1, 0.7)),),
        provenance=Provenance(
            (("torch", "9.8.7"), ("seed", "4711")),
            ("masp demo --out here",),
            (Step("training", 83.0, "500 steps"), Step("pictures", 4.2)),
        ),
    )
