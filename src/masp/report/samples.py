"""One image on the page: embedded, with its labels in order, and what each aspect saw drawn over it."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageStat

from masp.core.errors import ImageError
from masp.data.images import open_image
from masp.report.formatting import decisive, share, verdict
from masp.report.plots import attention_veil, cell_lines
from masp.report.schema import AspectSight, Sample

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
class PictureView:
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
    looks: list[PromptAttentionShare]
    picture: PictureView


def sample_of(prediction: "Prediction", picture: Path | Image.Image, truth: str | None = None) -> Sample:
    """What the page shows of one prediction."""
    readings = prediction.aspects.items()
    looks = prediction.prompt_attention
    return Sample(
        name=prediction.image,
        picture=picture,
        label=prediction.label,
        probabilities=prediction.probabilities,
        sights=tuple(AspectSight(aspect, seen.answer, seen.effect, seen.attention) for aspect, seen in readings),
        answer=prediction.answer,
        truth=truth,
        prompt_attention=looks.raw if looks else None,
        warning=prediction.warning,
    )


def sample_view(index: int, sample: Sample, picture: PictureView | None = None) -> SampleView:
    """A sample as the page shows it; `index` makes its anchors unique, `picture` is its own where it is embedded."""
    picture, first = picture or embedded(sample.picture), decisive(sample)
    reach = max([abs(sight.effect or 0.0) for sight in sample.sights] + [0.5])
    raw = sample.prompt_attention or {}
    total = sum(raw.values()) or 1.0
    return SampleView(
        index=index,
        sample=sample,
        verdict=verdict(sample),
        ranked=sorted(sample.probabilities.items(), key=lambda item: -item[1]),
        sights=[_sight_view(sight, sight is first, reach, picture) for sight in sample.sights],
        looks=[PromptAttentionShare(aspect, value, value / total) for aspect, value in raw.items()],
        picture=picture,
    )


def _sight_view(sight: AspectSight, decided: bool, longest: float, picture: PictureView) -> AspectView:
    reach = 0.5 * abs(sight.effect or 0.0) / longest
    if not sight.attention:
        return AspectView(sight, decided, reach)
    rows, columns = len(sight.attention), len(sight.attention[0])
    weights = [
        (weight, row, column) for row, line in enumerate(sight.attention, 1) for column, weight in enumerate(line, 1)
    ]
    weight, row, column = max(weights, key=lambda cell: cell[0])
    peak = f"strongest in row {row} of {rows}, column {column} of {columns}, with {share(weight)} % of the attention"
    veil = _uri(attention_veil(sight.attention, picture.dark), "png")
    lines = cell_lines(rows, columns, picture.width, picture.height) if max(rows, columns) <= MOST_LINES else ""
    return AspectView(sight, decided, reach, veil, lines, peak)


def embedded(source: Path | Image.Image, longest: int = LONG_SIDE, lossless: int = LOSSLESS_SIDE) -> PictureView:
    """The image, reduced and embedded: without loss where it is small, as JPEG where it is a photograph's size.

    Args:
        source: the file, or the image itself.
        longest: side, in pixels, to which a larger image is reduced.
        lossless: an image up to this side is embedded without loss.
    """
    try:
        image = source if isinstance(source, Image.Image) else open_image(source, longest)
    except ImageError:
        return PictureView()
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind = "png" if max(image.size) <= lossless else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, quality=88)
    dark = ImageStat.Stat(image.convert("L")).mean[0] < DARK
    return PictureView(_uri(buffer.getvalue(), kind), *image.size, dark)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
