"""Instruction tuning on questions built from aspect annotations: the idea of EmoVIT (CVPR 2024), as a baseline.

Each annotated image becomes several questions: the emotion itself (classification), one per annotated aspect
(conversation), a description from all of them (caption), and which cues lead to which emotion (reasoning). EmoVIT lets
a large language model write the last three and trains the Q-Former of InstructBLIP; here all texts follow from the
annotations by rule, and what is trained are LoRA layers, the same as in `masp.systems.lora`. At the end the emotion
question is answered, as by every other system.

EmoVIT trains four epochs with a learning rate of 1e-5. The epochs are the default here; the learning rate is that of
LoRA, 1e-4, since other tensors are trained. An image with six aspects makes nine questions, so an epoch has up to nine
times the steps of `masp.systems.lora`.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from masp.aspects import ASPECTS
from masp.backbones.base import Backbone
from masp.errors import DataError, did_you_mean
from masp.labels import render_labels
from masp.questions import Questions
from masp.systems.base import Lesson, Lessons, Said
from masp.systems.lora_layers import LoraSettings
from masp.systems.tuning import TunedBackbone, Turn
from masp.types import VisualTokens

log = logging.getLogger(__name__)

SETTINGS = LoraSettings(epochs=4)

CLAUSES: Mapping[str, str] = {
    "facial_expression": "the face looks {}",
    "object": "one sees {}",
    "scene": "the place is {}",
    "human_action": "the action is {}",
    "brightness": "the brightness is {}",
    "colorfulness": "the colorfulness is {}",
}
"""How an aspect's annotation stands in a sentence."""

CAPTION = ("Describe this image.", "What does this image show?")
REASONING = (
    "Which cues in this image lead to which of these emotions: {}?",
    "Name the cues of this image, then the emotion they evoke, one of: {}.",
)


class InstructionSystem:
    """LoRA layers that learn what is annotated about an image along with its emotion.

    Images without annotations teach the emotion alone; `learn` says how many, and `describe` counts the questions.

    Args:
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        name: what it is called in results.
        questions: texts about aspects and emotion; None: the package's own.

    Raises:
        UsageError: PEFT is not installed (`pip install 'masp[peft]'`), or the settings do not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: Sequence[str],
        settings: LoraSettings | None = None,
        name: str = "instruction",
        questions: Questions | None = None,
    ) -> None:
        self._tuned = TunedBackbone("instruction", backbone, labels, settings or SETTINGS, questions)
        self.name = name

    @property
    def backbone(self) -> Backbone:
        """See `System`."""
        return self._tuned.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """See `System`."""
        return self._tuned.labels

    def learn(self, lessons: Lessons) -> None:
        """Train on all questions about every image; see `System.learn`."""
        self._tuned.check(lessons)
        bare = sum(not _annotated(lesson) for lesson in lessons.train)
        if bare:
            log.warning(
                "%d of %d images have no annotated aspect: they teach their emotion alone", bare, len(lessons.train)
            )
        self._tuned.learn(lessons, [turn for lesson in lessons.train for turn in self.turns(lesson)])

    def turns(self, lesson: Lesson) -> list[Turn]:
        """Every question that one image gives, with its answer.

        Raises:
            DataError: an aspect that does not exist.
        """
        aspects = _annotated(lesson)
        found = [self._tuned.classification(lesson)]
        if not aspects:
            return found
        clauses = _joined([CLAUSES[name].format(answer) for name, answer in aspects.items()])
        asked, listed = self._tuned.questions, render_labels(self.labels)
        for name, answer in aspects.items():
            found.append(Turn(lesson.image, "conversation", asked.aspect(name), answer))
        found.append(Turn(lesson.image, "caption", CAPTION, f"{clauses}."))
        why = tuple(before + listed + after for before, _, after in (text.partition("{}") for text in REASONING))
        found.append(Turn(lesson.image, "reasoning", why, f"{clauses}. This evokes {lesson.label}."))
        return found

    def answer(self, visual: VisualTokens) -> list[Said]:
        """Log-probabilities of the labels; see `System.answer`."""
        return self._tuned.answer(visual)

    def describe(self) -> Mapping[str, Any]:
        """Number format, trained values, settings, and how many questions of each kind were learned."""
        return {**self._tuned.describe(), "system": self.name}


def _annotated(lesson: Lesson) -> dict[str, str]:
    """The aspects with an answer, in the one order of all aspects.

    Raises:
        DataError: an aspect that does not exist.
    """
    for name in lesson.aspects:
        if name not in ASPECTS:
            raise DataError(f"unknown aspect '{name}'", "", did_you_mean(name, ASPECTS))
    given = ((name, lesson.aspects.get(name, "").strip()) for name in ASPECTS)
    return {name: answer for name, answer in given if answer}


def _joined(clauses: Sequence[str]) -> str:
    """One sentence without its full stop."""
    text = ", ".join(clauses)
    return text[0].upper() + text[1:]
