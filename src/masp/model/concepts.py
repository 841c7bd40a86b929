"""A concept bottleneck (Koh et al., 2020) on aspect modules: words from aspect tokens, and labels from the words.

Both layers are linear, so what every word adds to a label is known without a further pass. With a residual the labels
are read from the aspect tokens too, by a third linear layer (PCBM-h of Yuksekgonul et al., "Post-hoc concept bottleneck
models", 2023), and from the vision tower's features of the whole image, where the backbone gives them: what an aspect
adds is then the sum of its words and its tokens, and the whole image adds a term that is no aspect's. It is fitted by
`masp.baselines.concept_bottleneck`; here it answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from masp.core.errors import UsageError
from masp.core.types import VisualTokens
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import score

LABELS, RESIDUAL, IMAGE = "labels", "residual", "image"


@dataclass(frozen=True)
class Concepts:
    """What was read from a batch of images.

    Attributes:
        probabilities: of every word.
        scores: log-probabilities of the labels by the soft prompt; no columns where they are not added.
        residual: what the tokens of each aspect add to the logits beside its words, and under `IMAGE` what the whole
            image adds; empty without a residual.
    """

    probabilities: Float[Tensor, "batch words"]
    scores: Float[Tensor, "batch scores"]
    residual: Mapping[str, Float[Tensor, "batch labels"]] = field(default_factory=dict)


@dataclass(frozen=True)
class ConceptHead:
    """The two layers.

    Attributes:
        words: [aspect, word] of every word, those of one aspect together.
        prompt_aspects: aspects whose tokens stand before the image where the soft prompt is asked; None: there is none.
        tensors: `<aspect>.weight` (words of the aspect, queries · dim) and `<aspect>.bias`; `labels.weight`
            (labels, words and scores), `labels.bias`, and `labels.mean`, of words and scores on the training images.
            With a residual also `<aspect>.residual.weight` (labels, queries · dim) and `<aspect>.residual.bias`, which
            makes it zero on the mean training image; perhaps the same of `image` (labels, features).
        scores: whether the soft prompt's scores are added, if there is one.
        prompt_temperature: of the soft prompt where it answers alone; the head reads its scores undivided.
    """

    words: tuple[tuple[str, str], ...]
    prompt_aspects: tuple[str, ...] | None
    tensors: Mapping[str, Tensor]
    scores: bool = True
    prompt_temperature: float | None = None

    @property
    def residual(self) -> bool:
        """Whether the labels are read from the aspect tokens too."""
        return any(f".{RESIDUAL}." in name for name in self.tensors if not name.startswith(f"{IMAGE}."))

    @property
    def image_features(self) -> int:
        """Features of the whole image that the labels are read from; 0: none."""
        weight = self.tensors.get(f"{IMAGE}.{RESIDUAL}.weight")
        return 0 if weight is None else weight.shape[1]

    @torch.no_grad()
    def read(self, model: MaspModel, visual: VisualTokens, question: str, labels: Sequence[str]) -> Concepts:
        """The probability of every word, what tokens add, and the soft prompt's scores where they are added.

        Raises:
            UsageError: the head reads features of the whole image, which the visual tokens do not bring.
        """
        each = model.aspect_tokens(visual).tokens.flatten(2).unbind(1)
        tokens = dict(zip(model.aspect_module().aspects, each, strict=True))
        names = dict.fromkeys(aspect for aspect, _ in self.words)
        probabilities = torch.cat([self._layer(name, tokens[name]).sigmoid() for name in names], 1)
        if self.image_features:
            if visual.pooled is None:
                raise UsageError("visual tokens without pooled features", "those of the backbone it was learned on")
            tokens[IMAGE] = visual.pooled.float()
        rest = {
            name: self._layer(f"{name}.{RESIDUAL}", one)
            for name, one in tokens.items()
            if f"{name}.{RESIDUAL}.weight" in self.tensors
        }
        if self.prompt_aspects is None or not self.scores:
            return Concepts(probabilities, probabilities[:, :0], rest)
        return Concepts(probabilities, score(model, visual, question, labels, ActiveParts(self.prompt_aspects)), rest)

    def _layer(self, name: str, inputs: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        return inputs @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def log_probabilities(self, read: Concepts) -> Float[Tensor, "batch labels"]:
        """Of the labels; normalised."""
        logits = self._layer(LABELS, torch.cat([read.probabilities, read.scores], 1))
        for added in read.residual.values():
            logits = logits + added
        return logits.log_softmax(1)

    def effects(self, read: Concepts, aspects: Sequence[str]) -> Float[Tensor, "batch aspects labels"]:
        """What words and tokens of each aspect add to the logit of every label, from the mean training image."""
        count = len(self.words)
        away = read.probabilities - self.tensors[f"{LABELS}.mean"][:count]
        added = away[:, :, None] * self.tensors[f"{LABELS}.weight"].T[:count]
        own = [[index for index, (aspect, _) in enumerate(self.words) if aspect == name] for name in aspects]
        result = torch.stack([added[:, columns].sum(1) for columns in own], dim=1)
        if read.residual:
            result = result + torch.stack([read.residual[name] for name in aspects], dim=1)
        return result

    def image_effect(self, read: Concepts) -> Float[Tensor, "batch labels"] | None:
        """What the whole image adds to the logit of every label beside its aspects, from the mean training image."""
        return read.residual.get(IMAGE)

    def answers(self, read: Concepts) -> list[dict[str, str]]:
        """For every image the words of each aspect that it probably has, joined with commas."""
        result = []
        for row in (read.probabilities >= 0.5).tolist():
            there: dict[str, list[str]] = {aspect: [] for aspect, _ in self.words}
            for (aspect, word), has in zip(self.words, row, strict=True):
                there[aspect] += [word] * has
            result.append({aspect: ", ".join(words) for aspect, words in there.items()})
        return result


def folded(layer: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer on raw inputs, from one on inputs that are standardised by its `mean` and `scale`."""
    weight = layer["weight"] / layer["scale"]
    return weight, layer["bias"] - weight @ layer["mean"]
