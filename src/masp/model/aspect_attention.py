"""Aspect attention: learned queries that read one cue each from the visual tokens (paper, section 3.2 and Eq. 2).

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
        found = self(visual, names).tokens  # (images, aspects that occur, n, d)
        slots = [present.index(index) for index in aspects]
        device = found.device
        return found[torch.tensor(images, device=device), torch.tensor(slots, device=device)]


def attend(
    folded: Float[Tensor, "batch queries dim"], visual: VisualTokens
) -> tuple[Float[Tensor, "batch queries dim"], Float[Tensor, "batch queries visual"]]:
    """Attention of folded queries over raw visual tokens: weighted means and weights, fp32; padding gets weight 0."""
    tokens = visual.tokens.float()
    scores = folded @ tokens.transpose(1, 2)
    weights = scores.masked_fill(~visual.mask[:, None], float("-inf")).softmax(-1)
    return weights @ tokens, weights
