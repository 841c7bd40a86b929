"""The page: templates filled and written, the study's tables, one image with what each aspect saw drawn over it.

It loads nothing: styles, plots and images are inside it, and a content policy in its head forbids anything else.
Names, labels and answers come from outside and are escaped wherever they appear.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from PIL import Image, ImageStat

from masp import __version__
from masp.core.atomic_io import write_file
from masp.core.errors import ImageError, MaspError
from masp.data.images import open_image
from masp.evaluation.metrics import Interval
from masp.report import plots
from masp.report.plots import attention_veil, cell_lines
from masp.report.schema import (
    FILTERS,
    Ablation,
    AspectSight,
    Confusion,
    ExplanationTruth,
    ReportData,
    Sample,
    decisive,
    share,
    verdict,
    whole_image_decided,
    words,
)

if TYPE_CHECKING:
    from masp.model.prediction import Prediction

LONG_SIDE = 560
"""Longest side of an embedded image, in pixels; larger ones are reduced."""
LOSSLESS_SIDE = 256
"""Up to this side an image is embedded without loss."""
MOST_LINES = 16
"""A map of more rows or columns is drawn without the borders of its cells, which would cover it."""
DARK = 60
"""Mean grey level, of 255, below which an image counts as dark."""


@dataclass(frozen=True)
class ImageView:
    """An embedded image: a data URI (None where it could not be read), size in pixels, and whether it is dark."""

    uri: str | None = None
    width: int = 1
    height: int = 1
    dark: bool = False


@dataclass(frozen=True)
class AspectView:
    """A sight, drawn: whether it decided, the length of its bar in [0, 0.5], the veil, the cells, the peak in words."""

    sight: AspectSight
    decided: bool
    reach: float
    veil: str | None = None
    cells: str = ""
    peak: str = ""


@dataclass(frozen=True)
class WholeView:
    """What the image as a whole did beside its aspects, drawn: effect, whether it decided, length of its bar."""

    effect: float
    decided: bool
    reach: float


@dataclass(frozen=True)
class PromptAttentionShare:
    """The soft prompt's attention to one aspect: of all its attention, and its share among the aspects."""

    aspect: str
    raw: float
    share: float


@dataclass(frozen=True)
class SampleView:
    """A sample, drawn; labels from the most probable to the least."""

    index: int
    sample: Sample
    verdict: str
    ranked: list[tuple[str, float]]
    sights: list[AspectView]
    whole: WholeView | None
    looks: list[PromptAttentionShare]
    image: ImageView


def sample_of(prediction: "Prediction", image: Path | Image.Image, truth: str | None = None) -> Sample:
    """What the page shows of one prediction."""
    readings = prediction.aspects.items()
    looks = prediction.prompt_attention
    return Sample(
        name=prediction.image,
        image=image,
        label=prediction.label,
        probabilities=prediction.probabilities,
        sights=tuple(AspectSight(aspect, seen.answer, seen.effect, seen.attention) for aspect, seen in readings),
        answer=prediction.answer,
        truth=truth,
        prompt_attention=looks.raw if looks else None,
        warning=prediction.warning,
        attribution=prediction.attribution or "leave_one_out",
        image_effect=prediction.image_effect,
    )


def sample_view(index: int, sample: Sample, image: ImageView | None = None) -> SampleView:
    """A sample as the page shows it; `index` makes its anchors unique, `image` is its own where it is embedded."""
    image, first = image or embedded(sample.image), decisive(sample)
    known = any(sight.effect is not None for sight in sample.sights)
    whole = sample.image_effect if known else None
    reach = max([abs(sight.effect or 0.0) for sight in sample.sights] + [abs(whole or 0.0), 0.5])
    raw = sample.prompt_attention or {}
    total = sum(raw.values()) or 1.0
    return SampleView(
        index=index,
        sample=sample,
        verdict=verdict(sample),
        ranked=sorted(sample.probabilities.items(), key=lambda item: -item[1]),
        sights=[_sight_view(sight, sight is first, reach, image) for sight in sample.sights],
        whole=None if whole is None else WholeView(whole, whole_image_decided(sample), 0.5 * abs(whole) / reach),
        looks=[PromptAttentionShare(aspect, value, value / total) for aspect, value in raw.items()],
        image=image,
    )


def _sight_view(sight: AspectSight, decided: bool, longest: float, image: ImageView) -> AspectView:
    reach = 0.5 * abs(sight.effect or 0.0) / longest
    if not sight.attention:
        return AspectView(sight, decided, reach)
    rows, columns = len(sight.attention), len(sight.attention[0])
    weights = [
        (weight, row, column) for row, line in enumerate(sight.attention, 1) for column, weight in enumerate(line, 1)
    ]
    weight, row, column = max(weights, key=lambda cell: cell[0])
    peak = f"strongest in row {row} of {rows}, column {column} of {columns}, with {share(weight)} % of the attention"
    veil = _uri(attention_veil(sight.attention, image.dark), "png")
    lines = cell_lines(rows, columns, image.width, image.height) if max(rows, columns) <= MOST_LINES else ""
    return AspectView(sight, decided, reach, veil, lines, peak)


def embedded(source: Path | Image.Image, longest: int = LONG_SIDE, lossless: int = LOSSLESS_SIDE) -> ImageView:
    """The image, reduced and embedded: without loss where it is small, as JPEG where it is a photograph's size.

    Args:
        source: the file, or the image itself.
        longest: side, in pixels, to which a larger image is reduced.
        lossless: an image up to this side is embedded without loss.
    """
    try:
        image = source if isinstance(source, Image.Image) else open_image(source, longest)
    except ImageError:
        return ImageView()
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind = "png" if max(image.size) <= lossless else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, quality=88)
    dark = ImageStat.Stat(image.convert("L")).mean[0] < DARK
    return ImageView(_uri(buffer.getvalue(), kind), *image.size, dark)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


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
    result: list[Headline] = []
    if data.ablation and data.ablation.rows:
        first, last = data.ablation.rows[0], data.ablation.rows[-1]
        result.append(Headline(f"{share(last.accuracy.value)} %", f"right with everything ({last.name})"))
        result.append(Headline(f"{share(first.accuracy.value)} %", f"right with {first.meaning} ({first.name})"))
        if data.ablation.ceiling is not None:
            result.append(Headline(f"{share(data.ablation.ceiling)} %", "the ceiling: the best anyone could reach"))
    if data.explanations and data.explanations.cause:
        targets = "of right answers name the true main cause"
        result.append(Headline(f"{share(data.explanations.cause.value)} %", targets))
    return result


def reference_lines(ablation: Ablation | None) -> list[tuple[str, str, float]]:
    """Name, meaning and share of what the rows are read against."""
    if ablation is None:
        return []
    lines = (
        ("ceiling", "the best anyone could reach: the label itself is drawn by chance", ablation.ceiling),
        ("majority", "always the most frequent label", ablation.majority),
    )
    return [(name, meaning, value) for name, meaning, value in lines if value is not None]


def agreements(targets: ExplanationTruth | None) -> list[tuple[str, Interval, float | None]]:
    """Each check of the explanations, how often it holds, and how often guessing would."""
    if targets is None:
        return []
    cause = [(f"{name} (right answers)", value, guess) for name, value, guess in targets.causes()]
    pointing = [
        (f"the {words(aspect)} heatmap peaks on the right thing", value, targets.pointing_by_guess.get(aspect))
        for aspect, value in targets.pointing.items()
    ]
    return [*cause, *pointing]


def confusion_table(
    labels: Sequence[str], counts: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], list[tuple[str, tuple[Cell, ...]]]]:
    """The predicted labels, with a column for unreadable answers where there were any, and each true label's cells."""
    extra = ("none of them",) if any(sum(row[len(labels) :]) for row in counts) else ()
    columns = (*labels, *extra)
    rows = [
        (label, tuple(Cell(n, n / max(sum(row), 1), i == index) for i, n in enumerate(row[: len(columns)])))
        for index, (label, row) in enumerate(zip(labels, counts, strict=True))
    ]
    return columns, rows


def write_report(file: Path, data: ReportData) -> None:
    """Writes the page, whole or not at all; folders on the way are made.

    Raises:
        MaspError: the file cannot be written.
    """
    write_page(file, render(data))


def write_page(file: Path, page: str) -> None:
    """Writes a page that is rendered already, whole or not at all; folders on the way are made.

    Raises:
        MaspError: the file cannot be written.
    """
    content = page.encode("utf-8", "backslashreplace")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MaspError(f"the report {file} cannot be written ({reason})", "", "Name another file.") from error


def render(data: ReportData) -> str:
    """The page as text."""
    rows = data.ablation.rows if data.ablation else ()
    confused = data.confusion or Confusion((), ())
    confusion_columns, confusion_rows = confusion_table(confused.labels, confused.counts)
    return fill(
        "report.html.j2",
        data=data,
        title=data.title,
        summary=data.summary,
        headlines=headlines(data),
        chapters=chapters(data),
        best=max(rows, key=lambda row: row.accuracy.value, default=None),
        with_f1=any(row.macro_f1 is not None for row in rows),
        reference_lines=reference_lines(data.ablation),
        agreements=agreements(data.explanations),
        confusion_columns=confusion_columns,
        confusion_rows=confusion_rows,
        plots=_plots(data),
        curve_plots=[(curve, plots.loss_curve(curve).decode()) for curve in data.curves],
        views=(sample_view(index, sample) for index, sample in enumerate(data.samples, start=1)),
    )


def fill(template: str, **values: object) -> str:
    """A template of the package with these values; every text among them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("masp"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(version=__version__, **values)


def _plots(data: ReportData) -> dict[str, str]:
    """The drawings that stand beside tables, as SVG elements; matplotlib escapes the names inside them."""
    drawn: dict[str, str] = {}
    if data.ablation:
        drawn["ablation"] = plots.ablation_bars(data.ablation).decode()
    if data.aspect_scores:
        drawn["aspects"] = plots.aspect_bars(data.aspect_scores).decode()
    return drawn
