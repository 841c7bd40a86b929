"""Putting the aspect questions to a frozen backbone, or to trained aspects, for a batch of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from masp.annotate.answers import NOTHING, ParsedAnswer, measured, middle, says_nothing, understood
from masp.core.aspects import ASPECTS, LEVELS, MEASURED, answer_text
from masp.core.errors import DataError, did_you_mean, shown
from masp.core.types import ImageInput, Pixels, VisualTokens
from masp.data.readers.open_dataset import read_dataset, settings_for
from masp.data.records import BadFiles, read_json
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import answer_of, aspect_log_probabilities, generate_aspect_ids, generate_ids, log_probabilities

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
    found: dict[str, tuple[str, ...]] = {}
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
        found[aspect] = words
    return found


def _of_dataset(folder: Path) -> dict[str, tuple[str, ...]]:
    """The words that occur in a data set's annotations, sorted."""
    reading = read_dataset(settings_for(folder), BadFiles())
    found: dict[str, set[str]] = {}
    for records in reading.splits.values():
        for record in records:
            for aspect, answer in record.annotations.items():
                if aspect not in MEASURED:
                    found.setdefault(aspect, set()).update(answer.split(", ") if aspect == "object" else [answer])
    return {aspect: tuple(sorted(found[aspect])) for aspect in ASPECTS if aspect in found}


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
        found = [{name: ParsedAnswer(value) for name, value in one.items()} for one in prepared.light]
        if prepared.pixels is not None:
            backbone = self.model.backbone
            visual = backbone.visual_tokens(prepared.pixels.to(backbone.device))
            found = found or [{} for _ in range(len(visual))]
            for aspect, answers in self._asked(visual):
                for answered, answer in zip(found, answers, strict=True):
                    answered[aspect] = answer
        return [{name: one[name] for name in self.asking.questions} for one in found]

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
