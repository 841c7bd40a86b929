"""A backbone with an adapter as one system among others: what `masp train` made, or a model put together by hand."""

from collections.abc import Mapping
from typing import Any

from masp.adapters import AdapterInfo, portable, tensors_sha256
from masp.backbones.base import Backbone
from masp.baselines.base import Lessons, Reading, Said, named
from masp.core.errors import UsageError
from masp.core.types import VisualTokens
from masp.model.masp_model import MaspModel, Use
from masp.model.scoring import generate, longest_answer
from masp.predictor import Masp


class Prompted:
    """Answers as a `Masp` does, whose training lies behind it.

    Args:
        masp: backbone, aspects and soft prompt, as far as it has them, and the question.
        mode: `score`: the most probable label; `generate`: the label that the generated text names.
    """

    def __init__(self, masp: Masp, mode: Reading = "score") -> None:
        self.masp = masp
        self.mode = mode

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.masp.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """What there is to choose from, in the order of the question."""
        return self.masp.labels

    def learn(self, lessons: Lessons) -> None:
        """Nothing: `masp train` did it."""

    def answer(self, visual: VisualTokens) -> list[Said]:
        """The most probable label of each image with the log-probabilities of all, or the generated text."""
        return self._scored(visual) if self.mode == "score" else self._generated(visual)

    def describe(self) -> Mapping[str, Any]:
        """The adapter with the hash of its tensors, the question, and how the answer is read."""
        return {
            "system": portable(self.masp.adapter),
            "mode": self.mode,
            "question": self.masp.task.question,
            "temperature": self.masp.task.temperature,
            "adapter": adapter_facts(self.masp),
        }

    def _scored(self, visual: VisualTokens) -> list[Said]:
        task = self.masp.task
        said = []
        for row in task.calibrated(self.masp.log_probabilities(visual)).tolist():
            best = task.labels[max(range(len(row)), key=row.__getitem__)]
            said.append(Said(best, dict(zip(task.labels, row, strict=True))))
        return said

    def _generated(self, visual: VisualTokens) -> list[Said]:
        task = self.masp.task
        if self.masp.concepts is not None:
            raise UsageError("mode is 'generate' for a concept bottleneck, which generates nothing", "score")
        limit = longest_answer(self.backbone, task.labels)
        texts = generate(self.masp.model, visual, task.question, task.use, limit)
        return [named(text, task.labels) for text in texts]


def adapter_facts(masp: Masp) -> dict[str, Any]:
    """What the adapter of a model is, without a place on this machine."""
    facts = trained_facts(portable(masp.adapter), masp.model, masp.task.use, masp.info)
    words = {} if masp.concepts is None else {"concepts_sha256": tensors_sha256(masp.concepts.tensors)}
    return {"task": masp.task_name, **facts, **words}


def trained_facts(name: str, model: MaspModel, use: Use, info: AdapterInfo | None) -> dict[str, Any]:
    """What is spliced in around an image: the hash of its tensors, and where they come from.

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
