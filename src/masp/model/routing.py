"""Routing: a learned gate per image on each aspect's tokens, from all aspects together.

A named variant (`method.routing`). The paper leaves routing and the interaction of aspects to future work.

Axes: b batch, v visual tokens, a aspects, n queries of an aspect, d width of the language model.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from masp.core.types import AspectTokens, VisualTokens

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
        features = self._features(read, _mean(visual))
        hidden = functional.linear(features, self.hidden_weight, self.hidden_bias).tanh()
        gates = 2 * functional.linear(hidden, self.gate_weight, self.gate_bias).sigmoid()
        return gates[:, [self.aspects.index(name) for name in read.aspects]]

    def forward(self, read: AspectTokens, visual: VisualTokens) -> Float[Tensor, "batch aspects queries dim"]:
        """The gated tokens."""
        away = read.tokens - _mean(visual)[:, None, None]
        return read.tokens + (self.gates(read, visual) - 1)[:, :, None, None] * away

    def _features(self, read: AspectTokens, mean: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch features"]:
        count, places = len(self.aspects), [self.aspects.index(name) for name in read.aspects]
        directions = mean.new_zeros(len(mean), count + 1, mean.shape[1])
        directions[:, places] = functional.normalize(read.tokens.mean(2), dim=-1)
        directions[:, count] = functional.normalize(mean, dim=-1)
        rows, columns = torch.triu_indices(count + 1, count + 1, offset=1, device=mean.device)
        alike = (directions @ directions.transpose(1, 2))[:, rows, columns]
        spread = mean.new_zeros(len(mean), count)
        weights = read.weights.mean(2)
        entropy = torch.special.entr(weights).sum(-1) / (weights > 0).sum(-1).clamp_min(2).log()
        spread[:, places] = entropy
        return torch.cat([alike, spread], dim=1)


def _mean(visual: VisualTokens) -> Float[Tensor, "batch dim"]:
    """Mean visual token of every image, in fp32."""
    mask = visual.mask[:, :, None]
    return (visual.tokens.float() * mask).sum(1) / mask.sum(1)
