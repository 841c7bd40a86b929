"""A distilled head beside a tuned backbone, and a gate between them: the idea of EmoVLM-KD (CVPR workshops 2025).

The original's teacher is a ViT that was trained on the labels. Ours is a head with attention over all visual tokens of
the same frozen backbone, so that nothing else has to be downloaded and every system sees the same pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from masp.adapters import tensors_sha256
from masp.baselines.base import (
    Example,
    LabelScore,
    System,
    SystemPrediction,
    TrainingData,
    deciding,
    emotion_question,
    plain,
    predictions_of,
)
from masp.baselines.learning import SMALLEST, Study, mean_token, read_with, studying, unlearned
from masp.core.labels import validate_labels
from masp.core.prompts import Questions
from masp.core.setting_types import Number, Positive, Share
from masp.core.settings import TrainConfig
from masp.core.types import VisualTokens
from masp.model.cost_estimate import numbers
from masp.training.checkpoints import Checkpoint
from masp.training.signals import StopRequest
from masp.training.trainer import StepBatch, groups_of

Loss = Callable[[Float[Tensor, "batch labels"], Int[Tensor, " batch"], Sequence[int]], Float[Tensor, " batch"]]


class MeanHead(nn.Module):
    """The head of EmoVLM-KD on the mean visual token: width → hidden → GELU → dropout → labels.

    Each column is standardised first, by numbers that are given and not trained; until then it is taken as it is.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, hidden: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, labels))

    def forward(self, mean: Float[Tensor, "batch width"]) -> Float[Tensor, "batch labels"]:
        """Logits of the labels."""
        return self.layers((mean - self.mean) / self.scale)

    def standardise(self, means: Float[Tensor, "images width"]) -> None:
        """Take mean and spread of every column from these images."""
        self.mean.copy_(means.mean(0))
        self.scale.copy_(means.std(0, correction=0).clamp_min(SMALLEST))


class AttentionHead(nn.Module):
    """A head that looks at every visual token: one learned query, softmax attention, then two layers.

    The tokens are normalised first, since their scale differs by orders of magnitude between backbones.
    """

    def __init__(self, width: int, hidden: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.zeros(hidden))
        self.keys, self.values = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, labels)
        )

    def forward(
        self, tokens: Float[Tensor, "batch visual width"], mask: Bool[Tensor, "batch visual"]
    ) -> Float[Tensor, "batch labels"]:
        """Logits of the labels; padding gets no weight."""
        normed = self.norm(tokens.float())
        scores = self.keys(normed) @ self.query / math.sqrt(len(self.query))
        weights = scores.masked_fill(~mask, float("-inf")).softmax(1)
        return self.layers((weights[:, :, None] * self.values(normed)).sum(1))


class HeadStage:
    """What the training loop is told of a head.

    Args:
        name: of the part, and of its folder.
        module: the head; on the backbone's device.
        study: what is learned from.
        inputs: what the module is given of these images.
        loss: from logits, numbers of the labels and numbers of the images; None: cross-entropy.
    """

    unit: str = "images"
    score: tuple[str, ...] = ("accuracy", "log_likelihood")
    weights: Float[Tensor, " examples"] | None = None

    def __init__(
        self,
        name: str,
        module: nn.Module,
        study: Study,
        inputs: Callable[[Sequence[int]], tuple[Tensor, ...]],
        loss: Loss | None = None,
    ) -> None:
        self.name, self.module, self.study, self.inputs = name, module, study, inputs
        self.loss = cross_entropy if loss is None else loss
        self.lr_scales: dict[str, float] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the head."""
        return dict(self.module.named_parameters())

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Adds what the head is given of each image."""
        for share in shares:
            examples = [self.study.data.train[number] for number in share.examples]
            yield replace(share, loaded=(self.inputs([example.image for example in examples]), examples))

    def losses(self, share: StepBatch) -> Float[Tensor, " batch"]:
        """The loss of each example."""
        inputs, examples = share.loaded
        self.module.train()
        return self.loss(self.module(*inputs), self._targets(examples), [example.image for example in examples])

    @torch.no_grad()
    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Accuracy, and the mean log-likelihood of the right label, which decides between equals."""
        self.module.eval()
        score = LabelScore()
        for examples in groups_of(self.study.data.val, self.study.at_once):
            stop.check()
            log_p = self.module(*self.inputs([example.image for example in examples])).log_softmax(1)
            score.add(log_p, [self.study.target(example) for example in examples])
        return score.figures()

    def _targets(self, examples: Sequence[Example]) -> Int[Tensor, " batch"]:
        return torch.tensor([self.study.target(example) for example in examples], device=self.study.backbone.device)


def cross_entropy(
    logits: Float[Tensor, "batch labels"], targets: Int[Tensor, " batch"], images: Sequence[int]
) -> Float[Tensor, " batch"]:
    """Negative log-probability of the right label."""
    return functional.cross_entropy(logits, targets, reduction="none")


def distillation_loss(
    student: Float[Tensor, "batch labels"],
    teacher: Float[Tensor, "batch labels"],
    targets: Int[Tensor, " batch"],
    weight: float = 0.5,
    temperature: float = 2.0,
) -> Float[Tensor, " batch"]:
    """EmoVLM-KD: weight · KL(teacher ‖ student) at a temperature · its square + (1 - weight) · cross-entropy."""
    soft = functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="none",
        log_target=True,
    ).sum(1)
    hard = functional.cross_entropy(student, targets, reduction="none")
    return weight * temperature**2 * soft + (1 - weight) * hard


NAME = "distilled"
Rate = Annotated[Number, Field(gt=0, le=1)]


@dataclass(frozen=True)
class DistilledSettings:
    """How teacher, head and gate are trained. Epochs of the head and the gate are those of EmoVLM-KD.

    Attributes:
        teacher_width: width of the teacher.
        hidden: width of the head.
        dropout: in both.
        temperature: at which the teacher is imitated.
        soft: share of imitation in the head's loss; the rest is cross-entropy.
        teacher_rate: learning rate of the teacher.
        teacher_epochs: passes of the teacher over the images.
        head_rate: learning rate of the head; EmoVLM-KD: 1e-5.
        head_epochs: passes of the head over the images.
        gate_rate: learning rate of the gate; EmoVLM-KD: 1e-4.
        gate_epochs: passes of the gate over the images.
        batch_size: images per step.
        checkpoint_minutes: minutes between checkpoints.
        checkpoint_every: steps between checkpoints, beside those by time; None: none.
    """

    teacher_width: Positive = 256
    hidden: Positive = 1024
    dropout: Share = 0.1
    temperature: Annotated[Number, Field(gt=0)] = 2.0
    soft: Share = 0.5
    teacher_rate: Rate = 1e-3
    teacher_epochs: Positive = 10
    head_rate: Rate = 1e-3
    head_epochs: Positive = 5
    gate_rate: Rate = 1e-2
    gate_epochs: Positive = 10
    batch_size: Positive = 32
    checkpoint_minutes: Annotated[Number, Field(ge=0)] = 10.0
    checkpoint_every: Positive | None = None


class Distilled:
    """A head on the mean visual token, taught by labels and a teacher, and a gate that weighs it against a system.

    Args:
        tuned: any system; what it answers is one input of the gate. EmoVLM-KD: the tuned backbone.
        settings: how it is trained.
        questions: the visual tokens of the head are read with their emotion question where they depend on one; None:
            the package's own. What the system is asked is its own affair.
    """

    def __init__(
        self, tuned: System, settings: DistilledSettings | None = None, questions: Questions | None = None
    ) -> None:
        self.tuned, self.settings = tuned, settings or DistilledSettings()
        self.backbone, self.labels = tuned.backbone, tuned.labels
        self.modules: tuple[MeanHead, nn.Linear] | None = None
        self.fitted: Mapping[str, Any] = {}
        self.seed = 0
        self.question = emotion_question(validate_labels(tuned.labels), questions)

    def fit(self, examples: TrainingData) -> None:
        """Lets the tuned system learn in `out/tuned`; then trains teacher, head and gate, one after the other."""
        self.tuned.fit(replace(examples, out=examples.out / "tuned"))
        before = {"question": self.question, "tuned": dict(self.tuned.config())}
        with studying(NAME, self.backbone, self.labels, examples, deciding(self.settings) | before) as study:
            learned = study.once(lambda: self._trained(study))
        head, gate = self._head(learned.tensors["head/layers.0.weight"].shape[1]), self._gate()
        for name, module in (("head/", head), ("gate/", gate)):
            own = {key.removeprefix(name): value for key, value in learned.tensors.items() if key.startswith(name)}
            module.load_state_dict(own)
            module.eval()
        self.modules, self.fitted, self.seed = (head, gate), learned.state, examples.seed

    @torch.no_grad()
    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """The softmax of the gate.

        Raises:
            UsageError: it has not learned yet.
        """
        if self.modules is None:
            raise unlearned(NAME)
        head, gate = self.modules
        own = head(self._mean(visual)["mean"].to(self.backbone.device))
        return predictions_of(self.labels, gate(gate_inputs(own, self._answers(visual)["answer"])))

    def config(self) -> Mapping[str, Any]:
        """Its settings, the system it builds on, and once it has learned the figures of its parts on val."""
        facts: dict[str, Any] = {"system": NAME, "trained": 0, "settings": plain(self.settings)}
        if self.modules is not None:
            state = {f"{part}.{key}": value for part, own in self._parts().items() for key, value in own.items()}
            facts["trained"] = sum(numbers(module) for module in self.modules)
            facts |= {"seed": self.seed, "fitted": dict(self.fitted), "tensors_sha256": tensors_sha256(state)}
        return facts | {"tuned": dict(self.tuned.config())}

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        assert self.modules is not None
        return {name: module.state_dict() for name, module in zip(("head", "gate"), self.modules, strict=True)}

    def _head(self, width: int) -> MeanHead:
        settings = self.settings
        head = MeanHead(width, settings.hidden, len(self.labels), settings.dropout)
        return head.to(self.backbone.device)

    def _gate(self) -> nn.Linear:
        """The gate before training: zeros, so that nothing in it is random."""
        gate = nn.Linear(2 * len(self.labels), len(self.labels))
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        return gate.to(self.backbone.device)

    def _mean(self, visual: VisualTokens) -> dict[str, Tensor]:
        return {"mean": mean_token(read_with(self.backbone, visual, self.question))}

    def _answers(self, visual: VisualTokens) -> dict[str, Tensor]:
        """The number of the label that the tuned system names; one past the last where it names none."""
        named = [prediction.predicted for prediction in self.tuned.predict(visual)]
        indices = [len(self.labels) if label is None else self.labels.index(label) for label in named]
        return {"answer": torch.tensor(indices)}

    def _trained(self, study: Study) -> Checkpoint:
        means, row = study.table("mean visual tokens", self._mean)
        width, device = means["mean"].shape[1], self.backbone.device
        with torch.random.fork_rng():
            torch.manual_seed(study.data.seed)
            sizes = (self.settings.teacher_width, len(self.labels), self.settings.dropout)
            teacher, head, gate = AttentionHead(width, *sizes).to(device), self._head(width), self._gate()
        head.standardise(means["mean"][[row[example.image] for example in study.data.train]].to(device))
        figures = {
            "teacher": study.fit(HeadStage("teacher", teacher, study, self._whole(study)), self._plan("teacher", study))
        }
        teacher.eval()
        taught, _ = study.table("teacher", lambda visual: {"logits": teacher(*self._tokens(visual))})

        def pooled(images: Sequence[int]) -> tuple[Tensor]:
            return (means["mean"][[row[image] for image in images]].to(device),)

        def imitate(
            student: Float[Tensor, "batch labels"], targets: Int[Tensor, " batch"], images: Sequence[int]
        ) -> Float[Tensor, " batch"]:
            soft = taught["logits"][[row[image] for image in images]].to(device)
            return distillation_loss(student, soft, targets, self.settings.soft, self.settings.temperature)

        figures["head"] = study.fit(HeadStage("head", head, study, pooled, imitate), self._plan("head", study))
        head.eval()
        answers, _ = study.table("answers", self._answers)

        @torch.no_grad()
        def both(images: Sequence[int]) -> tuple[Tensor]:
            return (gate_inputs(head(*pooled(images)), answers["answer"][[row[image] for image in images]]),)

        figures["gate"] = study.fit(HeadStage("gate", gate, study, both), self._plan("gate", study))
        parts = {"head/": head, "gate/": gate}
        tensors = {
            f"{name}{key}": value.cpu() for name, part in parts.items() for key, value in part.state_dict().items()
        }
        return Checkpoint(0, tensors, figures)

    def _tokens(self, visual: VisualTokens) -> tuple[Tensor, Tensor]:
        read = read_with(self.backbone, visual, self.question)
        return read.tokens, read.mask

    def _whole(self, study: Study) -> Any:
        """All visual tokens of the images, for the teacher."""
        return lambda images: self._tokens(study.data.images.visual(images))

    def _plan(self, part: str, study: Study) -> TrainConfig:
        settings = self.settings
        return TrainConfig(
            learning_rate=getattr(settings, f"{part}_rate"),
            epochs=getattr(settings, f"{part}_epochs"),
            batch_size=settings.batch_size,
            checkpoint_minutes=settings.checkpoint_minutes,
            checkpoint_every=settings.checkpoint_every,
            seed=study.data.seed,
        )


def gate_inputs(logits: Float[Tensor, "batch labels"], answers: Int[Tensor, " batch"]) -> Float[Tensor, "batch both"]:
    """[head logits ; one-hot of the tuned system's answer]; an answer that names no label is all zeros."""
    labels = logits.shape[1]
    chosen = torch.nn.functional.one_hot(answers.to(logits.device), labels + 1)[:, :labels]
    return torch.cat([logits, chosen.to(logits)], dim=1)
