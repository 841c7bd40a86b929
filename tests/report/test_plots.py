"""The drawings: that they hold the numbers, that they are the same each time, that names cannot break them."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from fixtures import pages as made_up
from masp.report import plots
from masp.report.schema import AspectScore, Curve

HOSTILE = r'<script>$\frac{$ & "x" 恐れ'


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def texts(svg: bytes) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("text")]


def veil(attention: list[list[float]], dark: bool = False) -> np.ndarray:
    return np.asarray(opened(plots.attention_veil(attention, dark, long_side=60)))


def test_ablation_names_rows_ceiling_and_majority() -> None:
    words = texts(plots.ablation_bars(made_up.ablation()))
    assert [word for word in words if word.startswith("V")] == ["V", "V+A", "V+S", "V+A+rS", "V+A+S"]
    assert {"majority 19.7", "ceiling 79.3"} <= set(words)


def bar_lengths(svg: bytes) -> list[float]:
    """Widths of the filled rectangles, in drawing order."""
    filled = (path for path in ET.fromstring(svg).iter("path") if "fill: var(--" in path.get("style", ""))
    corners = ([float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d", ""))] for path in filled)
    return [max(xs) - min(xs) for xs in corners if len(xs) == 4]


def test_bars_are_as_long_as_the_accuracies() -> None:
    ablation = made_up.ablation()
    lengths = bar_lengths(plots.ablation_bars(ablation))
    accuracies = [row.accuracy.value for row in ablation.rows]
    assert np.allclose(np.array(lengths) / lengths[0], np.array(accuracies) / accuracies[0], rtol=1e-3)


@pytest.mark.parametrize(
    "draw",
    [
        lambda kind: plots.ablation_bars(made_up.ablation(), kind),
        lambda kind: plots.aspect_bars([AspectScore(HOSTILE, "", 0.7, 0.5)], kind),
        lambda kind: plots.loss_curve(Curve(HOSTILE, tuple(range(97)), tuple(1 / (1 + i) for i in range(97))), kind),
    ],
)
def test_every_drawing_in_both_formats(draw) -> None:
    assert opened(draw("png")).width > 300
    svg = draw("svg")
    assert svg == draw("svg"), "the same numbers must give the same bytes"
    assert ET.fromstring(svg).tag == "svg"
    for address in (b"http", b"<style", b"<metadata", b"<!DOCTYPE", b"#1d2026"):
        assert address not in svg


def test_names_are_text_and_not_formulas() -> None:
    assert HOSTILE in texts(plots.aspect_bars([AspectScore(HOSTILE, "", 0.7)]))


def test_ids_of_two_drawings_do_not_meet() -> None:
    one, two = (plots.loss_curve(Curve("c", (1, 2), losses)).decode() for losses in ((1.0, 2.0), (3.0, 1.0)))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, two)]
    assert all(ids)
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', one))
    assert used == ids[0], "every reference leads to an id, and no id is left over"


def test_veil_is_clear_where_the_attention_is_and_has_the_cells_shape() -> None:
    pixels = veil([[0.0, 0.0, 0.0, 0.0, 1.0], [0.0] * 5, [0.0] * 5])
    assert pixels.shape == (36, 60, 4)
    assert pixels[6, 54, 3] < 40, "the attended cell is clear"
    assert pixels[30, 6, 3] > 200, "the opposite corner is veiled"


def test_even_attention_points_nowhere() -> None:
    even = veil([[0.04] * 5] * 5)[..., 3]
    assert even.min() > 100
    assert np.ptp(even) <= 2
    nothing = veil([[0.0, 0.0], [0.0, 0.0]])[..., 3]
    assert nothing.min() > 200
