"""Instruction tuning on questions built from aspect annotations: the idea of EmoVIT (CVPR 2024), as a baseline.

Each annotated image becomes several questions: the emotion itself (classification), one per annotated aspect
(conversation), a description from all of them (caption), and which cues lead to which emotion (reasoning). EmoVIT lets
a large language model write the last three and trains the Q-Former of InstructBLIP; here all texts follow from the
annotations by rule, and what is trained are LoRA layers, those of `lora_finetune`. At the end the emotion question is
answered, as by every other system.

EmoVIT trains four epochs with a learning rate of 1e-5. The epochs are the default here; the learning rate is that of
LoRA, 1e-4, since other tensors are trained. An image with six aspects makes nine questions, so an epoch has up to nine
times the steps of `lora_finetune`.
"""

import logging
from collections.abc import Mapping, Sequence

from masp.backbones.base import Backbone
from masp.baselines.base import Example
from masp.baselines.lora_finetune import LoraFinetuned, TrainingTurn, classifications
from masp.baselines.lora_layers import LoraSettings
from masp.core.aspects import ASPECTS
from masp.core.errors import DataError, did_you_mean
from masp.core.labels import render_labels
from masp.core.prompts import Questions

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


def instruction_system(
    backbone: Backbone,
    labels: Sequence[str],
    settings: LoraSettings | None = None,
    questions: Questions | None = None,
) -> LoraFinetuned:
    """LoRA layers that learn what is annotated about an image along with its emotion.

    Images without annotations teach the emotion alone; the log says how many, and `config` counts the questions.

    Args:
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        questions: texts about aspects and emotion; None: the package's own.

    Raises:
        UsageError: PEFT is not installed (`pip install 'masp[peft]'`), or the settings do not fit the backbone.
    """
    return LoraFinetuned("instruction", instructions, backbone, labels, settings or SETTINGS, questions)


def instructions(questions: Questions, labels: tuple[str, ...], lessons: Sequence[Example]) -> list[TrainingTurn]:
    """Every question that the images give, with its answer.

    Raises:
        DataError: an aspect that does not exist.
    """
    bare = sum(not _annotated(lesson) for lesson in lessons)
    if bare:
        log.warning("%d of %d images have no annotated aspect: they teach their emotion alone", bare, len(lessons))
    emotions, listed = classifications(questions, labels, lessons), render_labels(labels)
    why = tuple(before + listed + after for before, _, after in (text.partition("{}") for text in REASONING))
    found: list[TrainingTurn] = []
    for lesson, emotion in zip(lessons, emotions, strict=True):
        found += [emotion, *_about_aspects(questions, lesson, why)]
    return found


def _about_aspects(questions: Questions, lesson: Example, why: tuple[str, ...]) -> list[TrainingTurn]:
    """Conversation, caption and reasoning about one image; nothing where nothing is annotated."""
    aspects = _annotated(lesson)
    if not aspects:
        return []
    clauses = _joined([CLAUSES[name].format(answer) for name, answer in aspects.items()])
    return [
        *(
            TrainingTurn(lesson.image, "conversation", questions.aspect(name), answer)
            for name, answer in aspects.items()
        ),
        TrainingTurn(lesson.image, "caption", CAPTION, f"{clauses}."),
        TrainingTurn(lesson.image, "reasoning", why, f"{clauses}. This evokes {lesson.label}."),
    ]


def _annotated(lesson: Example) -> dict[str, str]:
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
