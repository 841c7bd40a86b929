"""What is asked of a model about an image, and everything it says about one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from masp.adapters import AdapterInfo
from masp.core.aspects import deciding_cue
from masp.core.config import DataConfig
from masp.core.errors import AdapterError, UsageError
from masp.core.labels import NAMED_SETS, render_labels, validate_labels
from masp.core.prompts import Questions, load_questions
from masp.core.types import CachedPrefix, Domain, VisualTokens
from masp.data.images import Rounding
from masp.model.concepts import ConceptHead, Concepts
from masp.model.explain import (
    ATTRIBUTIONS,
    DEFAULT_ATTRIBUTION,
    AspectReading,
    Attribution,
    PromptAttention,
    attention_to_aspects,
    read_aspects,
)
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import LabelQuestion, generate, longest_answer, score, score_tasks

Explain = bool | Attribution
"""Whether to say why, or by which attribution."""

INSTEAD = (
    "Name a backbone that knows such images (--backbone photo, after pip install 'masp[photo]', or --backbone ID; "
    "without an adapter it answers zero-shot), "
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
        answer: the text that the backbone generates; None without explanations and where a concept bottleneck answers.
        aspects: what each aspect contributed; empty without explanations, and for an adapter without aspects.
        prompt_attention: from the soft prompt to each aspect; None where `aspects` is empty, there is no soft prompt,
            or a concept bottleneck answers.
        adapter: name of the adapter.
        backbone: name of the backbone.
        task: which task of an adapter with several; None for one with one.
        temperature: that the log-probabilities were divided by; 1.0: they are the model's own.
        attribution: how the effects of the aspects were found; None where `aspects` is empty.
        image_effect: what the whole image adds to the label's logit beside the aspects, in nats; None without
            explanations and where the answer has no such part.
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
    image_effect: float | None = None

    @property
    def deciding_cue(self) -> str | None:
        """The aspect that did most for the label, or "image"; None: nothing did noticeably, or there are no effects."""
        return deciding_cue({name: seen.effect for name, seen in self.aspects.items()}, self.image_effect)

    @property
    def warning(self) -> str | None:
        """What to know before this is believed; None where there is nothing to say."""
        if self.domain is None or self.domain.inside:
            return None
        return f"this backbone knows {self.domain.knows} only, and this is none: what it says here means nothing"

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts, ready for `json.dumps`."""
        return asdict(self) | {"deciding_cue": self.deciding_cue}


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
        raw: whether the adapter's temperature is left out, whatever the labels.
    """

    labels: tuple[str, ...]
    question: str
    questions: Questions
    use: ActiveParts
    longest_side: int | None = None
    rounding: Rounding = "nearest"
    temperature: float = 1.0
    raw: bool = False

    def calibrated(self, log_p: Float[Tensor, "batch labels"]) -> Float[Tensor, "batch labels"]:
        """Log-probabilities of the labels divided by the temperature and normalised again."""
        return log_p if self.temperature == 1 else (log_p / self.temperature).log_softmax(-1)


def task_of(info: AdapterInfo, labels: Sequence[str] | None = None, raw: bool = False) -> Task:
    """What an adapter was trained to be asked; `labels` replaces its own set, `raw` leaves its temperature out.

    Raises:
        AdapterError: It holds aspects only, and no labels were given.
        UsageError: Other labels for a concept bottleneck, which knows its own only.
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
    parts = ActiveParts(info.aspects)
    return Task(chosen, question, questions, parts, info.longest_side, rounding, fitted or 1.0, raw)


def tasks_of(
    info: AdapterInfo, labels: Sequence[str] | None, raw: bool, concepts: bool, named: str | None = None
) -> dict[str | None, tuple[Task, bool]]:
    """What is asked in each task of an adapter, and whether all of it answers or its concept bottleneck is left out.

    Where one task is named, others that cannot be asked so are no part of it.

    Raises:
        AdapterError: as for `task_of`.
        UsageError: a bottleneck is left out that stands without a soft prompt.
        DataError: as for `task_of`.
    """
    result = {}
    for key in info.tasks or (None,):
        one = info.for_task(key)
        own = concepts and one.answers(labels)
        try:
            result[key] = (task_of(one if own else one.without_concepts(), labels, raw), own)
        except UsageError:
            if named in (None, key):
                raise
    return result


def zero_shot_task(labels: Sequence[str] | None = None) -> Task:
    """What a backbone alone is asked (row V of Table 2): about `labels`, or the first of `NAMED_SETS`.

    Images are as large as the backbone's own processor takes them.

    Raises:
        DataError: Labels that cannot be told apart.
    """
    chosen = validate_labels(next(iter(NAMED_SETS.values())) if labels is None else labels)
    questions = load_questions()
    return Task(
        chosen,
        questions.ask_emotion(render_labels(chosen)),
        questions,
        ActiveParts(()),
        DataConfig().side_of(alone=True),
    )


@dataclass(frozen=True)
class TaskHandle:
    """One task with what answers it; read as one, so that no call pairs a task with the prompt of another.

    Attributes:
        model: backbone, aspects and soft prompt.
        task: what is asked.
        info: the adapter's description, as if it held this task alone; None without an adapter.
        adapter: name of the adapter in results.
        name: of the task, in an adapter with several.
        concepts: the concept bottleneck that answers in the language model's place, if there is one.
    """

    model: MaspModel
    task: Task
    info: AdapterInfo | None
    adapter: str
    name: str | None = None
    concepts: ConceptHead | None = None


def label_scores(
    handles: Sequence[TaskHandle],
    visual: VisualTokens,
    prefix: CachedPrefix | None = None,
    read: Sequence[Concepts | None] | None = None,
) -> list[Float[Tensor, "batch labels"]]:
    """Log-probabilities of every task's labels, normalised and without the temperature.

    By the backbone, or by the concept bottleneck of a task that has one.

    Args:
        handles: the tasks.
        visual: the images.
        prefix: what precedes the soft prompts of all tasks, where it is computed already.
        read: what `read_concepts` gave for each task, where it is known already.
    """
    read = read_concepts(handles, visual) if read is None else read
    own = [one.concepts is None for one in handles]
    asked = [
        LabelQuestion(one.model, one.task.question, one.task.labels, one.task.use)
        for one, answers in zip(handles, own, strict=True)
        if answers
    ]
    if prefix is None:
        scores = iter(score_tasks(visual, asked) if asked else ())
    else:
        scores = (score(one.model, prefix, one.question, one.labels, one.use) for one in asked)
    return [
        next(scores) if one.concepts is None or seen is None else one.concepts.log_probabilities(seen)
        for one, seen in zip(handles, read, strict=True)
    ]


def read_concepts(handles: Sequence[TaskHandle], visual: VisualTokens) -> list[Concepts | None]:
    """What the concept bottleneck of each task reads from the images; None for a task without one."""
    return [
        None if one.concepts is None else one.concepts.read(one.model, visual, one.task.question, one.task.labels)
        for one in handles
    ]


def predict_visual(
    handles: Sequence[TaskHandle],
    visual: VisualTokens,
    names: Sequence[str],
    explain: Explain,
    prefix: CachedPrefix | None = None,
) -> list[list[Prediction]]:
    """For each of a batch of images its prediction in every task; all of them see it through one backbone.

    The probabilities are the softmax of the scores after they are divided by the temperature; reasons are about the
    scores themselves.

    Args:
        handles: the tasks.
        visual: the images.
        names: what they are called in results.
        explain: whether to say why, or by which attribution; True: `DEFAULT_ATTRIBUTION`. A concept bottleneck has its
            own.
        prefix: what precedes the soft prompts of all tasks, where it is computed already.

    Raises:
        UsageError: no such attribution.
    """
    if not isinstance(explain, bool) and explain not in ATTRIBUTIONS:
        raise UsageError(f"explain is '{explain}'", f"{', '.join(ATTRIBUTIONS)}, True or False")
    backbone = handles[0].model.backbone
    domains = backbone.domain(visual) or [None] * len(visual)
    by_task: list[list[Prediction]] = []
    read = read_concepts(handles, visual)
    for handle, seen, log_p in zip(handles, read, label_scores(handles, visual, prefix, read), strict=True):
        labels, divided = handle.task.labels, handle.task.temperature
        rows = zip(names, handle.task.calibrated(log_p).exp().tolist(), log_p.argmax(1).tolist(), domains, strict=True)
        by = (handle.adapter, backbone.name, handle.name)
        result = [
            Prediction(name, labels[best], dict(zip(labels, row, strict=True)), None, {}, None, *by, domain, divided)
            for name, row, best, domain in rows
        ]
        if explain and handle.concepts is not None and seen is not None:
            result = _explained_by_words(handle, handle.concepts, seen, visual, result, log_p)
        elif explain:
            result = _explained(handle, visual, result, log_p, DEFAULT_ATTRIBUTION if explain is True else explain)
        by_task.append(result)
    return [list(row) for row in zip(*by_task, strict=True)]


def _explained(
    handle: TaskHandle,
    visual: VisualTokens,
    predictions: Sequence[Prediction],
    log_p: Float[Tensor, "batch labels"],
    attribution: Attribution,
) -> list[Prediction]:
    """The same predictions with the generated answer and the reasons; `log_p` are the model's own scores."""
    model, task = handle.model, handle.task
    answers = generate(model, visual, task.question, task.use, longest_answer(model.backbone, task.labels))
    predictions = [replace(one, answer=answer) for one, answer in zip(predictions, answers, strict=True)]
    if not model.active_aspects(task.use):
        return predictions
    effects = ATTRIBUTIONS[attribution](model, visual, task.question, task.labels, task.use, log_p)
    chosen = effects[torch.arange(len(predictions)), :, log_p.argmax(dim=1)]
    readings = read_aspects(model, visual, task.questions, task.use, chosen)
    looks = attention_to_aspects(model, visual, task.question, task.use) or [None] * len(predictions)
    reasons = zip(predictions, readings, looks, strict=True)
    return [replace(one, aspects=seen, prompt_attention=look, attribution=attribution) for one, seen, look in reasons]


def _explained_by_words(
    handle: TaskHandle,
    concepts: ConceptHead,
    read: Concepts,
    visual: VisualTokens,
    predictions: Sequence[Prediction],
    log_p: Float[Tensor, "batch labels"],
) -> list[Prediction]:
    """Predictions of a concept bottleneck with its reasons: the words of each aspect, and what it adds to the label.

    Nothing is generated: the language model has no part in the answer but its scores, where they are added.
    """
    model, task = handle.model, handle.task
    names = model.active_aspects(task.use)
    rows, best = torch.arange(len(predictions)), log_p.argmax(dim=1)
    readings = read_aspects(
        model, visual, task.questions, task.use, concepts.effects(read, names)[rows, :, best], concepts.answers(read)
    )
    rest = concepts.image_effect(read)
    added = [None] * len(predictions) if rest is None else rest[rows, best].tolist()
    return [
        replace(one, aspects=seen, attribution=WORDS, image_effect=more)
        for one, seen, more in zip(predictions, readings, added, strict=True)
    ]
