"""Putting the aspect questions to a frozen backbone, or to trained aspects, for a batch of pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from masp.annotate.light import measured
from masp.annotate.wording import NOTHING, Understood, middle, says_nothing, understood
from masp.core.aspects import MEASURED
from masp.core.types import Pixels, Seen, VisualTokens
from masp.model.masp_model import MaspModel, Use
from masp.model.scoring import (
    answer_of,
    aspect_log_probabilities,
    generate_aspect_ids,
    generate_ids,
    log_probabilities,
)

PLAIN = Use((), prompt=False)
"""The frozen backbone as it is."""

AT_ONCE = 32
"""Options that are scored in one pass; a longer list takes several, so that the memory does not grow with it."""

Answers = dict[str, Understood]


@dataclass(frozen=True)
class Asking:
    """What is asked about every picture.

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
    """A batch of pictures, preprocessed: what the model sees, and what was measured on each."""

    pixels: Pixels | None
    light: tuple[Mapping[str, float], ...]


class Annotator:
    """Answers the questions about pictures.

    Args:
        model: a backbone, perhaps with trained aspects; with aspects, each question is answered from the tokens of its
            aspect alone, as in stage 1.
        asking: the questions.
    """

    def __init__(self, model: MaspModel, asking: Asking) -> None:
        self.model = model
        self.asking = asking

    def prepare(self, images: Sequence[Any]) -> Prepared:
        """Preprocessed RGB pictures; safe to call from several threads."""
        rgb: list[Image.Image] = list(images)
        light = tuple(self._light(image) for image in rgb) if self.asking.measured_light else ()
        return Prepared(self.model.backbone.preprocess(rgb) if self.asking.asked else None, light)

    @torch.no_grad()
    def __call__(self, prepared: Prepared) -> list[Answers]:
        """The answers about every picture of a batch, aspect by aspect in the order of the questions."""
        found = [{name: Understood(value) for name, value in one.items()} for one in prepared.light]
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

    def _asked(self, visual: VisualTokens) -> Iterator[tuple[str, list[Understood]]]:
        names = self.asking.asked
        texts = [self.asking.questions[name] for name in names]
        seen: Seen = visual
        if self.model.aspects is None and len(texts) > 1 and self.model.shares_prefix(visual, texts, PLAIN):
            seen = self.model.prefix(visual, [texts[0]] * len(visual), PLAIN)
        for name, text in zip(names, texts, strict=True):
            options = self.asking.options.get(name)
            if options is None:
                yield name, self._free(visual, seen, name, text)
            else:
                yield name, self._chosen(visual, seen, name, text, options)

    def _free(self, visual: VisualTokens, seen: Seen, aspect: str, question: str) -> list[Understood]:
        """Greedy answers."""
        model, longest = self.model, self.asking.longest
        if model.aspects is None:
            rows = generate_ids(model, seen, question, PLAIN, longest)
        else:
            rows = generate_aspect_ids(model, visual, aspect, question, longest)
        answers = [answer_of(model.backbone, ids) for ids in rows]
        return [understood(aspect, answer.text, not answer.cut) for answer in answers]

    def _chosen(
        self, visual: VisualTokens, seen: Seen, aspect: str, question: str, options: Sequence[str]
    ) -> list[Understood]:
        """The most probable option for every picture."""
        parts = []
        for start in range(0, len(options), AT_ONCE):
            some = options[start : start + AT_ONCE]
            if self.model.aspects is None:
                parts.append(log_probabilities(self.model, seen, question, some, PLAIN))
            else:
                parts.append(aspect_log_probabilities(self.model, visual, aspect, question, some))
        best: list[int] = torch.cat(parts, dim=1).argmax(1).tolist()
        return [_option(aspect, options[index]) for index in best]


def _option(aspect: str, option: str) -> Understood:
    if aspect in MEASURED:
        return Understood(middle(option))
    if says_nothing(option):
        return Understood(None, NOTHING)
    return Understood((option,) if aspect == "object" else option)
