"""The language model of a backbone, layer by layer: explicit positions, masks and caches, a final layer that is spared.

The layers are transformers' own. They are called one after the other instead of through their model, because the model
would make positions and masks of its own. Axes: h query heads, g key/value heads, s new columns, t all columns,
r columns that are read, e width of a head.
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from masp.backbones.base import Again
from masp.backbones.masks import attention_masks
from masp.core.errors import BackboneError, UsageError
from masp.core.types import DecoderOutput, Extras, KVCache, ModelInputs

Rotary = tuple[Float[Tensor, "batch sequence head_dim"], Float[Tensor, "batch sequence head_dim"]]
Mask = Bool[Tensor, "rows 1 sequence total"] | None


@dataclass(frozen=True)
class DecoderFamily:
    """What differs between language models.

    Attributes:
        axes: axes of a position; 3 for M-RoPE.
        normed: keys and queries are normalised before they are rotated.
        rotary_by_layer: the rotary embedding depends on the type of the layer.
    """

    axes: int = 1
    normed: bool = False
    rotary_by_layer: bool = False


KINDS: Mapping[str, DecoderFamily] = MappingProxyType(
    {
        "llama": DecoderFamily(),
        "mistral": DecoderFamily(),
        "qwen2": DecoderFamily(),
        "qwen3": DecoderFamily(normed=True),
        "gemma3_text": DecoderFamily(normed=True, rotary_by_layer=True),
        "qwen2_vl_text": DecoderFamily(axes=3),
        "qwen2_5_vl_text": DecoderFamily(axes=3),
        "qwen3_vl_text": DecoderFamily(axes=3, normed=True),
    }
)
"""model_type of a text configuration → what is special about it."""


class Decoder:
    """The text model of a vision-language model.

    Args:
        language: transformers' text model.
        bidirectional: whether the visual tokens of an image see each other.

    Raises:
        BackboneError: a language model that is not supported.
    """

    def __init__(self, language: Any, bidirectional: bool = False) -> None:
        config = language.config
        if config.model_type not in KINDS:
            raise BackboneError(
                f"the checkpoint's language model is of the kind '{config.model_type}'", f"one of {', '.join(KINDS)}"
            )
        self.kind = KINDS[config.model_type]
        self._language, self._bidirectional = language, bidirectional
        self._layers: list[Any] = list(language.layers)
        settings = config.to_dict()
        self._window: int | None = settings.get("sliding_window")
        every = "full_attention" if self._window is None else "sliding_attention"
        self._types: list[str] = list(settings.get("layer_types") or [every] * len(self._layers))
        kinds: Any = language.rotary_emb.rope_type
        rules = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        self._adapts = any("dynamic" in rule or rule == "longrope" for rule in rules)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The blocks in order, themselves and no copies."""
        return tuple(self._layers)

    def forward(
        self,
        inputs_embeds: Float[Tensor, "batch sequence dim"],
        position_ids: Int[Tensor, "axes batch sequence"],
        attention_mask: Bool[Tensor, "batch total"],
        cache: KVCache | None,
        branch_ids: Int[Tensor, " total"] | None,
        output_positions: Int[Tensor, "batch read"] | None,
        extras: Extras | None,
        again: Again | None = None,
    ) -> DecoderOutput:
        """See `Backbone.run`. Keys and values of `cache` are copied from, never written to."""
        wrapped = DynamicCache(self._past(cache, inputs_embeds.device) if cache else None)
        masks = self._masks(attention_mask, inputs_embeds.shape[1], branch_ids, extras)
        rotary = self._rotary(inputs_embeds, position_ids)
        states = self._layers_below(inputs_embeds, rotary, masks, wrapped, extras, again)
        if output_positions is None:
            states = self._layer(len(self._layers) - 1, states, rotary, masks, wrapped)
        else:
            states = self._final_layer(
                states, rotary[self._types[-1]], masks[self._types[-1]], wrapped, output_positions
            )
        layers: list[Any] = wrapped.layers if again is None else []
        return DecoderOutput(
            self._language.norm(states), KVCache(tuple((layer.keys, layer.values) for layer in layers))
        )

    def last_attention(self, assembled: ModelInputs, start: int) -> Float[Tensor, "batch heads rest sequence"]:
        """See `Backbone.last_attention`: weights recomputed from the final layer's queries and keys."""
        length, kept = assembled.attention_mask.shape[1], assembled.cached_prefix
        begin = 0 if kept is None else assembled.prefix_end  # columns before it left their keys, and no states
        if start < begin:
            raise UsageError(f"attention from column {start} on, of a prefix that was kept", f"{begin} or later")
        embeddings, extras = assembled.inputs_embeds[:, begin:], assembled.extras(begin)
        cache = DynamicCache(None if kept is None else self._past(kept.cache, embeddings.device))
        masks = self._masks(assembled.attention_mask, length - begin, None, extras)
        rotary = self._rotary(embeddings, assembled.position_ids[:, :, begin:])
        states = self._layers_below(embeddings, rotary, masks, cache, extras)
        last = rotary[self._types[-1]]
        key, _ = cache.update(*self._keys_values(states, last), len(self._layers) - 1)
        read = torch.arange(start - begin, length - begin, device=states.device).expand(len(states), -1)
        attention = self._layers[-1].self_attn
        query = self._rotated("q", pick(states, read), (pick(last[0], read), pick(last[1], read)))
        keys = key.repeat_interleave(attention.num_key_value_groups, dim=1)
        scores = (query.float() @ keys.float().transpose(2, 3)) * attention.scaling
        return scores.masked_fill(~rows_of(masks[self._types[-1]], read, length), float("-inf")).softmax(-1)

    def _past(self, cache: KVCache, home: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Keys and values where each layer runs; layers that wait in main memory or on the disk run at home."""
        places = [next(layer.parameters()).device for layer in self._layers]
        places = [home if place.type == "meta" else place for place in places]
        return [(key.to(place), value.to(place)) for (key, value), place in zip(cache.layers, places, strict=True)]

    def _masks(
        self, mask: Bool[Tensor, "batch total"], new: int, branches: Int[Tensor, " total"] | None, extras: Extras | None
    ) -> dict[str, Any]:
        visual = extras.visual if extras is not None and self._bidirectional else None
        return attention_masks(mask, new, branches, self._window, self._types, visual)

    def _rotary(
        self, embeddings: Float[Tensor, "batch sequence dim"], positions: Int[Tensor, "axes batch sequence"]
    ) -> dict[str, Rotary]:
        """The rotary embedding of each type of layer.

        Where the frequencies follow the length of the sequence, transformers' module keeps those of the longest so far;
        a copy for each pass keeps one from reaching the next, or another thread.
        """
        places, module = positions if self.kind.axes > 1 else positions[0], self._language.rotary_emb
        if self._adapts:
            module = copy.deepcopy(module, {id(module.config): module.config})
        if self.kind.rotary_by_layer:
            return {name: module(embeddings, places, name) for name in set(self._types)}
        same: Rotary = module(embeddings, places)
        return dict.fromkeys(self._types, same)

    def _layers_below(
        self,
        states: Float[Tensor, "batch sequence dim"],
        rotary: dict[str, Rotary],
        masks: dict[str, Any],
        cache: DynamicCache,
        extras: Extras | None,
        again: Again | None = None,
    ) -> Float[Tensor, "batch sequence dim"]:
        """The states that enter the final layer."""
        deep = None if extras is None else extras.deep
        levels = 0 if deep is None else deep.shape[2]
        assert levels < len(self._layers), "deep features go into the layers before the last"
        home = states.device  # the layers may be spread over several; the last one is where the first states are
        for number in range(len(self._layers) - 1):
            if again is None:
                states = self._layer(number, states, rotary, masks, cache)
            else:
                states = self._layer_twice(number, states, rotary, masks, cache, again)
            if deep is not None and number < levels:
                states = states + deep[:, :, number].to(states.device)
        return states.to(home)

    def _layer(
        self,
        number: int,
        states: Float[Tensor, "batch sequence dim"],
        rotary: dict[str, Rotary],
        masks: dict[str, Any],
        cache: Any,
    ) -> Float[Tensor, "batch sequence dim"]:
        return self._layers[number](
            states,
            attention_mask=masks[self._types[number]],
            position_embeddings=rotary[self._types[number]],
            past_key_values=cache,
            use_cache=True,
        )

    def _layer_twice(
        self,
        number: int,
        states: Float[Tensor, "batch sequence dim"],
        rotary: dict[str, Rotary],
        masks: dict[str, Any],
        cache: DynamicCache,
        again: Again,
    ) -> Float[Tensor, "batch sequence dim"]:
        """A layer that keeps its input alone, and is computed again when its gradient is wanted.

        Its own keys and values are not added to the cache: the second time they would be there already.
        """
        known: list[Any] = cache.layers
        past = CacheView(known[number].keys, known[number].values) if number < len(known) else CacheView()
        return checkpoint(
            lambda entering: self._layer(number, entering, rotary, masks, past),
            states,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), again()),
        )

    def _final_layer(
        self,
        states: Float[Tensor, "batch sequence dim"],
        rotary: Rotary,
        mask: Mask,
        cache: DynamicCache,
        read: Int[Tensor, "batch read"],
    ) -> Float[Tensor, "batch read dim"]:
        """The final layer for the columns that are read; the others only leave their keys and values."""
        key, value = cache.update(*self._keys_values(states, rotary), len(self._layers) - 1)
        states = pick(states, read)
        if not read.shape[1]:
            return states
        return self._layers[-1](
            states,
            attention_mask=rows_of(mask, read, key.shape[2]),
            position_embeddings=(pick(rotary[0], read), pick(rotary[1], read)),
            past_key_values=Known(key, value),
            use_cache=True,
        )

    def _keys_values(
        self, states: Float[Tensor, "batch sequence dim"], rotary: Rotary
    ) -> tuple[Float[Tensor, "batch groups sequence head_dim"], Float[Tensor, "batch groups sequence head_dim"]]:
        """Keys (rotated) and values of the final layer."""
        layer = self._layers[-1]
        value = layer.self_attn.v_proj(layer.input_layernorm(states))
        return self._rotated("k", states, rotary), self._in_heads(value)

    def _rotated(
        self, name: str, states: Float[Tensor, "batch columns dim"], rotary: Rotary
    ) -> Float[Tensor, "batch heads columns head_dim"]:
        """Queries ("q") or keys ("k") of the final layer."""
        layer = self._layers[-1]
        projected = self._in_heads(getattr(layer.self_attn, f"{name}_proj")(layer.input_layernorm(states)))
        if self.kind.normed:
            projected = getattr(layer.self_attn, f"{name}_norm")(projected)
        return rotate(projected, rotary[0][:, None], rotary[1][:, None])

    def _in_heads(self, values: Float[Tensor, "batch columns width"]) -> Float[Tensor, "batch heads columns head_dim"]:
        return values.unflatten(-1, (-1, self._layers[-1].self_attn.head_dim)).transpose(1, 2)


@dataclass(frozen=True)
class Known:
    """A cache that answers with keys and values it has already; a layer thereby reads all columns and computes few."""

    key: Tensor
    value: Tensor

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, those of the columns at hand among them."""
        return self.key, self.value


@dataclass(frozen=True)
class CacheView:
    """A cache that answers with what came before and what is at hand, and keeps nothing of the latter.

    Attributes:
        key: keys of the columns before; None where there are none.
        value: their values.
    """

    key: Tensor | None = None
    value: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """All keys and values."""
        if self.key is None or self.value is None:
            return key, value
        return torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)


def pick(
    values: Float[Tensor, "rows sequence width"], read: Int[Tensor, "batch read"]
) -> Float[Tensor, "batch read width"]:
    """Columns of each row; a single row of values stands for all."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, read]


def rotate(
    values: Float[Tensor, "*rows head_dim"],
    cos: Float[Tensor, "*#rows head_dim"],
    sin: Float[Tensor, "*#rows head_dim"],
) -> Float[Tensor, "*rows head_dim"]:
    """Rotary embedding in the dtype of `cos`, returned in the dtype of `values`."""
    wide = values.to(cos.dtype)
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-right, left], dim=-1) * sin).to(values.dtype)


def rows_of(mask: Mask, read: Int[Tensor, "batch read"], total: int) -> Bool[Tensor, "batch 1 read total"]:
    """What the new columns `read` see, by a mask or, without one, by plain causality over columns that are all new.

    A single new column without a mask sees everything.
    """
    if mask is None:
        columns = torch.arange(total, device=read.device)
        return (columns <= read[..., None])[:, None]
    return mask[:, 0].expand(len(read), -1, -1)[torch.arange(len(read), device=read.device)[:, None], read][:, None]
