"""Parts of MASP without their training: aspect tokens alone (V+A), or with a random soft prompt (V+A+rS; Table 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from masp.adapters import find_adapter, load_adapter, tensors_sha256
from masp.backbones.base import Backbone
from masp.baselines.base import Lessons, Reading, Said, named
from masp.baselines.plain import plain
from masp.baselines.zero_shot import said
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import UsageError
from masp.core.labels import render_labels, validate_labels
from masp.core.prompts import Questions, load_questions
from masp.core.setting_types import Count
from masp.core.types import VisualTokens
from masp.model.masp_model import MaspModel, start_prompt
from masp.model.scoring import generate_rows, longest_answer, score_rows


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


class Untrained:
    """A backbone with aspect tokens, a soft prompt that nobody trained, or both.

    Args:
        backbone: is asked.
        labels: what it chooses from.
        settings: what is put around the image.
        questions: texts; None: those of the aspects' training, without aspects the package's own.

    Raises:
        UsageError: neither aspects nor a prompt, or an adapter without aspects.
        AdapterError: no such adapter, or one for another backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: tuple[str, ...],
        settings: UntrainedSettings | None = None,
        questions: Questions | None = None,
    ) -> None:
        self.settings, self.labels = settings or UntrainedSettings(), validate_labels(labels)
        if self.settings.aspects is None and self.settings.prompt_length == 0:
            raise UsageError("there are neither aspects nor a soft prompt", "aspects=DIR", "Or take zero-shot.")
        found = None if self.settings.aspects is None else load_adapter(find_adapter(self.settings.aspects), backbone)
        if found is not None and found.aspects is None:
            raise UsageError(f"{self.settings.aspects} holds no aspect modules", "an aspects adapter", "Name one.")
        method = MethodConfig() if found is None else found.info.method
        generator = torch.Generator().manual_seed(self.settings.seed)
        length = self.settings.prompt_length
        prompt = start_prompt(PromptInit(), length, backbone, generator) if length else None
        if questions is None:
            questions = load_questions() if found is None else found.info.asked()
        self.model = MaspModel(backbone, method, None if found is None else found.aspects, prompt, questions)
        self.question = questions.ask_emotion(render_labels(self.labels, self.model.method.label_list or "comma"))

    @property
    def backbone(self) -> Backbone:
        """The backbone that is asked."""
        return self.model.backbone

    def learn(self, lessons: Lessons) -> None:
        """Nothing: that is the point."""

    def answer(self, visual: VisualTokens) -> list[Said]:
        """The label of each image: the most probable one, or the one that the greedy answer names."""
        rows = self.model.assemble(visual, [self.question] * len(visual))
        if self.settings.reading == "score":
            return said(self.labels, score_rows(self.model, rows, self.labels))
        texts = generate_rows(self.model, rows, longest_answer(self.backbone, self.labels))
        return [named(text, self.labels) for text in texts]

    def describe(self) -> Mapping[str, Any]:
        """Its settings, its question, and the hash of aspects and prompt."""
        length, aspects = self.settings.prompt_length, self.model.aspects is not None
        settings = {key: value for key, value in plain(self.settings).items() if key != "aspects"}
        return {
            "system": ("aspects-" if aspects else "") + "random-prompt" if length else "aspects",
            "trained": 0,
            "settings": settings,
            "seed": self.settings.seed,
            "aspects": [] if self.model.aspects is None else list(self.model.aspects.aspects),
            "question": self.question,
            "tensors_sha256": tensors_sha256(self.model.state_dict()),
        }
