"""Brightness and colorfulness as they are measured on pixels, for backbones whose answers about them are poor.

Both are means over all pixels of the upright RGB image and lie in [0, 1]. The sums are whole numbers, so that the
result does not depend on the order of the additions, nor on the machine.
"""

import math

import numpy as np
from PIL import Image

FORMULA = "brightness: mean Rec. 601 luma / 255; colorfulness: Hasler and Süsstrunk's M / 109, at most 1"
"""What is recorded with every measured annotation."""

MOST_COLORFUL = 109.0
"""M of an image that the people of Hasler and Süsstrunk's study called extremely colorful."""

_DIGITS = 4
_ROWS = 256  # of the image at a time, so that a large one needs little memory


def measured(image: Image.Image) -> dict[str, float]:
    """Brightness and colorfulness of an RGB image, rounded to four digits.

    Brightness is the mean of 0.299 R + 0.587 G + 0.114 B, divided by 255. Colorfulness is M of Hasler and Süsstrunk
    (Measuring colourfulness in natural images, 2003): with rg = R − G and yb = (R + G) / 2 − B,
    M = √(σ²rg + σ²yb) + 0.3 √(μ²rg + μ²yb); it is divided by 109, the end of their scale, and cut at 1.
    """
    pixels = np.asarray(image)
    luma = rg = rg2 = yb = yb2 = 0  # yb is counted in halves
    for start in range(0, len(pixels), _ROWS):
        block = pixels[start : start + _ROWS].astype(np.int64)
        red, green, blue = block[..., 0], block[..., 1], block[..., 2]
        luma += int((299 * red + 587 * green + 114 * blue).sum())
        first, second = red - green, red + green - 2 * blue
        rg, rg2 = rg + int(first.sum()), rg2 + int((first * first).sum())
        yb, yb2 = yb + int(second.sum()), yb2 + int((second * second).sum())
    count = pixels.shape[0] * pixels.shape[1]
    spread = _variance(rg, rg2, count) + _variance(yb, yb2, count) / 4
    offset = (rg / count) ** 2 + (yb / count) ** 2 / 4
    colorfulness = (math.sqrt(spread) + 0.3 * math.sqrt(offset)) / MOST_COLORFUL
    return {
        "brightness": round(luma / (255_000 * count), _DIGITS),
        "colorfulness": round(min(1.0, colorfulness), _DIGITS),
    }


def _variance(total: int, squares: int, count: int) -> float:
    return (squares * count - total * total) / (count * count)
