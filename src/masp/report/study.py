"""The study on the page: headlines, reference lines, agreement with the truth, confusion."""

from collections.abc import Sequence
from dataclasses import dataclass

from masp.evaluation.metrics import Interval
from masp.report.formatting import share, words
from masp.report.schema import Ablation, Confusion, ExplanationTruth, ReportData


@dataclass(frozen=True)
class Headline:
    """One large number at the top of the page and the words under it."""

    value: str
    words: str


@dataclass(frozen=True)
class Cell:
    """One cell of the confusion matrix: its count, its share of the row, and whether it is on the diagonal."""

    count: int
    share: float
    right: bool


def chapters(data: ReportData) -> list[tuple[str, str]]:
    """Anchors and names of the sections that are there, in their order."""
    every: Sequence[tuple[str, str, object]] = (
        ("table-2", "What each part adds", data.ablation),
        ("pictures", "Image by image", data.samples),
        ("failures", "Unreadable images", data.failures),
        ("aspects", "What stage 1 reads", data.aspect_scores),
        ("explanations", "Are the explanations true?", data.explanations),
        ("confusion", "Which labels are mixed up", data.confusion),
        ("training", "Training", data.curves),
        ("provenance", "How this was made", data.provenance),
    )
    return [(anchor, name) for anchor, name, present in every if present]


def headlines(data: ReportData) -> list[Headline]:
    """The few numbers that a reader should take away."""
    found: list[Headline] = []
    if data.ablation and data.ablation.rows:
        first, last = data.ablation.rows[0], data.ablation.rows[-1]
        found.append(Headline(f"{share(last.accuracy.value)} %", f"right with everything ({last.name})"))
        found.append(Headline(f"{share(first.accuracy.value)} %", f"right with {first.meaning} ({first.name})"))
        if data.ablation.ceiling is not None:
            found.append(Headline(f"{share(data.ablation.ceiling)} %", "the ceiling: the best anyone could reach"))
    if data.explanations and data.explanations.cause:
        truth = "of right answers name the true main cause"
        found.append(Headline(f"{share(data.explanations.cause.value)} %", truth))
    return found


def reference_lines(ablation: Ablation | None) -> list[tuple[str, str, float]]:
    """Name, meaning and share of what the rows are read against."""
    if ablation is None:
        return []
    lines = (
        ("ceiling", "the best anyone could reach: the label itself is drawn by chance", ablation.ceiling),
        ("majority", "always the most frequent label", ablation.majority),
    )
    return [(name, meaning, value) for name, meaning, value in lines if value is not None]


def agreements(truth: ExplanationTruth | None) -> list[tuple[str, Interval, float | None]]:
    """Each check of the explanations, how often it holds, and how often guessing would."""
    if truth is None:
        return []
    name = "the largest effect is the true main cause (right answers)"
    cause = [(name, truth.cause, truth.cause_by_guess)] if truth.cause else []
    pointing = [
        (f"the {words(aspect)} heatmap peaks on the right thing", value, truth.pointing_by_guess.get(aspect))
        for aspect, value in truth.pointing.items()
    ]
    return [*cause, *pointing]


def confusion_columns(confusion: Confusion | None) -> list[str]:
    """Predicted labels, and a column for unreadable answers where there were any."""
    if confusion is None:
        return []
    extra = ["none of them"] if any(sum(row[len(confusion.labels) :]) for row in confusion.counts) else []
    return [*confusion.labels, *extra]


def confusion_rows(confusion: Confusion | None) -> list[tuple[str, list[Cell]]]:
    """Each true label with its cells."""
    if confusion is None:
        return []
    columns = len(confusion_columns(confusion))
    return [
        (label, [Cell(n, n / max(sum(counts), 1), i == place) for i, n in enumerate(counts[:columns])])
        for place, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=True))
    ]
