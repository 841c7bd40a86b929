"""The backbone alone, asked for the emotion: with the list of labels, or with lettered options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from masp.backbones.base import Backbone
from masp.baselines.asking import emotion_question, question_by_letter
from masp.baselines.base import Lessons, Reading, Said, named
from masp.baselines.multiple_choice import lettered, letters_of, named_by_letter
from masp.baselines.plain import plain
from masp.core.config import MethodConfig
from masp.core.labels import validate_labels
from masp.core.prompts import Questions
from masp.core.types import VisualTokens
from masp.model.masp_model import MaspModel
from masp.model.scoring import generate_rows, longest_answer, score_rows

Options = Literal["list", "letters"]


@dataclass(frozen=True)
class ZeroShotSettings:
    """How a backbone is asked.

    Attributes:
        reading: the most probable label, or the greedy answer, which must name one.
        options: the labels as a list in the question of MASP, or as lettered options.
    """

    reading: Reading = "score"
    options: Options = "list"


class ZeroShot:
    """A frozen backbone without anything trained.

    Args:
        backbone: is asked.
        labels: what it chooses from.
        settings: how.
        name: what it is called in results.
        questions: texts; None: the package's own.

    Raises:
        UsageError: more labels than letters.
        DataError: labels that cannot be told apart.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: tuple[str, ...],
        settings: ZeroShotSettings | None = None,
        name: str = "",
        questions: Questions | None = None,
    ) -> None:
        self.model = MaspModel(backbone, MethodConfig())
        self.labels = validate_labels(labels)
        self.settings = settings or ZeroShotSettings()
        self.name = name or ("zero-shot" if self.settings.options == "list" else "zero-shot-letters")
        self.question = self._question(questions)

    @property
    def backbone(self) -> Backbone:
        """The backbone that is asked."""
        return self.model.backbone

    def learn(self, lessons: Lessons) -> None:
        """Nothing: nothing is trained."""

    def answer(self, visual: VisualTokens) -> list[Said]:
        """The label of each image: the most probable one, or the one that the greedy answer names."""
        rows = self.model.assemble(visual, [self.question] * len(visual))
        letters = self.settings.options == "letters"
        words = letters_of(self.labels) if letters else self.labels
        if self.settings.reading == "score":
            return said(self.labels, score_rows(self.model, rows, words))
        read = named_by_letter if letters else named
        texts = generate_rows(self.model, rows, longest_answer(self.backbone, self.labels))
        return [read(text, self.labels) for text in texts]

    def describe(self) -> Mapping[str, Any]:
        """Its settings and its question."""
        return {"system": self.name, "trained": 0, "settings": plain(self.settings), "question": self.question}

    def _question(self, questions: Questions | None) -> str:
        if self.settings.options == "letters":
            return question_by_letter(questions).replace("{}", lettered(self.labels))
        return emotion_question(self.labels, questions)


def said(labels: tuple[str, ...], log_p: Float[Tensor, "batch labels"]) -> list[Said]:
    """Normalised log-probabilities of the labels, with the most probable one as the answer."""
    rows = log_p.cpu().double().log_softmax(1).tolist()
    best = log_p.argmax(1).tolist()
    return [Said(labels[b], dict(zip(labels, row, strict=True))) for b, row in zip(best, rows, strict=True)]
