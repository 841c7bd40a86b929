"""What every system under comparison offers.

A system knows images, labels and, if it wants them, aspect annotations. It never knows a data set: whoever runs it
reads the images, and all systems on one backbone share its frozen vision tower.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from masp.backbones.base import Backbone
from masp.core.labels import parse, render_labels
from masp.core.prompts import PLACE, Questions, load_questions
from masp.core.types import VisualTokens

Item = TypeVar("Item")

Reading = Literal["score", "generate"]
"""How an answer is read: the most probable label, or the label that the greedy text names."""


@dataclass(frozen=True)
class SystemPrediction:
    """What a system says about one image.

    Attributes:
        predicted: the label it names; None if its answer names none.
        log_probabilities: of every label, in nats, normalised over the labels; None where the system gives none.
        answer: the text it generated; None where it generates none.
        exact: whether that text is what was asked for, character for character, but for blanks at its ends (the
            paper's measure); None where there is no text.
    """

    predicted: str | None
    log_probabilities: Mapping[str, float] | None = None
    answer: str | None = None
    exact: bool | None = None


def named(text: str, labels: Sequence[str]) -> SystemPrediction:
    """What a generated text says: the label that it names, other case and punctuation at its ends forgiven."""
    label = parse(text, labels)
    return SystemPrediction(label, answer=text, exact=text.strip() == label)


def predictions_of(labels: tuple[str, ...], log_p: Float[Tensor, "batch labels"]) -> list[SystemPrediction]:
    """Log-probabilities normalised over the labels, with the most probable label as the answer."""
    best, rows = log_p.argmax(1).tolist(), log_p.cpu().double().log_softmax(1).tolist()
    return [SystemPrediction(labels[b], dict(zip(labels, row, strict=True))) for b, row in zip(best, rows, strict=True)]


class LabelScore:
    """Accuracy, and the mean log-likelihood of the right label, which decides between equals; summed batch by batch."""

    def __init__(self) -> None:
        self.count, self.right, self.likelihood = 0, 0, 0.0

    def add(self, log_p: Float[Tensor, "batch labels"], targets: Sequence[int]) -> None:
        """Count a batch of normalised log-probabilities against the indices of the right labels."""
        truth = torch.tensor(targets, dtype=torch.long, device=log_p.device)
        self.count += len(truth)
        self.right += int((log_p.argmax(1) == truth).sum())
        self.likelihood += float(log_p.gather(1, truth[:, None]).cpu().double().sum())

    def figures(self) -> dict[str, float]:
        """Both; empty without images."""
        if not self.count:
            return {}
        return {"accuracy": self.right / self.count, "log_likelihood": self.likelihood / self.count}


@dataclass(frozen=True)
class Example:
    """One labelled image to learn from.

    Attributes:
        image: its number among the images of the training data.
        label: its emotion.
        aspects: the annotated answer of each aspect that is annotated, as text.
    """

    image: int
    label: str
    aspects: Mapping[str, str]


@runtime_checkable
class Images(Protocol):
    """Visual tokens by the number of their image."""

    def stream(
        self, items: Iterable[Item], images: Callable[[Item], Sequence[int]]
    ) -> Iterator[tuple[Item, VisualTokens | None]]:
        """Visual tokens of one batch after the other, read ahead; None for a batch without images.

        Args:
            items: batches, as the caller names them.
            images: the numbers of a batch's images; one may occur several times.
        """
        ...

    def visual(self, images: Sequence[int]) -> VisualTokens:
        """Visual tokens of one batch, on the backbone's device; a number may occur several times."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """All that a system learns from: the same for every system in a comparison.

    Attributes:
        images: visual tokens of the images of both splits.
        train: what to learn from.
        val: what to choose settings by.
        out: a folder of the system's own, for checkpoints and for what it learns.
        seed: of everything random.
        fingerprint: hash of the data set it was made of, so that what was learned from another is not taken for this;
            "" where unknown.
        name: of the data set; "" where unknown.
    """

    images: Images
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    out: Path
    seed: int = 0
    fingerprint: str = ""
    name: str = ""


@runtime_checkable
class System(Protocol):
    """One way to name the emotion of an image."""

    @property
    def backbone(self) -> Backbone:
        """Prepares images and turns them into the visual tokens that `predict` takes."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from."""
        ...

    def fit(self, examples: TrainingData) -> None:
        """Learns what it has to, and nothing if it needs no training.

        An interrupted call goes on where it was when it is made again; a finished one only loads what it learned.

        Raises:
            DataError: there is nothing to learn from.
            Interrupted: a signal arrived; the state is saved.
        """
        ...

    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """What it says about each image of a batch. It does not depend on the other images of the batch."""
        ...

    def config(self) -> Mapping[str, Any]:
        """What its answers depend on, ready for JSON: its name, trained numbers, settings; no place on this machine."""
        ...


FREE = ("checkpoint_every", "checkpoint_minutes", "gradient_checkpointing")
"""Settings that change nothing of what is learned or answered."""


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, with lists in place of tuples, as JSON gives them back."""
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def deciding(settings: Any) -> dict[str, Any]:
    """The same without the settings that decide nothing."""
    return {name: value for name, value in plain(settings).items() if name not in FREE}


BY_LETTER = "Answer with the option's letter."


def emotion_question(labels: Sequence[str], questions: Questions | None = None) -> str:
    """The emotion question of every evaluation, with the labels in place; None: of the package's own texts."""
    return (questions or load_questions()).ask_emotion(render_labels(labels))


def question_by_letter(questions: Questions | None = None) -> str:
    """The same question for one of some lettered options, which go where its `{}` is.

    What stands before the labels is kept up to its last question mark, since what follows speaks of a list. A text
    that asks without one keeps all its words.
    """
    before, _, after = (questions or load_questions()).emotion[0].partition(PLACE)
    asks, mark, _ = before.rpartition("?")
    lines = [asks + mark, PLACE] if mark else [before.strip(), PLACE, after.lstrip(" .,;:?!").rstrip()]
    return "\n".join([*(line for line in lines if line), BY_LETTER])
