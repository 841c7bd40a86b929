"""The baseline: what the authors' released code does, written plainly, one example at a time.

The whole sequence with a graph and gradient checkpointing, logits of every column, keys and values of every aspect
formed in full, transformers' own vision tower for every example. The soft prompt is rows of the embedding matrix, so
the whole matrix has a gradient and optimizer state. It is held to the same loss as ours by a test.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from random_weights import RandomBackbone
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from masp.core.types import IGNORED, ImageLayout, ModelInputs, Pixels, VisualTokens
from masp.model.aspect_attention import MultiheadAttention, SingleAttention
from masp.model.masp_model import MaspModel


@dataclass(frozen=True)
class CostRecord:
    """Where the seconds of plain steps went; lists grow with every step."""

    vision: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)


class PlainSteps:
    """Training steps of both stages as the released code takes them."""

    def __init__(self, made: RandomBackbone, model: MaspModel, autocast: bool = False) -> None:
        self.made, self.model, self.spent = made, model, CostRecord()
        self._cast = torch.autocast(made.backbone.device.type, torch.bfloat16) if autocast else nullcontext()
        self._rows = nn.Parameter(made.plain.model.language_model.embed_tokens.weight.detach())  # no copy
        self._optimizers: dict[str, torch.optim.Optimizer] = {}

    def stage2(self, pixels: Pixels, question: str, answer: str) -> Tensor:
        """One step of the soft prompt on one image; the loss."""
        model = self.model
        assert model.aspects is not None
        assert model.prompt is not None
        ids = len(self._rows) - 1 - torch.arange(model.prompt.length, device=self._rows.device)
        with self._cast:
            with torch.no_grad():
                visual = self._visual(pixels)
                tokens = torch.stack(
                    [plain_attention(model.aspects.module(a), visual) for a in model.aspects.aspects], 1
                )
            prompt = functional.embedding(ids, self._rows)
            assembled = model.sequence_builder([question], [answer], visual, tokens, prompt)
            loss = self._loss(assembled)
        loss.backward()
        self._step("embedding", [self._rows])
        return loss.detach()

    def stage1(self, pixels: Pixels, aspect: str, question: str, answer: str) -> Tensor:
        """One step of one aspect module on one pair; the loss. Only that module has optimizer state."""
        module = self.model.aspect_module().module(aspect)
        with self._cast:
            with torch.no_grad():
                visual = self._visual(pixels)
            tokens = plain_attention(module, visual)
            loss = self._loss(self.model.sequence_builder([question], [answer], aspects=tokens[:, None]))
        loss.backward()
        self._step(aspect, list(module.parameters()))
        return loss.detach()

    def forget(self) -> None:
        """Give gradients and optimizer states back."""
        self._optimizers.clear()
        self._rows.grad = None

    def _visual(self, pixels: Pixels) -> VisualTokens:
        started = time.perf_counter()
        tower = self.made.plain.model.visual
        found = tower(pixels.values.to(tower.dtype), grid_thw=pixels.grid).pooler_output
        self.spent.vision.append(time.perf_counter() - started)
        grid = pixels.grid[:, 1:] // tower.spatial_merge_size
        return VisualTokens(found[None], torch.ones(1, len(found), dtype=torch.bool, device=found.device), grid=grid)

    def _loss(self, assembled: ModelInputs) -> Tensor:
        """Mean cross-entropy over the supervised tokens, from the logits of every column."""
        language = self.made.plain.model.language_model
        with checkpointing(language):
            hidden = language(
                inputs_embeds=assembled.inputs_embeds, position_ids=assembled.position_ids, use_cache=False
            ).last_hidden_state
        logits = functional.linear(hidden, self.made.plain.lm_head.weight.detach()).float()
        return functional.cross_entropy(logits[0, :-1], assembled.labels[0, 1:], ignore_index=IGNORED)

    def _step(self, name: str, parameters: list[nn.Parameter]) -> None:
        started = time.perf_counter()
        if name not in self._optimizers:
            self._optimizers[name] = torch.optim.AdamW(parameters, lr=1e-9, weight_decay=0.0, fused=True)
        self._optimizers[name].step()
        self._optimizers[name].zero_grad()
        self.spent.optimizer.append(time.perf_counter() - started)


def plain_attention(
    module: SingleAttention | MultiheadAttention, visual: VisualTokens
) -> Float[Tensor, "1 queries dim"]:
    """Aspect tokens of one image with keys and values of every visual token."""
    tokens, queries = visual.tokens.float(), module.queries
    scale = queries.shape[1] ** -0.5
    if isinstance(module, SingleAttention):
        keys, values = functional.linear(tokens, module.key), functional.linear(tokens, module.value)
        return (queries @ keys.transpose(1, 2) * scale).softmax(-1) @ values
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    query = functional.linear(queries, weights[0], biases[0])
    keys, values = (functional.linear(tokens, weights[part], biases[part]) for part in (1, 2))
    return module.out_proj((query @ keys.transpose(1, 2) * scale).softmax(-1) @ values)


@contextmanager
def checkpointing(language: Any) -> Iterator[None]:
    """Gradient checkpointing for this block only; the same layers run without it elsewhere."""
    for layer in language.layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True
    language.train()
    try:
        yield
    finally:
        language.eval()
        for layer in language.layers:
            layer.gradient_checkpointing = False


@torch.no_grad()
def bare_forward(
    made: RandomBackbone, pixels: Pixels, question: str, layouts: Sequence[ImageLayout]
) -> Float[Tensor, "1 words"]:
    """Transformers' own forward pass on one image and one question: logits of the next word."""
    ids = torch.tensor([made.backbone.template(question, layouts[0]).ids], device=pixels.values.device)
    kinds: Int[Tensor, "1 sequence"] = (ids == made.plain.config.image_token_id).int()
    found = made.plain(
        input_ids=ids,
        pixel_values=pixels.values,
        image_grid_thw=pixels.grid,
        mm_token_type_ids=kinds,
        logits_to_keep=1,
        use_cache=False,
    )
    return found.logits[:, -1]
