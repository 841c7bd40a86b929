"""Aspect attention: learned queries that read one cue each from the visual tokens (paper, section 3.2 and Eq. 2).

And, as a named variant (`method.routing`), a learned gate per image on each aspect's tokens, from all aspects together;
the paper leaves routing and the interaction of aspects to future work.

Axes: b batch, v visual tokens, a aspects, n queries of an aspect, d width of the language model.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from masp.core.errors import UsageError, did_you_mean
from masp.core.types import AspectTokens, VisualTokens


class SingleAttention(nn.Module):
    """softmax(q (V W_Kᵀ)ᵀ / √d) V W_Vᵀ, with no projection of the query and none of the output (variant `paper`).

    Start: W_V is the identity, so that an aspect token begins as a weighted mean of visual tokens, which the frozen
    language model already knows how to read; a random W_V would first have to be unlearned. W_K is Xavier and the
    queries are N(0, 1), as in the authors' code, so that the first scores spread as widely as the visual tokens. With
    small queries the first attention is even, hardly any gradient reaches q and W_K, and W_V learns the mean of the
    image first: on the embedded backbone it was up to the seed whether 400 steps found the human actions at all.

    Args:
        dim: width of the language model.
        queries: number of queries n.
        generator: source of the random start.
        query_std: standard deviation of the queries at the start.
    """

    def __init__(
        self, dim: int, queries: int, generator: torch.Generator | None = None, query_std: float = 1.0
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(query_std * torch.randn(queries, dim, generator=generator))
        self.key = nn.Parameter(nn.init.xavier_uniform_(torch.empty(dim, dim), generator=generator))
        self.value = nn.Parameter(torch.eye(dim))

    def folded(self) -> Float[Tensor, "queries dim"]:
        """The product q W_K / √d: the queries as they meet raw visual tokens."""
        return self.queries @ self.key / math.sqrt(self.queries.shape[1])

    def project(self, pooled: Float[Tensor, "batch queries dim"]) -> Float[Tensor, "batch queries dim"]:
        """Aspect tokens from attention-weighted means of raw visual tokens."""
        return functional.linear(pooled, self.value)


class MultiheadAttention(nn.Module):
    """Multi-head attention with one head as torch defines it, with its parameter names (variant `released`).

    The bias of the keys moves all scores of a query alike, so the softmax cancels it; it is kept because checkpoints
    carry it. Start: torch's own for the projections, queries as in `SingleAttention`.

    Args:
        dim: width of the language model.
        queries: number of queries n.
        generator: source of the random start.
        query_std: standard deviation of the queries at the start.
    """

    def __init__(
        self, dim: int, queries: int, generator: torch.Generator | None = None, query_std: float = 1.0
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(query_std * torch.randn(queries, dim, generator=generator))
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim), generator=generator))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.uniform_(self.out_proj.weight, -1 / math.sqrt(dim), 1 / math.sqrt(dim), generator=generator)
        nn.init.zeros_(self.out_proj.bias)

    def folded(self) -> Float[Tensor, "queries dim"]:
        """(q W_Qᵀ + b_Q) W_K / √d: the queries as they meet raw visual tokens."""
        query_weight, key_weight, _ = self.in_proj_weight.chunk(3)
        query = functional.linear(self.queries, query_weight, self.in_proj_bias.chunk(3)[0])
        return query @ key_weight / math.sqrt(self.queries.shape[1])

    def project(self, pooled: Float[Tensor, "batch queries dim"]) -> Float[Tensor, "batch queries dim"]:
        """Aspect tokens from attention-weighted means of raw visual tokens (weights sum to 1, so b_V passes whole)."""
        values = functional.linear(pooled, self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2])
        return self.out_proj(values)


KINDS = {"single": SingleAttention, "multihead": MultiheadAttention}


class AspectModules(nn.Module):
    """One attention module per aspect, always fp32, all reading the same visual tokens.

    Keys are never formed: (q W_K) meets the raw visual tokens, and only their weighted mean passes W_V. This is the
    same product in another order.

    Args:
        dim: width of the language model.
        aspects: names, in the order in which their tokens enter the sequence.
        queries: aspect tokens per aspect.
        attention: "single" (variant `paper`) or "multihead" (variant `released`).
        generator: source of the random start.
        query_std: standard deviation of the queries at the start.
    """

    def __init__(
        self,
        dim: int,
        aspects: Sequence[str],
        queries: int,
        attention: Literal["single", "multihead"] = "single",
        generator: torch.Generator | None = None,
        query_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.aspects = tuple(aspects)
        self.queries = queries
        self.attention = attention
        self.by_aspect = nn.ModuleDict({a: KINDS[attention](dim, queries, generator, query_std) for a in self.aspects})

    def module(self, aspect: str) -> SingleAttention | MultiheadAttention:
        """The attention module of one aspect.

        Raises:
            UsageError: no such aspect here.
        """
        if aspect not in self.aspects:
            todo = did_you_mean(aspect, self.aspects)
            raise UsageError(f"unknown aspect '{aspect}'", f"one of {', '.join(self.aspects)}", todo)
        return self.by_aspect[aspect]  # pyright: ignore[reportReturnType]

    def forward(self, visual: VisualTokens, which: Sequence[str] | None = None) -> AspectTokens:
        """Aspect tokens of all aspects, or of those in `which` in that order, for every image."""
        names = self.aspects if which is None else tuple(which)
        chosen = [self.module(name) for name in names]
        folded = torch.cat([module.folded() for module in chosen]).expand(len(visual), -1, -1)
        pooled, weights = attend(folded, visual)  # (b, a·n, d), (b, a·n, v)
        parts = [module.project(part) for module, part in zip(chosen, pooled.split(self.queries, dim=1), strict=True)]
        shape = (len(visual), len(names), self.queries)
        return AspectTokens(torch.stack(parts, dim=1), weights.view(*shape, -1), names)

    def per_example(
        self, visual: VisualTokens, aspect_index: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch queries visual"]]:
        """Tokens and attention of one aspect per image, `aspect_index` counting in `self.aspects`.

        Only the modules that occur take part, so the others get no gradient at all (not a zero, which an optimizer with
        momentum would still act upon).
        """
        present, slot = torch.unique(aspect_index.to(visual.tokens.device), return_inverse=True)
        chosen = [self.module(self.aspects[index]) for index in present.tolist()]
        folded = torch.stack([module.folded() for module in chosen])[slot]
        pooled, weights = attend(folded, visual)
        order = torch.argsort(slot, stable=True)
        parts = pooled[order].split(torch.bincount(slot).tolist())
        tokens = torch.cat([module.project(part) for module, part in zip(chosen, parts, strict=True)])
        return tokens[torch.argsort(order)], weights

    def per_pair(
        self, visual: VisualTokens, images: Sequence[int], aspects: Sequence[int]
    ) -> Float[Tensor, "pairs queries dim"]:
        """Tokens of pairs of an image (row of `visual`) and an aspect (number in `self.aspects`).

        The modules that occur read all images at once, so the visual tokens of an image lie in memory once, however
        many of its aspects are asked for. The others take no part, as in `per_example`.
        """
        present = sorted(set(aspects))
        names = [self.aspects[index] for index in present]
        tokens = self(visual, names).tokens  # (images, aspects that occur, n, d)
        slots = [present.index(index) for index in aspects]
        device = tokens.device
        return tokens[torch.tensor(images, device=device), torch.tensor(slots, device=device)]


def attend(
    folded: Float[Tensor, "batch queries dim"], visual: VisualTokens
) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch queries visual"]]:
    """Attention of folded queries over raw visual tokens: weighted means and weights, fp32; padding gets weight 0."""
    tokens = visual.tokens.float()
    scores = folded @ tokens.transpose(1, 2)
    weights = scores.masked_fill(~visual.mask[:, None], float("-inf")).softmax(-1)
    return weights @ tokens, weights


HIDDEN = 32


class AspectRouting(nn.Module):
    """Gates g in (0, 2), one per aspect: z becomes z + (g - 1)(z - m), with m the mean visual token of the image.

    With g = 0 an aspect says no more than that mean; a language model that normalises its inputs would hardly notice
    tokens that were only scaled down. A small network reads, whatever the width d, how alike the aspects' mean tokens
    are to each other and to m (cosines), and how widely each aspect's attention is spread (entropy, as a share of the
    largest possible). Its last layer starts at zero, hence all gates at exactly 1: the method without routing.

    Args:
        aspects: names, in the order in which their tokens enter the sequence.
        generator: source of the random start.
    """

    def __init__(self, aspects: Sequence[str], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.aspects = tuple(aspects)
        count = len(self.aspects)
        features = count * (count - 1) // 2 + 2 * count
        self.hidden_weight = nn.Parameter(torch.randn(HIDDEN, features, generator=generator) / features**0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.gate_weight = nn.Parameter(torch.zeros(count, HIDDEN))
        self.gate_bias = nn.Parameter(torch.zeros(count))

    def gates(self, read: AspectTokens, visual: VisualTokens) -> Float[Tensor, "batch aspects"]:
        """The gates of the aspects in `read`; what the others would show is zero."""
        features = self._features(read, visual.mean())
        hidden = functional.linear(features, self.hidden_weight, self.hidden_bias).tanh()
        gates = 2 * functional.linear(hidden, self.gate_weight, self.gate_bias).sigmoid()
        return gates[:, [self.aspects.index(name) for name in read.aspects]]

    def forward(self, read: AspectTokens, visual: VisualTokens) -> Float[Tensor, "batch aspects queries dim"]:
        """The gated tokens."""
        away = read.tokens - visual.mean()[:, None, None]
        return read.tokens + (self.gates(read, visual) - 1)[:, :, None, None] * away

    def _features(self, read: AspectTokens, mean: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch features"]:
        count, indices = len(self.aspects), [self.aspects.index(name) for name in read.aspects]
        directions = mean.new_zeros(len(mean), count + 1, mean.shape[1])
        directions[:, indices] = functional.normalize(read.tokens.mean(2), dim=-1)
        directions[:, count] = functional.normalize(mean, dim=-1)
        rows, columns = torch.triu_indices(count + 1, count + 1, offset=1, device=mean.device)
        alike = (directions @ directions.transpose(1, 2))[:, rows, columns]
        spread = mean.new_zeros(len(mean), count)
        weights = read.weights.mean(2)
        entropy = torch.special.entr(weights).sum(-1) / (weights > 0).sum(-1).clamp_min(2).log()
        spread[:, indices] = entropy
        return torch.cat([alike, spread], dim=1)
