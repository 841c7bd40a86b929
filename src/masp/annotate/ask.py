"""Putting the aspect questions to a frozen backbone, or to trained aspects, for a batch of images.

What a generated answer says as an annotation is here too, and brightness and colorfulness as measured on pixels.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from masp.core.aspects import ASPECTS, LEVELS, MEASURED, answer_text
from masp.core.errors import DataError, did_you_mean, shown
from masp.core.labels import normalise_answer
from masp.core.types import ImageInput, Pixels, VisualTokens
from masp.data.readers.open_dataset import read_dataset, settings_for
from masp.data.records import BadFiles, read_json
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import answer_of, aspect_log_probabilities, generate_aspect_ids, generate_ids, log_probabilities

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
    named = tuple(name for name in names if name and not says_nothing(name))[:MOST_THINGS]
    if named:
        return ParsedAnswer(named)
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


PUBLISHED = "published"
EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise")
"""EmoSet's words for facial expressions; its lists of scenes, objects and actions are long and not in this package."""

_SHAPE = "{aspect: [word, …]}, or EmoSet's info.json"

Options = Mapping[str, tuple[str, ...]]


def read_vocabulary(given: str) -> Options:
    """Aspect → what may be answered. Brightness and colorfulness always have their five levels.

    Args:
        given: "published", a JSON file {aspect: [word, …]}, EmoSet's own info.json, or the folder of a data set with
            annotations, whose words are taken.

    Raises:
        DataError: the file or the data set cannot be read, or holds no words.
    """
    levels = dict.fromkeys(MEASURED, LEVELS)
    if given == PUBLISHED and not Path(given).exists():
        return {"facial_expression": EXPRESSIONS, **levels}
    words = _of_dataset(Path(given)) if Path(given).is_dir() else _of_file(Path(given))
    if not words:
        raise DataError(f"the vocabulary {given} holds no words for an aspect", _SHAPE, "Correct it.")
    return words | levels


def _of_file(file: Path) -> dict[str, tuple[str, ...]]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"the vocabulary {file} holds {type(content).__name__}", _SHAPE, "Correct the file.")
    tables = any(isinstance(value, Mapping) and "label2idx" in value for value in content.values())
    result: dict[str, tuple[str, ...]] = {}
    for aspect, value in content.items():
        if aspect not in ASPECTS:
            if tables:  # EmoSet's file holds other things as well
                continue
            raise DataError(f"the vocabulary {file} has the unknown key '{aspect}'", "", did_you_mean(aspect, ASPECTS))
        if aspect in MEASURED:
            continue
        listed = list(value["label2idx"]) if isinstance(value, Mapping) and "label2idx" in value else value
        if not isinstance(listed, list) or not all(isinstance(word, str) for word in listed):
            raise DataError(f"the vocabulary {file}, key '{aspect}' holds {shown(value)}", _SHAPE, "Correct the file.")
        words = tuple(dict.fromkeys(filter(None, (answer_text(aspect, word) for word in listed))))
        if not words:
            raise DataError(f"the vocabulary {file} has no words for {aspect}", _SHAPE, "Add some, or leave it out.")
        result[aspect] = words
    return result


def _of_dataset(folder: Path) -> dict[str, tuple[str, ...]]:
    """The words that occur in a data set's annotations, sorted."""
    reading = read_dataset(settings_for(folder), BadFiles())
    words: dict[str, set[str]] = {}
    for records in reading.splits.values():
        for record in records:
            for aspect, answer in record.annotations.items():
                if aspect not in MEASURED:
                    words.setdefault(aspect, set()).update(answer.split(", ") if aspect == "object" else [answer])
    return {aspect: tuple(sorted(words[aspect])) for aspect in ASPECTS if aspect in words}


PLAIN = ActiveParts((), prompt=False)
"""The frozen backbone as it is."""

AT_ONCE = 32
"""Options that are scored in one pass; a longer list takes several, so that the memory does not grow with it."""

Answers = dict[str, ParsedAnswer]


@dataclass(frozen=True)
class AnnotationSettings:
    """What is asked about every image.

    Attributes:
        questions: aspect → the text of its question.
        options: aspect → what may be answered; an aspect that is not here is answered freely.
        measured_light: whether brightness and colorfulness are measured on the pixels instead.
        longest: tokens that a free answer may have.
        keep: whether answers that the data set has already win over those that are given here.
    """

    questions: Mapping[str, str]
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    measured_light: bool = False
    longest: int = 32
    keep: bool = False

    @property
    def asked(self) -> tuple[str, ...]:
        """The aspects that the model is asked about."""
        return tuple(name for name in self.questions if not (self.measured_light and name in MEASURED))


@dataclass(frozen=True)
class Prepared:
    """A batch of images, preprocessed: what the model sees, and what was measured on each."""

    pixels: Pixels | None
    light: tuple[Mapping[str, float], ...]


class Annotator:
    """Answers the questions about images.

    Args:
        model: a backbone, perhaps with trained aspects; with aspects, each question is answered from the tokens of its
            aspect alone, as in stage 1.
        asking: the questions.
    """

    def __init__(self, model: MaspModel, asking: AnnotationSettings) -> None:
        self.model = model
        self.asking = asking

    def prepare(self, images: Sequence[Any]) -> Prepared:
        """Preprocessed RGB images; safe to call from several threads."""
        rgb: list[Image.Image] = list(images)
        light = tuple(self._light(image) for image in rgb) if self.asking.measured_light else ()
        return Prepared(self.model.backbone.preprocess(rgb) if self.asking.asked else None, light)

    @torch.no_grad()
    def __call__(self, prepared: Prepared) -> list[Answers]:
        """The answers about every image of a batch, aspect by aspect in the order of the questions."""
        answered_rows = [{name: ParsedAnswer(value) for name, value in one.items()} for one in prepared.light]
        if prepared.pixels is not None:
            backbone = self.model.backbone
            visual = backbone.visual_tokens(prepared.pixels.to(backbone.device))
            answered_rows = answered_rows or [{} for _ in range(len(visual))]
            for aspect, answers in self._asked(visual):
                for answered, answer in zip(answered_rows, answers, strict=True):
                    answered[aspect] = answer
        return [{name: one[name] for name in self.asking.questions} for one in answered_rows]

    def _light(self, image: Image.Image) -> dict[str, float]:
        return {name: value for name, value in measured(image).items() if name in self.asking.questions}

    def _asked(self, visual: VisualTokens) -> Iterator[tuple[str, list[ParsedAnswer]]]:
        names = self.asking.asked
        texts = [self.asking.questions[name] for name in names]
        seen: ImageInput = visual
        if self.model.aspects is None and len(texts) > 1 and self.model.shares_prefix(visual, texts, PLAIN):
            seen = self.model.prefix(visual, [texts[0]] * len(visual), PLAIN)
        for name, text in zip(names, texts, strict=True):
            options = self.asking.options.get(name)
            if options is None:
                yield name, self._free(visual, seen, name, text)
            else:
                yield name, self._chosen(visual, seen, name, text, options)

    def _free(self, visual: VisualTokens, seen: ImageInput, aspect: str, question: str) -> list[ParsedAnswer]:
        """Greedy answers."""
        model, longest = self.model, self.asking.longest
        if model.aspects is None:
            rows = generate_ids(model, seen, question, PLAIN, longest)
        else:
            rows = generate_aspect_ids(model, visual, aspect, question, longest)
        answers = [answer_of(model.backbone, ids) for ids in rows]
        return [understood(aspect, answer.text, not answer.cut) for answer in answers]

    def _chosen(
        self, visual: VisualTokens, seen: ImageInput, aspect: str, question: str, options: Sequence[str]
    ) -> list[ParsedAnswer]:
        """The most probable option for every image."""
        parts = []
        for start in range(0, len(options), AT_ONCE):
            some = options[start : start + AT_ONCE]
            if self.model.aspects is None:
                parts.append(log_probabilities(self.model, seen, question, some, PLAIN))
            else:
                parts.append(aspect_log_probabilities(self.model, visual, aspect, question, some))
        best: list[int] = torch.cat(parts, dim=1).argmax(1).tolist()
        return [_option(aspect, options[index]) for index in best]


def _option(aspect: str, option: str) -> ParsedAnswer:
    if aspect in MEASURED:
        return ParsedAnswer(middle(option))
    if says_nothing(option):
        return ParsedAnswer(None, NOTHING)
    return ParsedAnswer((option,) if aspect == "object" else option)
