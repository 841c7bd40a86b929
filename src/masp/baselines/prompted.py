"""A backbone with any parts of the method as one system: alone, with aspect tokens, with a soft prompt, or with both.

Every row of Table 2 is one of these, whether its parts were trained by `masp train`, drawn at random, or left out.
The backbone alone is asked for the emotion with the list of labels, or with lettered options.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from masp.adapters import AdapterInfo, find_adapter, load_adapter, portable, tensors_sha256
from masp.backbones.base import Backbone
from masp.baselines.base import (
    Reading,
    SystemPrediction,
    TrainingData,
    emotion_question,
    named,
    plain,
    predictions_of,
    question_by_letter,
)
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import UsageError
from masp.core.labels import normalise_answer, render_labels, validate_labels
from masp.core.prompts import Questions, load_questions
from masp.core.setting_types import Count
from masp.core.types import VisualTokens
from masp.model.masp_model import ActiveParts, MaspModel, init_soft_prompt
from masp.model.prediction import TaskHandle, label_scores
from masp.model.scoring import generate, longest_answer, score
from masp.predictor import Masp

TABLE2 = {
    "V": "the backbone alone, zero-shot",
    "V+A": "with aspect tokens",
    "V+S": "with a soft prompt trained without aspects",
    "V+A+rS": "with aspect tokens and an untrained soft prompt",
    "V+A+S": "with aspect tokens and the soft prompt trained with them",
}
"""Short name and meaning of each row of Table 2, in its order."""


class Prompted:
    """Asks the emotion question with some parts of the method in the sequence; its training lies behind it.

    Args:
        model: backbone, aspects and soft prompt, as far as it has them.
        labels: what there is to choose from, in the order of the question.
        question: the emotion question with the labels in place.
        facts: what the answers depend on, ready for JSON; called when it is needed.
        use: which parts stand in the sequence; None: all that there are.
        reading: `score`: the most probable label; `generate`: the label that the greedy text names.
        words: what stands for each label in an answer, such as letters; None: the label itself.
        read: what a generated text says, by the text and the labels.
        handle: the task of an adapter that this is; with it also its temperature, and its concept bottleneck.
    """

    def __init__(
        self,
        model: MaspModel,
        labels: Sequence[str],
        question: str,
        facts: Callable[[], Mapping[str, Any]],
        use: ActiveParts | None = None,
        reading: Reading = "score",
        words: Sequence[str] | None = None,
        read: Callable[[str, Sequence[str]], SystemPrediction] = named,
        handle: TaskHandle | None = None,
    ) -> None:
        self.model, self.labels, self.question, self.use, self.reading = model, tuple(labels), question, use, reading
        self._facts, self._words, self._named, self.handle = facts, words or self.labels, read, handle

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.model.backbone

    def fit(self, examples: TrainingData) -> None:
        """Nothing: its parts were trained before, or never."""

    @torch.no_grad()
    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """The most probable label of each image with the log-probabilities of all, or what the greedy text names.

        Raises:
            UsageError: a concept bottleneck is to generate.
        """
        if self.reading == "generate":
            if self.handle is not None and self.handle.concepts is not None:
                raise UsageError("mode is 'generate' for a concept bottleneck, which generates nothing", "score")
            limit = longest_answer(self.backbone, self.labels)
            texts = generate(self.model, visual, self.question, self.use, limit)
            return [self._named(text, self.labels) for text in texts]
        if self.handle is not None:
            (scores,) = label_scores([self.handle], visual)
            return predictions_of(self.labels, self.handle.task.calibrated(scores))
        return predictions_of(self.labels, score(self.model, visual, self.question, self._words, self.use))

    def config(self) -> Mapping[str, Any]:
        """What its answers depend on: its name, its parts with their hashes, the question, how answers are read."""
        return self._facts()


def prompted(masp: Masp, reading: Reading = "score") -> Prompted:
    """What `masp train` made, or a `Masp` that was put together by hand, as a system."""
    task = masp.task

    def facts() -> dict[str, Any]:
        return {
            "system": portable(masp.adapter),
            "mode": reading,
            "question": task.question,
            "temperature": task.temperature,
            "adapter": adapter_facts(masp),
        }

    return Prompted(masp.model, task.labels, task.question, facts, task.use, reading, handle=masp.handle())


@dataclass(frozen=True)
class UntrainedSettings:
    """What is put around the image.

    Attributes:
        aspects: an aspects adapter, its run or its id on a hub; None: no aspect tokens.
        prompt_length: vectors of the random soft prompt; 0: none.
        seed: decides these vectors.
        reading: the most probable label, or the greedy answer, which must name one.
    """

    aspects: str | None = None
    prompt_length: Count = 32
    seed: Annotated[Count, Field(lt=2**32)] = 0
    reading: Reading = "score"


def untrained_system(
    backbone: Backbone,
    labels: tuple[str, ...],
    settings: UntrainedSettings | None = None,
    questions: Questions | None = None,
) -> Prompted:
    """A backbone with aspect tokens (V+A), an untrained soft prompt (V+rS), or both (V+A+rS).

    Args:
        backbone: is asked.
        labels: what it chooses from.
        settings: what is put around the image.
        questions: texts; None: those of the aspects' training, without aspects the package's own.

    Raises:
        UsageError: neither aspects nor a prompt, or an adapter without aspects.
        AdapterError: no such adapter, or one for another backbone.
    """
    settings, labels = settings or UntrainedSettings(), validate_labels(labels)
    if settings.aspects is None and settings.prompt_length == 0:
        raise UsageError("there are neither aspects nor a soft prompt", "aspects=DIR", "Or take zero-shot.")
    adapter = None if settings.aspects is None else load_adapter(find_adapter(settings.aspects), backbone)
    if adapter is not None and adapter.aspects is None:
        raise UsageError(f"{settings.aspects} holds no aspect modules", "an aspects adapter", "Name one.")
    method = MethodConfig() if adapter is None else adapter.info.method
    prompt = random_prompt(backbone, settings.prompt_length, settings.seed) if settings.prompt_length else None
    if questions is None:
        questions = load_questions() if adapter is None else adapter.info.asked()
    model = MaspModel(backbone, method, None if adapter is None else adapter.aspects, prompt, questions)
    question = questions.ask_emotion(render_labels(labels, method.label_list or "comma"))
    name = "aspects" if prompt is None else "random-prompt" if model.aspects is None else "aspects-random-prompt"

    def facts() -> dict[str, Any]:
        return {
            "system": name,
            "trained": 0,
            "settings": {key: value for key, value in plain(settings).items() if key != "aspects"},
            "seed": settings.seed,
            "aspects": [] if model.aspects is None else list(model.aspects.aspects),
            "question": question,
            "tensors_sha256": tensors_sha256(model.state_dict()),
        }

    return Prompted(model, labels, question, facts, reading=settings.reading)


def random_prompt(backbone: Backbone, length: int, seed: int, init: PromptInit | None = None) -> Any:
    """An untrained soft prompt; the seed decides its vectors."""
    return init_soft_prompt(init or PromptInit(), length, backbone, torch.Generator().manual_seed(seed))


def table2_systems(full: Masp, without_aspects: Masp, seed: int = 0) -> dict[str, Prompted]:
    """The five rows of Table 2 out of two adapters.

    Args:
        full: aspects, and the soft prompt trained with them.
        without_aspects: the soft prompt trained without aspects, on the same backbone object.
        seed: of the untrained soft prompt.

    Raises:
        UsageError: the two do not belong together or lack a part.
    """
    _check_pair(full, without_aspects)
    aspects, trained, names = full.model.aspects, full.model.prompt, full.task.use.aspects
    assert trained is not None
    untrained = random_prompt(full.backbone, trained.length, seed)
    random = MaspModel(full.backbone, full.model.method, aspects, untrained, full.model.questions)
    parts = {
        "V": (full.model, ActiveParts((), prompt=False)),
        "V+A": (full.model, ActiveParts(names, prompt=False)),
        "V+S": (without_aspects.model, ActiveParts(())),
        "V+A+rS": (random, ActiveParts(names)),
        "V+A+S": (full.model, ActiveParts(names)),
    }
    return {
        name: Prompted(model, full.labels, full.task.question, lambda name=name: {"system": name}, use)
        for name, (model, use) in parts.items()
    }


def _check_pair(full: Masp, without_aspects: Masp) -> None:
    problem = None
    if full.model.aspects is None or full.model.prompt is None:
        problem = "the first adapter lacks aspects or a soft prompt"
    elif without_aspects.model.prompt is None or without_aspects.task.use.aspects:
        problem = "the second adapter is not a soft prompt trained without aspects"
    elif without_aspects.backbone.fingerprint() != full.backbone.fingerprint():
        problem = "the two adapters belong to different backbones"
    elif without_aspects.backbone.hashes() != full.backbone.hashes():
        problem = "the two backbones have other processor settings, chat templates or tokenizers"
    elif (without_aspects.labels, without_aspects.task.question) != (full.labels, full.task.question):
        problem = "the two adapters choose from different labels or ask different questions"
    if problem:
        raise UsageError(problem, "V+A+S and V+S, trained on the same data set", "Train both on it.")


def adapter_facts(masp: Masp) -> dict[str, Any]:
    """What the adapter of a model is, without a place on this machine."""
    facts = trained_facts(portable(masp.adapter), masp.model, masp.task.use, masp.info)
    concepts = masp.handle().concepts
    words = {} if concepts is None else {"concepts_sha256": tensors_sha256(concepts.tensors)}
    return {"task": masp.task_name, **facts, **words}


def trained_facts(name: str, model: MaspModel, use: ActiveParts, info: AdapterInfo | None) -> dict[str, Any]:
    """The parts around an image: the hash of their tensors, and where they come from.

    Args:
        name: what it is called.
        model: with all of it.
        use: which of it takes part.
        info: what its training left; None where nothing was trained.
    """
    return {
        "name": name,
        "tensors_sha256": tensors_sha256(model.state_dict()),
        "method": model.method.model_dump(mode="json"),
        "aspects": list(use.aspects),
        "seeds": dict(info.seeds) if info else {},
        "data": {stage: record.model_dump(mode="json") for stage, record in info.data.items()} if info else {},
        "training": {stage: record.model_dump(mode="json") for stage, record in info.training.items()} if info else {},
    }


_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:,\n]|$)\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class ZeroShotSettings:
    """How a backbone is asked.

    Attributes:
        reading: the most probable label, or the greedy answer, which must name one.
        options: the labels as a list in the question of MASP, or as lettered options.
    """

    reading: Reading = "score"
    options: Literal["list", "letters"] = "list"


def zero_shot_system(
    backbone: Backbone,
    labels: tuple[str, ...],
    settings: ZeroShotSettings | None = None,
    questions: Questions | None = None,
) -> Prompted:
    """A frozen backbone without anything trained.

    Args:
        backbone: is asked.
        labels: what it chooses from.
        settings: how.
        questions: texts; None: the package's own.

    Raises:
        UsageError: more labels than letters.
        DataError: labels that cannot be told apart.
    """
    settings, labels = settings or ZeroShotSettings(), validate_labels(labels)
    name, question, words, read = "zero-shot", emotion_question(labels, questions), labels, named
    if settings.options == "letters":
        name, words, read = "zero-shot-letters", letters_of(labels), named_by_letter
        question = question_by_letter(questions).replace("{}", lettered(labels))

    def facts() -> dict[str, Any]:
        return {"system": name, "trained": 0, "settings": plain(settings), "question": question}

    model = MaspModel(backbone, MethodConfig())
    return Prompted(model, labels, question, facts, reading=settings.reading, words=words, read=read)


def letters_of(options: Sequence[str]) -> tuple[str, ...]:
    """A capital letter for each option, in order.

    Raises:
        UsageError: more options than letters.
    """
    if len(options) > len(ascii_uppercase):
        todo = "Ask with the list of labels instead: the system zero-shot."
        raise UsageError(f"there are {len(options)} options", f"at most {len(ascii_uppercase)}, one a letter", todo)
    return tuple(ascii_uppercase[: len(options)])


def lettered(options: Sequence[str]) -> str:
    """One line for each option: "A. amusement"."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters_of(options), options, strict=True))


def named_by_letter(text: str, options: Sequence[str]) -> SystemPrediction:
    """What a generated text says where options have letters; exact is the letter alone."""
    option = read_letter(text, options)
    letters = dict(zip(options, letters_of(options), strict=True))
    return SystemPrediction(option, answer=text, exact=option is not None and text.strip() == letters[option])


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer names by its letter ("B", "(b)", "B. awe"), or None.

    A letter that goes on as a word is none: "A happy dog" names no option. Where the letter is followed by the text of
    another option, the answer contradicts itself and names none either.
    """
    letter = _LETTER.match(text.strip())
    if letter is None:
        return None
    option = dict(zip(letters_of(options), options, strict=True)).get(letter[1].upper())
    others = {normalise_answer(other) for other in options if other != option}
    return None if normalise_answer(letter[2]) in others else option
