"""What is measured on: the backbone, images of so many visual tokens, models of both variants, the tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from masp.backbones.base import Backbone
from masp.backbones.random_init import RandomBackbone, Shape, make
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.flops import Sizes
from masp.core.labels import LabelStyle, render_labels
from masp.core.prompts import load_questions
from masp.core.types import Pixels
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import MaspModel, init_soft_prompt

LABELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
TASKS: tuple[Sequence[str], ...] = (
    LABELS,
    ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    ("negative", "positive"),
    ("calm", "moderate", "strong"),
)
ANSWERS = {
    "facial_expression": "smile",
    "object": "person, tree, dog",
    "scene": "beach",
    "human_action": "walking",
    "brightness": "very high",
    "colorfulness": "moderate",
}
GRIDS = {16: (4, 4), 35: (5, 7), 64: (8, 8), 128: (8, 16), 256: (16, 16), 512: (16, 32), 700: (25, 28)}
CELL = 28  # pixels along the side of a visual token
TINY = Shape(
    dim=64, layers=2, heads=4, intermediate=96, vocabulary=1024, vision_width=32, vision_depth=2, vision_heads=2
)


@dataclass(frozen=True)
class Setting:
    """One backbone with untrained models around it; the same weights everywhere.

    Attributes:
        made: the weights.
        shape: their sizes.
        counts: numbers of visual tokens to measure at.
        repeats: how often each work is timed.
        quick: tiny sizes, to see that everything runs; the figures mean nothing.
        seed: of the weights.
    """

    made: RandomBackbone
    shape: Shape
    counts: tuple[int, ...]
    repeats: int
    quick: bool
    seed: int = 0

    @property
    def backbone(self) -> Backbone:
        """As this package runs it."""
        return self.made.backbone

    def model(self, variant: str) -> MaspModel:
        """Six untrained aspects and a soft prompt of 32 vectors, in one of the variants."""
        method = MethodConfig.model_validate({"variant": variant}).resolved()
        assert method.queries is not None
        assert method.attention is not None
        generator = torch.Generator().manual_seed(0)
        aspects = AspectModules(self.backbone.dim, ASPECTS, method.queries, method.attention, generator)
        prompt = init_soft_prompt(PromptInit(), method.prompt_length, self.backbone, generator)
        return MaspModel(self.backbone, method, aspects, prompt)

    def pixels(self, count: int, images: int = 1, seed: int = 0) -> Pixels:
        """Preprocessed images of noise with so many visual tokens each, on the backbone's device."""
        rows, columns = GRIDS[count]
        generator = torch.Generator().manual_seed(seed)
        pictures = [
            Image.fromarray(
                torch.randint(0, 256, (rows * CELL, columns * CELL, 3), generator=generator, dtype=torch.uint8).numpy()
            )
            for _ in range(images)
        ]
        return self.backbone.preprocess(pictures).to(self.backbone.device)

    def question(self, labels: Sequence[str] = LABELS, variant: str = "paper") -> str:
        """The emotion question."""
        style: LabelStyle = "python" if variant == "released" else "comma"
        return load_questions().ask_emotion(render_labels(labels, style))

    def aspect_question(self, aspect: str) -> str:
        """The question about an aspect."""
        return load_questions().aspect(aspect)[0]

    def sizes(self) -> Sizes:
        """The backbone as the arithmetic sees it."""
        model, shape = self.made.plain.model, self.shape
        return Sizes(
            dim=shape.dim,
            layers=shape.layers,
            kv_dim=shape.dim // shape.heads * shape.groups,
            language=sum(one.numel() for one in model.language_model.layers.parameters()),
            vocabulary=shape.vocabulary,
            vision=sum(one.numel() for one in model.visual.blocks.parameters()),
            vision_width=shape.vision_width,
            vision_layers=shape.vision_depth,
            tied=shape.tied,
        )


def setting(quick: bool, repeats: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Setting:
    """The size that the goals are about, or a tiny one."""
    shape = replace(TINY) if quick else Shape()
    return Setting(make(shape, dtype, device, seed), shape, (16, 35) if quick else (256, 700), repeats, quick, seed)
