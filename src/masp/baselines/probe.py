"""A linear probe: what the vision tower's features say about the emotion without any language model."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from masp.adapters import tensors_sha256
from masp.backbones.base import Backbone
from masp.baselines.base import LabelScore, SystemPrediction, TrainingData, emotion_question, plain, predictions_of
from masp.baselines.learning import SMALLEST, Study, pooled_features, read_with, studying, unlearned
from masp.core.errors import DataError
from masp.core.labels import validate_labels
from masp.core.prompts import Questions
from masp.core.setting_types import Positive
from masp.core.types import VisualTokens
from masp.training.checkpoints import Checkpoint

log = logging.getLogger(__name__)

NAME = "probe"


@dataclass(frozen=True)
class ProbeSettings:
    """How the probe is fitted.

    Attributes:
        strengths: inverse strengths of the L2 penalty, C; validation chooses among them.
        without_val: C where there is no validation split.
        iterations: most iterations of L-BFGS for each.
    """

    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
    without_val: float = 1.0
    iterations: Positive = 1000


class Probe:
    """Multinomial logistic regression on standardised features of the whole image.

    They are the vision tower's own where the backbone gives them, else the mean visual token.

    Args:
        backbone: gives the visual tokens.
        labels: what it chooses from.
        settings: how it is fitted.
        questions: the visual tokens are read with their emotion question where they depend on one; None: the package's
            own.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: tuple[str, ...],
        settings: ProbeSettings | None = None,
        questions: Questions | None = None,
    ) -> None:
        self.backbone, self.labels = backbone, validate_labels(labels)
        self.question = emotion_question(labels, questions)
        self.settings = settings or ProbeSettings()
        self.learned: Checkpoint | None = None

    def fit(self, examples: TrainingData) -> None:
        """Reads every image once, fits one regression for each C, and keeps the best on val."""
        settings = {**plain(self.settings), "question": self.question, "reads": "pooled features or the mean token"}
        with studying(NAME, self.backbone, self.labels, examples, settings) as study:
            self.learned = study.once(lambda: self._fitted(study))

    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """The softmax of the regression.

        Raises:
            UsageError: it has not learned yet.
        """
        if self.learned is None:
            raise unlearned(NAME)
        return predictions_of(self.labels, logits(self.learned.tensors, self._features(visual)["features"]))

    def config(self) -> Mapping[str, Any]:
        """Its settings, and once it has learned the chosen C with its figures on val, and the hash of its tensors."""
        facts: dict[str, Any] = {"system": NAME, "trained": 0, "settings": plain(self.settings)}
        if self.learned is not None:
            facts["trained"] = self.learned.tensors["weight"].numel() + len(self.labels)
            facts |= {"fitted": self.learned.state, "tensors_sha256": tensors_sha256(self.learned.tensors)}
        return facts

    def _features(self, visual: VisualTokens) -> dict[str, Tensor]:
        return {"features": pooled_features(read_with(self.backbone, visual, self.question)).cpu()}

    def _fitted(self, study: Study) -> Checkpoint:
        table, row = study.table("pooled features", self._features)
        of = {
            split: (
                table["features"][[row[example.image] for example in examples]],
                [study.target(one) for one in examples],
            )
            for split, examples in (("train", study.data.train), ("val", study.data.val))
        }
        candidates: list[tuple[tuple[float, ...], Checkpoint]] = []
        strengths = self.settings.strengths if of["val"][1] else (self.settings.without_val,)
        for strength in strengths:
            study.stop.check()
            tensors = fitted(*of["train"], len(self.labels), strength, self.settings.iterations)
            scores = figures(logits(tensors, of["val"][0]), of["val"][1])
            log.info("probe, C = %g: %s", strength, scores)
            candidates.append((tuple(scores.values()), Checkpoint(0, tensors, {"C": strength, **scores})))
        return max(candidates, key=lambda one: one[0])[1]  # of equals the first, which has the strongest penalty


def fitted(
    means: Float[Tensor, "images dim"],
    targets: list[int],
    labels: int,
    strength: float,
    iterations: int,
    least: float | Float[Tensor, " dim"] = SMALLEST,
    column_scale: float | Float[Tensor, " dim"] = 1.0,
) -> dict[str, Tensor]:
    """A regression as weight (labels × dim), bias (labels), and the columns' mean and scale, at least `least`; fp32.

    Columns are multiplied by `column_scale` once they are standardised: below 1 a column's weights are penalised more.

    A label that does not occur gets the lowest logit less the logarithm of the number of images: never the answer, and
    never impossible.

    Raises:
        DataError: only one label occurs.
    """
    present = sorted(set(targets))
    if len(present) < 2:
        raise DataError("all images to learn from have the same label", "at least two labels", "Check the data set.")
    wide = means.cpu().double()
    mean, scale = wide.mean(0), wide.std(0, correction=0).clamp_min(torch.as_tensor(least).cpu().double())
    scale = scale / torch.as_tensor(column_scale).cpu().double()
    values: NDArray[np.float64] = ((wide - mean) / scale).numpy()
    model = LogisticRegression(C=strength, max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(values, np.asarray(targets))
        except ConvergenceWarning:
            log.warning("the probe with C = %g is not at its optimum after %d iterations", strength, iterations)
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(values, np.asarray(targets))
    rows, offsets = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(present) == 2:  # one row, the second label against the first
        rows, offsets = np.stack([-rows[0] / 2, rows[0] / 2]), np.stack([-offsets[0] / 2, offsets[0] / 2])
    weight, bias = torch.zeros(labels, means.shape[1]), torch.zeros(labels)
    weight[present], bias[present] = torch.from_numpy(rows).float(), torch.from_numpy(offsets).float()
    known = torch.zeros(labels, dtype=torch.bool)
    known[present] = True
    images = torch.tensor(float(len(targets)))
    return {"weight": weight, "bias": bias, "mean": mean.float(), "scale": scale.float(), "known": known, "n": images}


def logits(tensors: Mapping[str, Tensor], means: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch labels"]:
    """The logits of a regression that `fitted` returned."""
    values = ((means - tensors["mean"]) / tensors["scale"]) @ tensors["weight"].T + tensors["bias"]
    known = tensors["known"]
    if bool(known.all()):
        return values
    lowest = values[:, known].amin(1, keepdim=True) - tensors["n"].log()
    return torch.where(known, values, lowest)


def figures(log_odds: Float[Tensor, "images labels"], targets: list[int]) -> dict[str, float]:
    """Accuracy and mean log-likelihood on val; empty without images."""
    score = LabelScore()
    score.add(log_odds.cpu().double().log_softmax(1), targets)
    return score.figures()
