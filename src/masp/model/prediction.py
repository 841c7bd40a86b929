"""What is asked of a model about an image, and everything it says about one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from masp.adapters import AdapterInfo
from masp.core.config import DataConfig
from masp.core.errors import AdapterError, UsageError
from masp.core.label_mapping import NAMED_SETS
from masp.core.labels import render_labels, validate_labels
from masp.core.prompts import Questions, load_questions
from masp.core.types import Domain, VisualTokens
from masp.data.images import Rounding
from masp.model.concepts import ConceptBottleneck
from masp.model.explain import (
    ATTRIBUTIONS,
    DEFAULT_ATTRIBUTION,
    AspectReading,
    Attribution,
    PromptAttention,
    attention_to_aspects,
    read_aspects,
    taking_part,
)
from masp.model.masp_model import MaspModel, Use
from masp.model.scoring import generate, longest_answer

INSTEAD = (
    "Name a backbone that knows such images (--backbone ID; without an adapter it answers zero-shot), "
    "or train a prompt on one (masp train prompt)."
)
"""What to do about an image that is none of those that the backbone knows."""


WORDS = "concept_bottleneck"
"""How effects were found where a concept bottleneck answers; see `masp.model.concepts`."""


@dataclass(frozen=True)
class Prediction:
    """Everything said about one image.

    Attributes:
        image: the file, as it was named.
        label: the most probable label.
        probabilities: of every label; they sum to 1.
        answer: the text that the backbone generates; None without explanations.
        aspects: what each aspect contributed; empty without explanations, and for an adapter without aspects.
        prompt_attention: from the soft prompt to each aspect; None where `aspects` is empty or there is no soft prompt.
        adapter: name of the adapter.
        backbone: name of the backbone.
        task: which task of an adapter with several; None for one with one.
        temperature: that the log-probabilities were divided by; 1.0: they are the model's own.
        attribution: how the effects of the aspects were found; None where `aspects` is empty.
        domain: whether the image is of the kind that the backbone was trained on; None where the backbone cannot tell.
    """

    image: str
    label: str
    probabilities: Mapping[str, float]
    answer: str | None
    aspects: Mapping[str, AspectReading]
    prompt_attention: PromptAttention | None
    adapter: str
    backbone: str
    task: str | None = None
    domain: Domain | None = None
    temperature: float = 1.0
    attribution: str | None = None

    @property
    def warning(self) -> str | None:
        """What to know before this is believed; None where there is nothing to say."""
        if self.domain is None or self.domain.inside:
            return None
        return f"this backbone knows {self.domain.knows} only, and this is none: what it says here means nothing"

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, in the place of its prediction."""

    image: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """Plain texts, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """What is asked of the model at prediction.

    Attributes:
        labels: what there is to choose from, in the order of the question.
        question: the emotion question with the labels in place.
        questions: texts for the aspects.
        use: the parts of the model that take part.
        longest_side: images with a longer side are shrunk to it first; None: never.
        rounding: of the shorter side then.
        temperature: that the log-probabilities of the labels are divided by.
    """

    labels: tuple[str, ...]
    question: str
    questions: Questions
    use: Use
    longest_side: int | None = None
    rounding: Rounding = "nearest"
    temperature: float = 1.0

    def calibrated(self, log_p: Float[Tensor, "batch labels"]) -> Float[Tensor, "batch labels"]:
        """Log-probabilities of the labels divided by the temperature and normalised again."""
        return log_p if self.temperature == 1 else (log_p / self.temperature).log_softmax(-1)


def task_of(info: AdapterInfo, labels: Sequence[str] | None = None, raw: bool = False) -> Task:
    """What an adapter was trained to be asked; `labels` replaces its own set, `raw` leaves its temperature out.

    Raises:
        AdapterError: It holds aspects only, and no labels were given.
        UsageError: Other labels for a concept bottleneck.
        DataError: Labels that cannot be told apart.
    """
    if labels is None and not info.labels:
        todo = "Name an adapter that `masp train prompt` wrote, or give the labels to choose from."
        raise AdapterError("this adapter reads aspects but has no labels", "an adapter with a soft prompt", todo)
    chosen = validate_labels(info.labels if labels is None else labels)
    if info.concepts is not None and chosen != info.labels:
        raise UsageError("other labels for a concept bottleneck", f"{', '.join(info.labels)}, its own")
    questions = info.asked()
    method = info.method.resolved()
    question = questions.ask_emotion(render_labels(chosen, method.label_list or "comma"))
    rounding = method.shrink_rounding or "nearest"
    fitted = info.temperature if chosen == info.labels and not raw else None  # it says nothing of other labels
    return Task(chosen, question, questions, Use(info.aspects), info.longest_side, rounding, fitted or 1.0)


def zero_shot_task(labels: Sequence[str] | None = None) -> Task:
    """What a backbone alone is asked (row V of Table 2): about `labels`, or the first of `NAMED_SETS`.

    Images are as large as the backbone's own processor takes them.

    Raises:
        DataError: Labels that cannot be told apart.
    """
    chosen = validate_labels(next(iter(NAMED_SETS.values())) if labels is None else labels)
    questions = load_questions()
    return Task(
        chosen, questions.ask_emotion(render_labels(chosen)), questions, Use(()), DataConfig().side_of(alone=True)
    )


def explained(
    model: MaspModel,
    visual: VisualTokens,
    task: Task,
    found: Sequence[Prediction],
    log_p: Float[Tensor, "batch labels"],
    attribution: Attribution | Literal[True],
) -> list[Prediction]:
    """Predictions with the generated answer and the reasons.

    Args:
        model: that predicted.
        visual: of the images.
        task: that was asked.
        found: the predictions, one per image.
        log_p: the model's own log-probabilities of the labels.
        attribution: how the effects of the aspects are found; True: `DEFAULT_ATTRIBUTION`.

    Raises:
        UsageError: no such attribution.
    """
    name = DEFAULT_ATTRIBUTION if attribution is True else attribution
    if name not in ATTRIBUTIONS:
        raise UsageError(f"explain is '{name}'", f"{', '.join(ATTRIBUTIONS)}, True or False")
    answers = generate(model, visual, task.question, task.use, longest_answer(model.backbone, task.labels))
    found = [replace(one, answer=answer) for one, answer in zip(found, answers, strict=True)]
    if not taking_part(model, task.use):
        return found
    effects = ATTRIBUTIONS[name](model, visual, task.question, task.labels, task.use, log_p)
    chosen = effects[torch.arange(len(found)), :, log_p.argmax(dim=1)]
    readings = read_aspects(model, visual, task.questions, task.use, chosen)
    looks = attention_to_aspects(model, visual, task.question, task.use) or [None] * len(found)
    reasons = zip(found, readings, looks, strict=True)
    return [replace(one, aspects=seen, prompt_attention=look, attribution=name) for one, seen, look in reasons]


def explained_by_words(
    model: MaspModel,
    concepts: ConceptBottleneck,
    visual: VisualTokens,
    task: Task,
    found: Sequence[Prediction],
    log_p: Float[Tensor, "batch labels"],
) -> list[Prediction]:
    """Predictions of a concept bottleneck with its reasons: the words of each aspect, and what they add to the label.

    Nothing is generated: the language model has no part in the answer but its scores, where they are added.
    """
    read, names = concepts.read(model, visual, task.question, task.labels), taking_part(model, task.use)
    chosen = concepts.effects(read, names)[torch.arange(len(found)), :, log_p.argmax(dim=1)]
    readings = read_aspects(model, visual, task.questions, task.use, chosen)
    told = [
        {name: replace(one, answer=words.get(name, ""), cut=False) for name, one in seen.items()}
        for seen, words in zip(readings, concepts.answers(read), strict=True)
    ]
    return [replace(one, aspects=seen, attribution=WORDS) for one, seen in zip(found, told, strict=True)]
