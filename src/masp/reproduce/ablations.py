"""The rows of Table 2 and their kin as systems: a backbone with aspects, a soft prompt, both or neither."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from masp.adapters import AdapterInfo, load_adapter
from masp.backbones.base import Backbone
from masp.baselines.base import Lessons, Reading, Said, named
from masp.baselines.prompted import trained_facts
from masp.core.config import RunConfig
from masp.core.labels import render_labels
from masp.core.prompts import load_questions
from masp.core.types import VisualTokens
from masp.model.masp_model import MaspModel, Use, start_prompt
from masp.model.scoring import generate, longest_answer, score
from masp.reproduce.specs import Recipe


class Variant:
    """A backbone with the parts of the method that a recipe names, asked as stage 2 asks.

    Args:
        name: of the recipe.
        model: with every part.
        use: which of them take part.
        labels: what it chooses from.
        question: the emotion question with the labels in place.
        info: what training left of its parts; None where it has none that was trained.
        seed: of what was trained or drawn; None where nothing was.
        reading: how its answers are read.
    """

    def __init__(
        self,
        name: str,
        model: MaspModel,
        use: Use,
        labels: tuple[str, ...],
        question: str,
        info: AdapterInfo | None = None,
        seed: int | None = None,
        reading: Reading = "score",
    ) -> None:
        self.name, self.model, self.use, self._labels, self.question = name, model, use, labels, question
        self.info, self.seed, self.reading = info, seed, reading

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.model.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from."""
        return self._labels

    def learn(self, lessons: Lessons) -> None:
        """Nothing: its parts were trained before."""

    @torch.no_grad()
    def answer(self, visual: VisualTokens) -> list[Said]:
        """The most probable label of each image with the log-probabilities of all, or the greedy text."""
        if self.reading == "generate":
            limit = longest_answer(self.backbone, self.labels)
            return [named(text, self.labels) for text in generate(self.model, visual, self.question, self.use, limit)]
        rows = score(self.model, visual, self.question, self.labels, self.use)
        best = rows.argmax(1).tolist()
        tables = [dict(zip(self.labels, row, strict=True)) for row in rows.cpu().double().log_softmax(1).tolist()]
        return [Said(self.labels[place], table) for place, table in zip(best, tables, strict=True)]

    def describe(self) -> Mapping[str, Any]:
        """The parts that take part, how many trained numbers they hold, and their hash."""
        prompt = self.model.prompt if self.use.prompt else None
        modules = self.model.aspects
        bare = modules is None and self.model.prompt is None
        aspects = 0 if modules is None else sum(_count(modules.module(name)) for name in self.use.aspects)
        return {
            "system": self.name,
            "aspects": list(self.use.aspects),
            "prompt": 0 if prompt is None else prompt.length,
            "numbers": {"prompt": 0 if prompt is None else _count(prompt), "aspects": aspects},
            "method": self.model.method.model_dump(mode="json"),
            "question": self.question,
            "reading": self.reading,
            "seed": self.seed,
            "adapter": None if bare else trained_facts(self.name, self.model, self.use, self.info),
        }


def build(
    recipe: Recipe,
    config: RunConfig,
    backbone: Backbone,
    labels: tuple[str, ...],
    aspects: Path | None,
    prompt: Path | None,
    seed: int | None,
    reading: Reading = "score",
) -> Variant:
    """The system of a recipe.

    Args:
        recipe: of kind `masp`.
        config: of the run that trains the prompt, or that would.
        backbone: frozen.
        labels: what to choose from.
        aspects: the folder of stage 1; not read where the recipe has no aspects.
        prompt: the folder of stage 2; None where the recipe has no trained prompt.
        seed: of training, and of an untrained prompt; None where the recipe has nothing that depends on one.
        reading: how its answers are read.
    """
    trained, found = None, None
    info: AdapterInfo | None = None
    if prompt is not None:
        second = load_adapter(prompt, backbone, aspects if recipe.aspects else None)
        trained, found, info = second.prompt, second.aspects, second.info
    elif recipe.aspects:
        assert aspects is not None
        first = load_adapter(aspects, backbone)
        found, info = first.aspects, first.info
    method = config.method.resolved() if info is None else info.method
    if recipe.prompt == "random":
        assert seed is not None
        generator = torch.Generator().manual_seed(seed)
        trained = start_prompt(config.prompt.init, config.method.prompt_length, backbone, generator)
    questions = load_questions(config.questions)
    style = config.method.resolved().label_list or "comma"
    model = MaspModel(backbone, method, found, trained, questions)
    use = Use(recipe.aspects, recipe.prompt != "none")
    question = questions.ask_emotion(render_labels(labels, style))
    return Variant(recipe.name, model, use, labels, question, info, seed, reading)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def trained_with(config: RunConfig, recipe: Recipe) -> RunConfig:
    """The settings of stage 2 for a recipe: its aspects, and its length of the prompt."""
    length = config.method.prompt_length if recipe.length is None else recipe.length
    method = config.method.model_copy(update={"prompt_length": length})
    second = config.prompt.model_copy(update={"aspects": recipe.aspects})
    return config.model_copy(update={"method": method, "prompt": second})
