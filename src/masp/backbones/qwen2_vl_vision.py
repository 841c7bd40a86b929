"""Two parts of the Qwen-VL vision towers in a faster, equal form: the same weights, the same sums, other kernels.

Axes: p patches of the whole batch, c chunks (images or windows) of equal length l, h heads, e width of a head.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class MatrixPatchEmbed(nn.Module):
    """The patch embedding as a matrix product.

    The convolution's kernel equals its stride, so every patch meets the kernel once. As a convolution it is slow on a
    CPU, in bf16 most of all.

    Args:
        original: the tower's own patch embedding, whose weights stay in use.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.proj: Any = original.proj

    def forward(self, hidden_states: Float[Tensor, "patches values"]) -> Float[Tensor, "patches width"]:
        """Embeddings of flattened patches."""
        weight = self.proj.weight.flatten(1)
        return functional.linear(hidden_states.to(weight.dtype), weight)


class BatchedVisionAttention(nn.Module):
    """The tower's attention with one kernel call for all chunks of equal length, where the original calls it per chunk.

    Args:
        original: the block's own attention, whose weights stay in use.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.qkv: Any = original.qkv
        self.proj: Any = original.proj
        self.heads: int = original.num_heads
        self.scaling: float = original.scaling

    def forward(
        self,
        hidden_states: Float[Tensor, "patches width"],
        cu_seqlens: Int[Tensor, " ends"],
        position_embeddings: tuple[Float[Tensor, "patches head_dim"], Float[Tensor, "patches head_dim"]],
        max_seqlen: int | None = None,
    ) -> Float[Tensor, "patches width"]:
        """Attention within each chunk; chunk i spans the patches cu_seqlens[i] … cu_seqlens[i + 1]."""
        patches = hidden_states.shape[0]
        cos, sin = (part.float()[:, None] for part in position_embeddings)
        query, key, value = self.qkv(hidden_states).view(patches, 3, self.heads, -1).unbind(1)  # each (p, h, e)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        lengths = cu_seqlens.diff()
        kinds = torch.unique(lengths).tolist()
        if len(kinds) == 1:
            return self.proj(self._attend(query, key, value, kinds[0]))
        out = torch.empty_like(hidden_states)
        for length in kinds:
            if length:
                starts = cu_seqlens[:-1][lengths == length]
                rows = (starts[:, None] + torch.arange(length, device=starts.device)).flatten()
                out[rows] = self._attend(query[rows], key[rows], value[rows], length)
        return self.proj(out)

    def _attend(
        self,
        query: Float[Tensor, "rows heads head_dim"],
        key: Float[Tensor, "rows heads head_dim"],
        value: Float[Tensor, "rows heads head_dim"],
        length: int,
    ) -> Float[Tensor, "rows width"]:
        """Attention among every `length` consecutive rows."""
        q, k, v = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, value))  # each (c, h, l, e)
        attended = functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return attended.transpose(1, 2).reshape(len(query), -1)


def rotate(
    values: Float[Tensor, "*rows head_dim"],
    cos: Float[Tensor, "*#rows head_dim"],
    sin: Float[Tensor, "*#rows head_dim"],
) -> Float[Tensor, "*rows head_dim"]:
    """Rotary embedding in the dtype of `cos`, returned in the dtype of `values`."""
    wide = values.to(cos.dtype)
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-right, left], dim=-1) * sin).to(values.dtype)
