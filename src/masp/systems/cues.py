"""A cue head: the annotated words that the aspects' tokens show, added up beside the scores of a soft prompt.

A variant of MASP under its own name, not in the paper. It is a concept bottleneck (Koh et al., ICML 2020) on aspect
modules as stage 1 left them: nothing of the backbone, the aspects or the soft prompt is trained again. It needs what
stage 1 needs, images with annotated aspects.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from masp.adapters import find_adapter, load_adapter, tensors_sha256
from masp.backbones.base import Backbone
from masp.errors import DataError, UsageError
from masp.labels import validate_labels
from masp.model import MaspModel
from masp.predictor import Masp
from masp.questions import Questions
from masp.settings import Positive
from masp.systems.base import Lesson, Lessons, Said, System
from masp.systems.heads import SMALLEST
from masp.systems.learning import Study, studying, unlearned
from masp.systems.plain import plain
from masp.systems.probe import figures, fitted, logits
from masp.systems.prompted import Prompted
from masp.systems.zero_shot import said
from masp.training.checkpoints import Checkpoint
from masp.types import VisualTokens

log = logging.getLogger(__name__)

NAME = "cues"


@dataclass(frozen=True)
class CueSettings:
    """How the cue head is fitted.

    Attributes:
        aspects: an aspects adapter, its run or its id on a hub.
        prompt: a prompt adapter whose scores are added up too; None: no language model has a part in the answer.
        fewest: a word that fewer images are annotated with is left out.
        cue_strengths: inverse strengths of the L2 penalty of the words, C; validation chooses for each aspect.
        cue_without_val: C of the words where there is no validation split.
        strengths: inverse strengths of the L2 penalty of the labels; validation chooses.
        without_val: C of the labels where there is no validation split.
        iterations: most iterations of L-BFGS for each fit.
    """

    aspects: str | None = None
    prompt: str | None = None
    fewest: Positive = 20
    cue_strengths: tuple[float, ...] = (0.01, 0.1, 1.0)
    cue_without_val: float = 0.1
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    without_val: float = 0.1
    iterations: Positive = 500


@dataclass(frozen=True)
class Cue:
    """One word of one aspect in one image.

    Attributes:
        aspect: which aspect shows it.
        word: as annotations have it.
        probability: that the image has it.
        effects: what it adds to the logit of every label, measured from the mean of the training images.
    """

    aspect: str
    word: str
    probability: float
    effects: Mapping[str, float]


class CueHead:
    """Two layers of logistic regression: aspect tokens → words, words and another system's scores → labels.

    Args:
        model: with aspect modules; a soft prompt in it has no part.
        labels: what it chooses from.
        over: whose log-probabilities are added up beside the words; None: the words alone.
        settings: how it is fitted; where adapters lie is not read.

    Raises:
        UsageError: the model has no aspects, or `over` chooses from other labels.
    """

    def __init__(
        self,
        model: MaspModel,
        labels: tuple[str, ...],
        over: System | None = None,
        settings: CueSettings | None = None,
    ) -> None:
        model.aspect_module()
        self.model, self._labels, self.over = model, validate_labels(labels), over
        self.settings = settings or CueSettings()
        if over is not None and tuple(over.labels) != self._labels:
            raise UsageError(f"the prompt chooses from {', '.join(over.labels)}", ", ".join(self._labels))
        self.learned: Checkpoint | None = None

    @property
    def backbone(self) -> Backbone:
        """The backbone of the aspects."""
        return self.model.backbone

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from."""
        return self._labels

    def learn(self, lessons: Lessons) -> None:
        """Reads every image once, fits the words of each aspect, then the labels; the best on val is kept.

        Raises:
            DataError: no word is annotated often enough, or there is nothing to learn from.
        """
        if self.over is not None:
            self.over.learn(replace(lessons, out=lessons.out / "prompt"))
        with studying(NAME, self.backbone, self.labels, lessons, self._identity()) as study:
            self.learned = study.once(lambda: self._fitted(study))

    @torch.no_grad()
    def answer(self, visual: VisualTokens) -> list[Said]:
        """The softmax of the second layer.

        Raises:
            UsageError: it has not learned yet.
        """
        found = self._state()
        return said(self.labels, logits(_part(found.tensors, "labels"), self._inputs(self._read(visual), found)))

    @torch.no_grad()
    def cues(self, visual: VisualTokens) -> list[list[Cue]]:
        """Every known word of every image, with what it adds to each label; the likeliest first.

        The effects of all words, those of the other system's scores and the bias make up the logits exactly.

        Raises:
            UsageError: it has not learned yet.
        """
        found = self._state()
        words, layer = found.state["words"], _part(found.tensors, "labels")
        inputs = self._inputs(self._read(visual), found)[:, : len(words)]
        scaled = (inputs - layer["mean"][: len(words)]) / layer["scale"][: len(words)]
        effects = scaled[:, :, None] * layer["weight"].T[: len(words)]  # (b, words, labels)
        rows = []
        for chances, added in zip(inputs.tolist(), effects.tolist(), strict=True):
            table = zip(words, chances, added, strict=True)
            made = [Cue(*word, chance, dict(zip(self.labels, row, strict=True))) for word, chance, row in table]
            rows.append(sorted(made, key=lambda cue: -cue.probability))
        return rows

    def describe(self) -> Mapping[str, Any]:
        """Its settings, the aspects, the system it adds to, and once it has learned its words and figures on val."""
        told: dict[str, Any] = {"system": NAME, "trained": 0, **self._identity()}
        if self.learned is not None:
            weights = [tensor for name, tensor in self.learned.tensors.items() if name.endswith(("weight", "bias"))]
            told["trained"] = sum(weight.numel() for weight in weights)
            told |= {"fitted": self.learned.state, "tensors_sha256": tensors_sha256(self.learned.tensors)}
        return told

    def _identity(self) -> dict[str, Any]:
        """All that decides what it learns, besides backbone, labels and lessons."""
        modules, questions = self.model.aspect_module(), self.model.questions
        settings = {key: value for key, value in plain(self.settings).items() if key not in ("aspects", "prompt")}
        return {
            "settings": settings,
            "aspects": list(modules.aspects),
            "aspects_sha256": tensors_sha256(modules.state_dict()),
            "questions": None if questions is None else questions.fingerprint(),
            "over": None if self.over is None else dict(self.over.describe()),
        }

    def _state(self) -> Checkpoint:
        if self.learned is None:
            raise unlearned(NAME)
        return self.learned

    def _read(self, visual: VisualTokens) -> dict[str, Tensor]:
        """Aspect tokens (b, aspects, n·d), and the other system's log-probabilities (b, labels or none); on the CPU."""
        tokens = self.model.aspect_tokens(visual).tokens.flatten(2).float().cpu()
        return {"tokens": tokens, "scores": self._scores(visual)}

    def _scores(self, visual: VisualTokens) -> Float[Tensor, "batch scores"]:
        if self.over is None:
            return torch.zeros(len(visual), 0)
        rows = [one.log_probabilities for one in self.over.answer(visual)]
        if any(row is None for row in rows):
            raise UsageError("the prompt's answers have no probabilities", "a system that gives them")
        return torch.tensor([[row[label] for label in self.labels] for row in rows if row is not None])

    def _inputs(self, read: Mapping[str, Tensor], found: Checkpoint) -> Float[Tensor, "batch inputs"]:
        """What the second layer reads: the probability of every word, then the scores."""
        aspects, chances = self.model.aspect_module().aspects, []
        for place, aspect in enumerate(aspects):
            layer = _part(found.tensors, aspect)
            if layer:
                chances.append(logits(layer, read["tokens"][:, place]).sigmoid())
        return torch.cat([*chances, read["scores"]], dim=1)

    def _fitted(self, study: Study) -> Checkpoint:
        table, row = study.table("aspect tokens", self._read)
        of = {
            split: {name: table[name][[row[lesson.image] for lesson in lessons]] for name in table}
            for split, lessons in (("train", study.lessons.train), ("val", study.lessons.val))
        }
        words = vocabulary(study.lessons.train, self.model.aspect_module().aspects, self.settings.fewest)
        tensors, state = {}, {"words": [[aspect, word] for aspect, known in words.items() for word in known]}
        for place, aspect in enumerate(self.model.aspect_module().aspects):
            if words[aspect]:
                pair = (of["train"]["tokens"][:, place], of["val"]["tokens"][:, place])
                layer, state[aspect] = self._aspect(study, aspect, words[aspect], pair)
                tensors |= {f"{aspect}.{name}": tensor for name, tensor in layer.items()}
        read = Checkpoint(0, tensors, state)
        layer, state["labels"] = self._labelled(study, *(self._inputs(of[split], read) for split in ("train", "val")))
        return Checkpoint(0, tensors | {f"labels.{name}": tensor for name, tensor in layer.items()}, state)

    def _aspect(
        self, study: Study, aspect: str, words: Sequence[str], tokens: tuple[Tensor, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The words of one aspect: the layer, and C with the mean log-likelihood of a word on val."""
        train = present(study.lessons.train, aspect, words)
        val = present(study.lessons.val, aspect, words)
        found = []
        for strength in self.settings.cue_strengths if len(val) else (self.settings.cue_without_val,):
            study.stop.check()
            layer = fitted_words(tokens[0], train, strength, self.settings.iterations)
            likelihood = _likelihood(logits(layer, tokens[1]), val) if len(val) else {}
            log.info("%s, C = %g: %s", aspect, strength, likelihood)
            found.append((tuple(likelihood.values()), layer, {"C": strength, **likelihood}))
        _, layer, told = max(found, key=lambda one: one[0])
        return layer, told

    def _labelled(self, study: Study, train: Tensor, val: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The second layer, and C with its figures on val; the likelihood decides."""
        targets = {
            "train": [study.target(lesson) for lesson in study.lessons.train],
            "val": [study.target(lesson) for lesson in study.lessons.val],
        }
        found = []
        for strength in self.settings.strengths if targets["val"] else (self.settings.without_val,):
            study.stop.check()
            layer = fitted(train, targets["train"], len(self.labels), strength, self.settings.iterations)
            told = figures(logits(layer, val), targets["val"])
            log.info("labels, C = %g: %s", strength, told)
            found.append((told.get("log_likelihood", 0.0), layer, {"C": strength, **told}))
        _, layer, told = max(found, key=lambda one: one[0])
        return layer, told


def cue_system(
    backbone: Backbone,
    labels: tuple[str, ...],
    settings: CueSettings | None = None,
    questions: Questions | None = None,
) -> CueHead:
    """A cue head on adapters that are named by its settings.

    Args:
        backbone: both adapters were trained on.
        labels: what it chooses from.
        settings: name the adapters.
        questions: what the aspects are asked, where visual tokens depend on it; None: as they were trained.

    Raises:
        UsageError: no aspects are named, or the adapter holds none.
        AdapterError: no such adapter, or one for another backbone.
    """
    settings = settings or CueSettings()
    if settings.aspects is None:
        raise UsageError("the cue head was given no aspects", "aspects=DIR", "Name what masp train aspects wrote.")
    folder = find_adapter(settings.aspects)
    found = load_adapter(folder, backbone)
    if found.aspects is None:
        raise UsageError(f"{settings.aspects} holds no aspect modules", "an aspects adapter", "Name one.")
    model = MaspModel(backbone, found.info.method, found.aspects, None, questions or found.info.asked())
    over = None
    if settings.prompt is not None:
        over = Prompted(Masp.from_pretrained(settings.prompt, backbone, aspects=folder, labels=labels))
    return CueHead(model, labels, over, settings)


def vocabulary(lessons: Sequence[Lesson], aspects: Sequence[str], fewest: int) -> dict[str, tuple[str, ...]]:
    """The words of each aspect that enough lessons are annotated with, in alphabetical order.

    Raises:
        DataError: there is none.
    """
    counts = {aspect: Counter(word for lesson in lessons for word in _words(lesson, aspect)) for aspect in aspects}
    known = {aspect: tuple(sorted(w for w, n in found.items() if n >= fewest)) for aspect, found in counts.items()}
    if not any(known.values()):
        raise DataError(
            "no aspect of the images to learn from is annotated often enough",
            f"a word that {fewest} or more of them have",
            "Annotate them (masp data annotate), or lower fewest.",
        )
    return known


def present(lessons: Sequence[Lesson], aspect: str, words: Sequence[str]) -> Float[Tensor, "images words"]:
    """1 where a lesson is annotated with a word, 0 where it is not, whatever the reason."""
    return torch.tensor([[float(word in _words(lesson, aspect)) for word in words] for lesson in lessons])


def fitted_words(
    tokens: Float[Tensor, "images dim"],
    wanted: Float[Tensor, "images words"],
    strength: float,
    iterations: int,
) -> dict[str, Tensor]:
    """A logistic regression for each word, all at once, by L-BFGS from zero; as `probe.fitted` gives one.

    Each minimises its cross-entropy, summed over the images, + |w|² / (2 · strength) on standardised columns.
    """
    wide = tokens.double()
    mean, scale = wide.mean(0), wide.std(0, correction=0).clamp_min(SMALLEST)
    inputs, targets = (wide - mean) / scale, wanted.double()
    weight = torch.zeros(targets.shape[1], inputs.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        own = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weight.T + bias, targets, reduction="sum")
        loss = (own + weight.square().sum() / (2 * strength)) / len(inputs)
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    known = torch.ones(targets.shape[1], dtype=torch.bool)
    images = torch.tensor(float(len(inputs)))
    parts = {"weight": weight, "bias": bias, "mean": mean, "scale": scale}
    return {**{name: part.detach().float() for name, part in parts.items()}, "known": known, "n": images}


def _words(lesson: Lesson, aspect: str) -> tuple[str, ...]:
    return tuple(word for word in lesson.aspects.get(aspect, "").split(", ") if word)


def _likelihood(odds: Tensor, wanted: Tensor) -> dict[str, float]:
    loss = torch.nn.functional.binary_cross_entropy_with_logits(odds.double(), wanted.double())
    return {"log_likelihood": -float(loss)}


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one layer."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
