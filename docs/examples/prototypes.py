"""A baseline: the label whose training images are, on the mean, most like the image (cosine of mean visual tokens)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from masp.backbones.base import Backbone
from masp.baselines.base import SystemPrediction, TrainingData, emotion_question, plain, predictions_of
from masp.baselines.learning import Study, mean_token, read_with, studying, unlearned
from masp.baselines.registry import BaselineEntry
from masp.core.types import VisualTokens
from masp.training.checkpoints import Checkpoint

NAME = "prototypes"


@dataclass(frozen=True)
class PrototypeSettings:
    temperature: float = 0.1  # divides the cosines before the softmax


@dataclass
class Prototypes:
    backbone: Backbone
    labels: tuple[str, ...]
    settings: PrototypeSettings
    questions: Any = None  # own texts to ask; None: the package's
    learned: Checkpoint | None = None

    def fit(self, examples: TrainingData) -> None:
        with studying(NAME, self.backbone, self.labels, examples, plain(self.settings)) as study:
            self.learned = study.once(lambda: self._fitted(study))  # a second call only loads it

    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        if self.learned is None:
            raise unlearned(NAME)
        cosines = self._mean(visual)["mean"] @ self.learned.tensors["means"].T
        return predictions_of(self.labels, cosines / self.settings.temperature)

    def config(self) -> Mapping[str, Any]:
        return {"system": NAME, "trained": 0, "settings": plain(self.settings)}

    def _mean(self, visual: VisualTokens) -> dict[str, torch.Tensor]:
        tokens = read_with(self.backbone, visual, emotion_question(self.labels, self.questions))
        return {"mean": torch.nn.functional.normalize(mean_token(tokens).cpu(), dim=-1)}

    def _fitted(self, study: Study) -> Checkpoint:
        table, row = study.table("mean visual tokens", self._mean)
        of = [[row[one.image] for one in study.data.train if one.label == label] for label in self.labels]
        means = torch.stack([table["mean"][rows].mean(0) for rows in of]).nan_to_num(0)  # 0: no image has the label
        return Checkpoint(0, {"means": torch.nn.functional.normalize(means, dim=-1)}, {})


ENTRY = {NAME: BaselineEntry("nearest mean", "prototypes:Prototypes", "prototypes:PrototypeSettings", learns=True)}
