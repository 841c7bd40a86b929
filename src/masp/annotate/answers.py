"""What a generated answer says as an annotation, and brightness and colorfulness as they are measured on pixels."""

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from masp.core.aspects import LEVELS, MEASURED
from masp.core.labels import normalise_answer

EMPTY, NOTHING, CUT, NO_LEVEL = "empty", "says that there is nothing", "cut off", "names no level"
"""Why an answer is no annotation."""

MOST_THINGS = 12
"""Objects that are kept of a list."""

_NOTHING = re.compile(
    r"(none|no|nothing|nobody|nowhere|unknown|unclear|uncertain|null|n/?a|not|neutral or none)"
    r"( (applicable|available|visible|shown|seen|present|clear|specified|sure|known|found)\b.*)?"
    r"|(there (is|are|'s)|there isn't|there aren't|i (can )?see) (no|not|any|none|nobody|nothing)\b.*"
    r"|(there isn't|there aren't)\b.*"
    r"|no (one|body|person|people|persons|human|humans|man|woman|face|faces|facial expression|expression|action"
    r"|human action|object|objects|scene|picture|image|answer)\b.*"
    r"|(i'm|i am|we are|sorry|i apologi[sz]e|unfortunately|as an (ai|artificial|assistant))\b.*"
    r"|(unable|cannot|can't|can not)\b.*"
    r"|i (do not|don't|cannot|can't|can not|could not|couldn't|will not|won't|would need)\b.*"
    r"|it('s| is)( not|n't)? (not |im)?(possible|clear|visible|specified|unclear|impossible|unknown)\b.*"
    r"|((the|this) )?(picture|image|photo)( provided)? (does not|doesn't|do not|is not|isn't|is blank|is empty|has no|"
    r"shows no|contains no)\b.*"
)
_ARTICLE = re.compile(r"(a|an|the|some|several|many)\s+")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):])\s*")
_LEVEL = re.compile("|".join(rf"\b{re.escape(level)}\b" for level in sorted(LEVELS, key=len, reverse=True)))

Value = str | float | tuple[str, ...]


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as an annotation: text, the names of things, or a number; None, and why, where it is none."""

    value: Value | None
    why: str = ""


def understood(aspect: str, answer: str, whole: bool) -> ParsedAnswer:
    """An answer in the words of an annotation.

    Args:
        aspect: what was asked about.
        answer: what was generated.
        whole: whether the answer came to its end; otherwise its last words may be missing.
    """
    if not normalise_answer(answer):
        return ParsedAnswer(None, EMPTY)
    if aspect in MEASURED:
        return _level(answer)
    if aspect == "object":
        return _things(answer, whole)
    text = _worded(answer)
    if not text:
        return ParsedAnswer(None, EMPTY)
    if says_nothing(text):
        return ParsedAnswer(None, NOTHING)
    return ParsedAnswer(text) if whole else ParsedAnswer(None, CUT)


def says_nothing(text: str) -> bool:
    """Whether a text in lower case means that there is nothing to say: "none", "unknown", "i cannot see …"."""
    return _NOTHING.fullmatch(text) is not None


def middle(level: str) -> float:
    """The value in the middle of a level's fifth of [0, 1]: 0.1 for "very low", 0.9 for "very high"."""
    return (2 * LEVELS.index(level) + 1) / 10


def _level(answer: str) -> ParsedAnswer:
    """The one level that an answer names; "very high" is not "high" as well."""
    named = set(_LEVEL.findall(" ".join(answer.lower().replace("_", " ").split())))
    return ParsedAnswer(middle(named.pop())) if len(named) == 1 else ParsedAnswer(None, NO_LEVEL)


def _things(answer: str, whole: bool) -> ParsedAnswer:
    """The things of a list in commas, semicolons, "and" or lines; the last one is left out where it may be cut."""
    if says_nothing(_worded(answer)):
        return ParsedAnswer(None, NOTHING)
    lines = [_BULLET.sub("", line) for line in answer.strip().splitlines()]
    parts = [part for line in lines for part in re.split(r"[,;]|\band\b", line.lower())]
    if not whole:
        parts = parts[:-1]
    names = dict.fromkeys(_worded(part) for part in parts)
    kept = tuple(name for name in names if name and not says_nothing(name))[:MOST_THINGS]
    if kept:
        return ParsedAnswer(kept)
    return ParsedAnswer(None, NOTHING if whole else CUT)


def _worded(text: str) -> str:
    """The first line in lower case, without list signs, punctuation at the ends and an article before it."""
    plain = normalise_answer(_BULLET.sub("", text.strip()).replace("_", " ").replace("’", "'"))
    return _ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain


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
