"""The trained part of the photo backbone: a projector of two layers, and low-rank layers in the language model.

Both are small: the tower and the language model come from packages, and only what is here has to ship.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, linear, rms_norm, silu
from transformers import AutoModelForCausalLM

from masp.backbones.photo import TwoLayers

GRID = 4  # cells a side
NAMED, PLAIN = 4, 2  # tokens of the whole picture: those that start as a name, and those that start as plain features
VISUAL = GRID * GRID + PLAIN + NAMED
CELL, WHOLE = 1280, 1280 + 856
HIDDEN_CELL, HIDDEN_WHOLE = 256, 448
RANK = 12


def gated(inner: int, hidden: int, outer: int) -> TwoLayers:
    """The two layers as training starts them: without the gelu's part, so linear and solvable."""
    layers = TwoLayers(inner, hidden, outer)
    nn.init.zeros_(layers.third.weight)
    return layers


class Projector(nn.Module):
    """Cells of the last features and pooled outputs of all stages to visual tokens."""

    cell_mean: Tensor
    cell_scale: Tensor
    whole_mean: Tensor
    whole_scale: Tensor

    def __init__(self, width: int = 576) -> None:
        super().__init__()
        self.cell = gated(CELL, HIDDEN_CELL, width)
        self.whole = gated(WHOLE, HIDDEN_WHOLE, (PLAIN + NAMED) * width)
        for name, size in (("cell", CELL), ("whole", WHOLE)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def forward(self, last: Tensor, stages: Tensor) -> Tensor:
        """Visual tokens (batch, VISUAL, width) of last features (batch, rows, columns, 1280) and stages."""
        cells, whole = inputs(last, stages)
        tokens = self.cell((cells - self.cell_mean) * self.cell_scale)
        wide = self.whole((whole - self.whole_mean) * self.whole_scale)
        return torch.cat([tokens, wide.unflatten(1, (PLAIN + NAMED, -1))], dim=1)


def inputs(last: Tensor, stages: Tensor) -> tuple[Tensor, Tensor]:
    """Features of GRID x GRID cells, and those of the whole picture."""
    cells = adaptive_avg_pool2d(last.permute(0, 3, 1, 2), GRID).flatten(2).transpose(1, 2)
    return cells, torch.cat([last.mean(dim=(1, 2)), stages[:, 0]], dim=1)


def ridge(z: Tensor, target: Tensor, weight: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Matrix and constant of a weighted ridge regression."""
    centre, offset = weight @ z / weight.sum(), weight @ target / weight.sum()
    z, target = z - centre, target - offset
    gram = z.T @ (z * weight[:, None]) + strength * torch.eye(z.shape[1])
    matrix = torch.linalg.solve(gram, z.T @ (target * weight[:, None])).T
    return matrix, offset - matrix @ centre


class LowRank(nn.Module):
    """A frozen linear layer (several fused by rows) with a trained low-rank one beside it."""

    weight: Tensor

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        low = linear(x, self.down.to(x.dtype))
        return linear(x, self.weight) + linear(low, self.up.to(x.dtype))


class Layer(nn.Module):
    """A layer of a Llama, written out for speed."""

    norm1: Tensor
    norm2: Tensor

    def __init__(self, layer: Any, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        own, mlp = layer.self_attn, layer.mlp
        groups = [torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]), own.o_proj.weight]
        groups += [torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight]
        parts = [LowRank(group.detach().to(dtype), rank) for group in groups]
        self.qkv, self.out, self.gate_up, self.down = parts
        self.widths = [own.q_proj.out_features, own.k_proj.out_features, own.v_proj.out_features]
        self.head, self.eps = own.head_dim, layer.input_layernorm.variance_epsilon
        self.register_buffer("norm1", layer.input_layernorm.weight.detach().to(dtype), persistent=False)
        self.register_buffer("norm2", layer.post_attention_layernorm.weight.detach().to(dtype), persistent=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """New states."""
        width = x.shape[-1:]
        parts = self.qkv(rms_norm(x, width, self.norm1, self.eps)).split(self.widths, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in parts)
        q, k = rotate(q, rotary), rotate(k, rotary)
        x = x + self.out(attention(q, k, v, bias).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(rms_norm(x, width, self.norm2, self.eps)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with fewer key than query heads; five times as fast on a CPU as torch's own with its backward pass."""
    batch, heads, columns, width = q.shape
    groups = k.shape[1]
    scores = q.reshape(batch, groups, -1, width) @ k.transpose(-1, -2) * width**-0.5
    shares = (scores.view(batch, heads, columns, -1) + bias).softmax(dim=-1)
    return (shares.view(batch, groups, -1, k.shape[2]) @ v).view(batch, heads, columns, width)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of (batch, heads, columns, width)."""
    left, right = x.chunk(2, dim=-1)
    return x * rotary[0] + torch.cat([-right, left], dim=-1) * rotary[1]


class Language(nn.Module):
    """SmolLM2 frozen, with low-rank layers; `folder` is an ordinary checkpoint of it."""

    embedding: Tensor
    norm: Tensor
    frequencies: Tensor

    def __init__(self, folder: Path, rank: int = RANK, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        inner = model.model
        self.layers = nn.ModuleList(Layer(layer, rank, dtype) for layer in inner.layers)
        self.register_buffer("embedding", inner.embed_tokens.weight.detach().to(dtype), persistent=False)
        self.register_buffer("norm", inner.norm.weight.detach().to(dtype), persistent=False)
        self.eps, head = inner.norm.variance_epsilon, model.config.head_dim
        theta = model.config.rope_parameters["rope_theta"]
        self.register_buffer(
            "frequencies", theta ** -(torch.arange(0, head, 2, dtype=torch.float32) / head), persistent=False
        )

    def forward(self, vectors: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Last hidden states, normalised, of vectors (batch, columns, width) at positions (batch, columns).

        `mask` (batch, 1, columns, columns) is true where a column sees another; without one it is causal.
        """
        angles = positions[:, None, :, None].float() * self.frequencies.repeat(2)
        rotary = (angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype))
        columns = vectors.shape[1]
        seen = torch.ones(columns, columns, dtype=torch.bool).tril() if mask is None else mask
        bias = torch.zeros(seen.shape, dtype=vectors.dtype).masked_fill(~seen, float("-inf"))
        x = vectors
        for layer in self.layers:
            x = layer(x, rotary, bias)
        return rms_norm(x, x.shape[-1:], self.norm, self.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """The tied output head."""
        return linear(hidden, self.embedding)


@dataclass
class Bridge:
    """Projector and language model together."""

    projector: Projector
    language: Language

    def trained(self) -> dict[str, Tensor]:
        """What has been trained, by name."""
        projector = {f"projector.{name}": one for name, one in self.projector.state_dict().items()}
        return projector | {f"language.{name}": one for name, one in self.language.state_dict().items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put trained weights in place."""
        for part in ("projector", "language"):
            own = {name.removeprefix(f"{part}."): one for name, one in weights.items() if name.startswith(f"{part}.")}
            getattr(self, part).load_state_dict(own)


def load_bridge(smollm: Path, weights: Path | None, rank: int = RANK, dtype: torch.dtype = torch.bfloat16) -> Bridge:
    """A bridge, with trained weights where a file is given."""
    bridge = Bridge(Projector(), Language(smollm, rank, dtype))
    if weights is not None:
        bridge.load({name: one.float() for name, one in load_file(weights).items()})
    return bridge
