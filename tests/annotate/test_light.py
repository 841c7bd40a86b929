"""Brightness and colorfulness on pixels: numbers worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from masp.annotate.ask import measured


def plain(*colours: tuple[int, int, int], height: int = 1) -> Image.Image:
    """One column of each colour."""
    return Image.fromarray(np.array([colours] * height, dtype=np.uint8))


def test_greys_have_no_colour():
    for grey in (0, 51, 255):
        assert measured(plain((grey, grey, grey))) == {"brightness": grey / 255, "colorfulness": 0.0}


def test_one_colour_counts_by_its_mean():
    """Pure red: rg = 255, yb = 127.5, no spread; M = 0.3 · √(255² + 127.5²) = 85.53."""
    found = measured(plain((255, 0, 0)))
    assert found == {"brightness": 0.299, "colorfulness": round(0.3 * math.hypot(255, 127.5) / 109, 4)}
    assert found["colorfulness"] == pytest.approx(0.7847, abs=1e-4)


def test_several_colours_count_by_their_spread():
    """A little red beside a little green: rg is 20 and -20 (σ 20, μ 0), yb is 10 for both (σ 0, μ 10)."""
    found = measured(plain((20, 0, 0), (0, 20, 0), height=600))  # more rows than are read at a time
    assert found["colorfulness"] == round((20 + 0.3 * 10) / 109, 4) == 0.211
    assert found["brightness"] == round((0.299 + 0.587) * 20 / 2 / 255, 4)


def test_nothing_is_above_one():
    assert measured(plain((255, 0, 0), (0, 0, 255), (0, 255, 0)))["colorfulness"] == 1.0
