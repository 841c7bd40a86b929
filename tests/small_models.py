"""Whole models over tiny backbones: random aspects, a random soft prompt, and what tests read off them."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import tiny
from masp.backbones.base import Backbone
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig
from masp.core.types import VisualTokens
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import last_real
from masp.model.soft_prompt import SoftPrompt

PROMPT_LENGTH = 7
QUESTIONS = [
    "Which emotion does this image evoke? Pick one of: joy, fear.",
    "How bright is it?",
    "What do people do in this image, and what does the face of the one in front express?",
]


@functools.cache
def full_model(family: str = "qwen2_vl", dtype: str = "float32", variant: str = "paper") -> MaspModel:
    """A model with all six aspects (two queries each) and a soft prompt, always of one seed; do not train it."""
    method = MethodConfig(variant=variant, queries=2, prompt_length=PROMPT_LENGTH)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(5)
    attention = method.resolved().attention
    assert attention is not None
    aspects = AspectModules(tiny.DIM, ASPECTS, 2, attention, generator)
    with torch.no_grad():
        for parameter in aspects.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    prompt = SoftPrompt(PROMPT_LENGTH, tiny.DIM, torch.randn(PROMPT_LENGTH, tiny.DIM, generator=generator) * 0.5)
    return MaspModel(tiny.backbone(family, dtype), method, aspects, prompt)


def parts(model: MaspModel) -> tuple[AspectModules, SoftPrompt]:
    """The trained parts of a full model."""
    assert model.aspects is not None
    assert model.prompt is not None
    return model.aspects, model.prompt


def visual_tokens(
    model: MaspModel, sizes: Sequence[tuple[int, int]] = ((90, 62), (58, 140), (118, 90))
) -> VisualTokens:
    """Visual tokens of random images, by default of 2×3, 5×2 and 3×4 tokens."""
    pixels = model.backbone.preprocess([tiny.picture(*size, seed) for seed, size in enumerate(sizes)])
    return model.backbone.visual_tokens(pixels)


@torch.no_grad()
def last_logits(
    model: MaspModel, visual: VisualTokens, questions: Sequence[str], use: ActiveParts | None = None
) -> Tensor:
    """Logits after the prompts, one row per image, by one plain pass over the whole sequence."""
    assembled = model.build_inputs(visual, questions, use=use)
    whole = (assembled.inputs_embeds, assembled.position_ids, assembled.attention_mask)
    hidden = model.backbone.forward(*whole, extras=assembled.extras(0)).hidden
    return model.backbone.logits(hidden[torch.arange(len(hidden)), last_real(assembled)]).float()


def kept_bytes(work: Callable[[], Tensor], backbone: Backbone) -> int:
    """Bytes of what the graph of `work` keeps for the backward pass, beside the weights."""
    weights = {one.untyped_storage().data_ptr() for block in backbone.layers() for one in block.parameters()}
    weights.add(backbone.embedding_rows().untyped_storage().data_ptr())  # or a view of them, transposed
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = work()
    assert found.requires_grad
    return sum(seen.values())
