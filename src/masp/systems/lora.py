"""QLoRA: LoRA layers in every block of the language model learn to answer the emotion question (paper, Table 4).

"Q" is a frozen backbone in 4 bits. The layers run on whatever the backbone was loaded in, and `describe` says which:
"qlora" over 4-bit weights, "lora" over all others. Rank 8 on the query and value projections of Qwen2-VL-7B are
2,523,136 trained values, 22 times the 114,688 of a soft prompt of 32 vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from masp.backbones.base import Backbone
from masp.questions import Questions
from masp.systems.base import Lessons, Said
from masp.systems.lora_layers import LoraSettings
from masp.systems.tuning import TunedBackbone
from masp.types import VisualTokens

__all__ = ["LoraSettings", "LoraSystem"]


class LoraSystem:
    """The emotion question, learned by LoRA layers: answer loss on the label, the list of labels in the question.

    Args:
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        name: what it is called in results; by default "qlora" over 4-bit weights and "lora" over all others.
        questions: texts; None: the package's own. Training takes the emotion texts in turn, answers use the first.

    Raises:
        UsageError: PEFT is not installed (`pip install 'masp[peft]'`), or the settings do not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: Sequence[str],
        settings: LoraSettings | None = None,
        name: str = "",
        questions: Questions | None = None,
    ) -> None:
        self._tuned = TunedBackbone("lora", backbone, labels, settings or LoraSettings(), questions)
        self.name = name or ("qlora" if self._tuned.layers.quantised else "lora")

    @property
    def backbone(self) -> Backbone:
        """See `System`."""
        return self._tuned.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """See `System`."""
        return self._tuned.labels

    def learn(self, lessons: Lessons) -> None:
        """Train on the label of every image; see `System.learn`."""
        self._tuned.check(lessons)
        self._tuned.learn(lessons, [self._tuned.classification(lesson) for lesson in lessons.train])

    def answer(self, visual: VisualTokens) -> list[Said]:
        """Log-probabilities of the labels; see `System.answer`."""
        return self._tuned.answer(visual)

    def describe(self) -> Mapping[str, Any]:
        """Number format, trained values, settings and what was learned; see `System.describe`."""
        return {**self._tuned.describe(), "system": self.name}
