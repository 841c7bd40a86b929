"""The Qwen-VL language model, layer by layer, so that the final layer can be spared where nobody reads it.

Axes: h query heads, g key/value heads, s new columns, t all columns, r columns that are read, e width of a head.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from masp.backbones.masks import attention_masks
from masp.backbones.qwen2_vl_vision import rotate
from masp.types import Assembled, KeyValues, Run

Rotary = tuple[Float[Tensor, "batch sequence head_dim"], Float[Tensor, "batch sequence head_dim"]]


class QwenLanguageModel:
    """The text part of a Qwen2-VL or Qwen2.5-VL model.

    Args:
        language: transformers' text model.
    """

    def __init__(self, language: Any) -> None:
        self._language = language
        self._layers: list[Any] = list(language.layers)
        self._kinds: list[str] = list(language.config.layer_types)
        self._window: int | None = language.config.sliding_window

    def run(
        self,
        embeddings: Float[Tensor, "batch sequence dim"],
        positions: Int[Tensor, "axes batch sequence"],
        mask: Bool[Tensor, "batch total"],
        cache: KeyValues | None,
        branches: Int[Tensor, " total"] | None,
        read: Int[Tensor, "batch read"] | None,
    ) -> Run:
        """See `Backbone.run`. Keys and values of `cache` are copied from, never written to."""
        wrapped = DynamicCache(cache.layers if cache else None)
        masks = attention_masks(mask, embeddings.shape[1], branches, self._window, self._kinds)
        rotary = self._language.rotary_emb(embeddings, positions)
        states = self._layers_below(embeddings, rotary, masks, wrapped)
        if read is None:
            states = self._layer(-1, states, rotary, masks, wrapped)
        else:
            states = self._final_layer(states, rotary, masks[self._kinds[-1]], wrapped, read)
        layers: list[Any] = wrapped.layers
        return Run(self._language.norm(states), KeyValues(tuple((layer.keys, layer.values) for layer in layers)))

    def last_attention(self, assembled: Assembled, start: int) -> Float[Tensor, "batch heads rest sequence"]:
        """See `Backbone.last_attention`: weights recomputed from the final layer's queries and keys."""
        length = assembled.mask.shape[1]
        masks = attention_masks(assembled.mask, length, None, self._window, self._kinds)
        rotary = self._language.rotary_emb(assembled.embeddings, assembled.positions)
        states = self._layers_below(assembled.embeddings, rotary, masks, DynamicCache())
        key, _ = self._keys_values(states, rotary)
        read = torch.arange(start, length, device=states.device).expand(len(states), -1)
        query = self._queries(pick(states, read), rotary, read)
        scores = (query.float() @ self._for_heads(key).float().transpose(2, 3)) * self._layers[-1].self_attn.scaling
        return scores.masked_fill(~rows_of(masks[self._kinds[-1]], read, length), float("-inf")).softmax(-1)

    def _layers_below(
        self, states: Float[Tensor, "batch sequence dim"], rotary: Rotary, masks: dict[str, Any], cache: DynamicCache
    ) -> Float[Tensor, "batch sequence dim"]:
        """The states that enter the final layer."""
        for number in range(len(self._layers) - 1):
            states = self._layer(number, states, rotary, masks, cache)
        return states

    def _layer(
        self,
        number: int,
        states: Float[Tensor, "batch sequence dim"],
        rotary: Rotary,
        masks: dict[str, Any],
        cache: DynamicCache,
    ) -> Float[Tensor, "batch sequence dim"]:
        return self._layers[number](
            states,
            attention_mask=masks[self._kinds[number]],
            position_embeddings=rotary,
            past_key_values=cache,
            use_cache=True,
        )

    def _final_layer(
        self,
        states: Float[Tensor, "batch sequence dim"],
        rotary: Rotary,
        mask: Bool[Tensor, "rows 1 sequence total"] | None,
        cache: DynamicCache,
        read: Int[Tensor, "batch read"],
    ) -> Float[Tensor, "batch read dim"]:
        """The final layer for the columns that are read; the others only leave their keys and values."""
        layer = self._layers[-1]
        key, value = cache.update(*self._keys_values(states, rotary), len(self._layers) - 1)
        states = pick(states, read)
        if not read.shape[1]:
            return states
        attended = functional.scaled_dot_product_attention(
            self._queries(states, rotary, read),
            self._for_heads(key),
            self._for_heads(value),
            attn_mask=rows_of(mask, read, key.shape[2]),
            scale=layer.self_attn.scaling,
        )
        states = states + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return states + layer.mlp(layer.post_attention_layernorm(states))

    def _keys_values(
        self, states: Float[Tensor, "batch sequence dim"], rotary: Rotary
    ) -> tuple[Float[Tensor, "batch groups sequence head_dim"], Float[Tensor, "batch groups sequence head_dim"]]:
        """Keys (rotated) and values of the final layer."""
        layer = self._layers[-1]
        inputs = layer.input_layernorm(states)
        key, value = layer.self_attn.k_proj(inputs), layer.self_attn.v_proj(inputs)
        cos, sin = (part[:, None] for part in rotary)
        return rotate(self._in_heads(key), cos, sin), self._in_heads(value)

    def _queries(
        self, states: Float[Tensor, "batch read dim"], rotary: Rotary, read: Int[Tensor, "batch read"]
    ) -> Float[Tensor, "batch heads read head_dim"]:
        """Queries (rotated) of the final layer for picked states."""
        layer = self._layers[-1]
        cos, sin = (pick(part, read)[:, None] for part in rotary)
        return rotate(self._in_heads(layer.self_attn.q_proj(layer.input_layernorm(states))), cos, sin)

    def _in_heads(self, values: Float[Tensor, "batch columns width"]) -> Float[Tensor, "batch heads columns head_dim"]:
        return values.unflatten(-1, (-1, self._layers[-1].self_attn.head_dim)).transpose(1, 2)

    def _for_heads(
        self, values: Float[Tensor, "batch groups total head_dim"]
    ) -> Float[Tensor, "batch heads total head_dim"]:
        """Keys or values repeated for the query heads that share them."""
        return values.repeat_interleave(self._layers[-1].self_attn.num_key_value_groups, dim=1)


def pick(
    values: Float[Tensor, "batch sequence width"], read: Int[Tensor, "batch read"]
) -> Float[Tensor, "batch read width"]:
    """Columns of each row."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, read]


def rows_of(
    mask: Bool[Tensor, "rows 1 sequence total"] | None, read: Int[Tensor, "batch read"], total: int
) -> Bool[Tensor, "batch 1 read total"]:
    """What the new columns `read` see, by a mask or, without one, by plain causality over columns that are all new.

    A single new column without a mask sees everything.
    """
    if mask is None:
        columns = torch.arange(total, device=read.device)
        return (columns <= read[..., None])[:, None]
    return mask[:, 0].expand(len(read), -1, -1)[torch.arange(len(read), device=read.device)[:, None], read][:, None]
