"""Small trained heads over visual tokens, and how one of them is trained."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from masp.backbones.base import Backbone
from masp.baselines.base import Example
from masp.baselines.learning import Study
from masp.core.types import VisualTokens
from masp.training.signals import StopRequest
from masp.training.trainer import StepBatch, groups_of

SMALLEST = 1e-6  # a column that hardly varies is not blown up

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

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the head."""
        return dict(self.module.named_parameters())

    def weights(self) -> None:
        """All lessons count the same."""

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Adds what the head is given of each image."""
        for share in shares:
            lessons = [self.study.lessons.train[number] for number in share.examples]
            yield replace(share, loaded=(self.inputs([lesson.image for lesson in lessons]), lessons))

    def losses(self, share: StepBatch) -> Float[Tensor, " batch"]:
        """The loss of each lesson."""
        inputs, lessons = share.loaded
        self.module.train()
        return self.loss(self.module(*inputs), self._targets(lessons), [lesson.image for lesson in lessons])

    @torch.no_grad()
    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Accuracy, and the mean log-likelihood of the right label, which decides between equals."""
        self.module.eval()
        right, likelihood, held = 0, 0.0, self.study.lessons.val
        for lessons in groups_of(held, self.study.at_once):
            stop.check()
            log_p = self.module(*self.inputs([lesson.image for lesson in lessons])).log_softmax(1)
            truth = self._targets(lessons)
            right += int((log_p.argmax(1) == truth).sum())
            likelihood += float(log_p.gather(1, truth[:, None]).cpu().double().sum())
        return {"accuracy": right / len(held), "log_likelihood": likelihood / len(held)} if held else {}

    def _targets(self, lessons: Sequence[Example]) -> Int[Tensor, " batch"]:
        return torch.tensor([self.study.target(lesson) for lesson in lessons], device=self.study.backbone.device)


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


def read_with(backbone: Backbone, visual: VisualTokens, question: str) -> VisualTokens:
    """The visual tokens in the space of the language model, read with a question where the family's depend on one."""
    return backbone.condition_on(visual, [question] * len(visual))


def mean_token(visual: VisualTokens) -> Float[Tensor, "batch dim"]:
    """The mean of each image's visual tokens, fp32; padding does not count."""
    tokens = visual.tokens.float() * visual.mask[:, :, None]
    return tokens.sum(1) / visual.mask.sum(1, keepdim=True)
