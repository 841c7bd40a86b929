"""The language model of a backbone: transformers' own forward, given explicit positions, masks and a cache.

Axes: h query heads, g key/value heads, s new columns, t all columns, e width of a head.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from masp.backbones.base import Again
from masp.core.errors import BackboneError, UsageError
from masp.core.types import DecoderOutput, Extras, KVCache, ModelInputs

AXES: Mapping[str, int] = MappingProxyType(
    {
        "llama": 1,
        "mistral": 1,
        "qwen2": 1,
        "qwen3": 1,
        "gemma3_text": 1,
        "qwen2_vl_text": 3,
        "qwen2_5_vl_text": 3,
        "qwen3_vl_text": 3,
    }
)
"""model_type of the text configurations that are supported → axes of a position; 3 for M-RoPE."""

ONE_MASK = frozenset({"llama", "mistral", "qwen3_vl_text"})
"""Text models that take one attention mask; the others take one for each type of layer."""

ATTENTION = "masp_sdpa"
"""Name under which transformers finds `_sdpa_with_weights`."""


class Decoder:
    """The text model of a vision-language model.

    Args:
        language: transformers' text model. From now on its attention can tell weights, its layers can be computed
            again, and the last one can be computed for some columns only.
        bidirectional: whether the visual tokens of an image see each other.

    Raises:
        BackboneError: a language model that is not supported.
    """

    def __init__(self, language: Any, bidirectional: bool = False) -> None:
        config = language.config
        if config.model_type not in AXES:
            raise BackboneError(
                f"the checkpoint's language model is of the kind '{config.model_type}'", f"one of {', '.join(AXES)}"
            )
        self.axes = AXES[config.model_type]
        self._language, self._bidirectional = language, bidirectional
        self._one_mask = config.model_type in ONE_MASK
        settings = config.to_dict()
        self._window: int | None = settings.get("sliding_window")
        every = "full_attention" if self._window is None else "sliding_attention"
        self._types: list[str] = list(settings.get("layer_types") or [every] * len(language.layers))
        AttentionInterface.register(ATTENTION, _sdpa_with_weights)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        config._attn_implementation = ATTENTION
        *below, last = language.layers
        for index, layer in enumerate(below):
            layer.forward = functools.partial(_checkpointed, layer.forward, index)
        last.forward = functools.partial(_final_layer, last, last.forward)
        kinds: Any = language.rotary_emb.rope_type
        rules = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if any("dynamic" in rule or rule == "longrope" for rule in rules):
            language.rotary_emb.forward = functools.partial(_rotary_without_memory, language.rotary_emb)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The blocks in order, themselves and no copies."""
        return tuple(self._language.layers)

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
        """See `Backbone.forward`. Keys and values of `cache` are copied from, never written to."""
        past, more = self._past(cache, inputs_embeds.device), {"again": again, "output_positions": output_positions}
        hidden = self._pass(inputs_embeds, position_ids, attention_mask, past, branch_ids, extras, **more)
        layers: list[Any] = past.layers if again is None else []
        return DecoderOutput(hidden, KVCache(tuple((layer.keys, layer.values) for layer in layers)))

    def last_attention(self, assembled: ModelInputs, start: int) -> Float[Tensor, "batch heads rest sequence"]:
        """See `Backbone.last_attention`."""
        cached = assembled.cached_prefix
        begin = 0 if cached is None else assembled.prefix_end  # columns before it left their keys, and no states
        if start < begin:
            raise UsageError(f"attention from column {start} on, of a prefix that was kept", f"{begin} or later")
        embeddings, positions = assembled.inputs_embeds[:, begin:], assembled.position_ids[:, :, begin:]
        past = self._past(None if cached is None else cached.cache, embeddings.device)
        wanted = AttentionRequest(len(self._language.layers) - 1, start - begin, [])
        extras = assembled.extras(begin)
        self._pass(embeddings, positions, assembled.attention_mask, past, None, extras, attention=wanted)
        return wanted.weights[0]

    def _pass(
        self,
        embeddings: Float[Tensor, "batch sequence dim"],
        positions: Int[Tensor, "axes batch sequence"],
        mask: Bool[Tensor, "batch total"],
        past: DynamicCache,
        branches: Int[Tensor, " total"] | None,
        extras: Extras | None,
        **more: Any,
    ) -> Float[Tensor, "batch read dim"]:
        """The last hidden states of the new columns, after the final norm; `past` grows by all of them.

        What `more` holds reaches every layer, and its attention.
        """
        visual = extras.visual if extras is not None and self._bidirectional else None
        result = attention_masks(mask, embeddings.shape[1], branches, self._window, self._types, visual)
        masks = {name: None if one is None else one.expand(len(embeddings), -1, -1, -1) for name, one in result.items()}
        if extras is not None and extras.deep is not None:
            more["visual_pos_masks"] = extras.visual
            assert extras.deep.shape[2] < len(self._language.layers), "deep features go into the layers before the last"
            more["deepstack_visual_embeds"] = [level[extras.visual] for level in extras.deep.unbind(2)]
        passed = self._language(
            inputs_embeds=embeddings,
            position_ids=positions if self.axes > 1 else positions[0],
            attention_mask=next(iter(masks.values())) if self._one_mask else masks,
            past_key_values=past,
            use_cache=True,
            **more,
        )
        return passed.last_hidden_state.to(embeddings.device)  # the layers may be spread over several

    def _past(self, cache: KVCache | None, home: torch.device) -> DynamicCache:
        """Keys and values on the device of each layer; those kept in main memory or on the disk run on `home`."""
        if cache is None or not cache.layers:
            return DynamicCache()
        devices = [next(layer.parameters()).device for layer in self._language.layers]
        devices = [home if device.type == "meta" else device for device in devices]
        moved = zip(cache.layers, devices, strict=True)
        return DynamicCache([(key.to(device), value.to(device)) for (key, value), device in moved])


@dataclass(frozen=True)
class AttentionRequest:
    """Attention weights that a pass leaves behind: of which layer, from which new column on, and where."""

    layer: int
    start: int
    weights: list[Float[Tensor, "batch heads rest total"]]


def _sdpa_with_weights(
    module: Any,
    query: Float[Tensor, "batch heads sequence head_dim"],
    key: Float[Tensor, "batch groups total head_dim"],
    value: Float[Tensor, "batch groups total head_dim"],
    attention_mask: Bool[Tensor, "batch 1 sequence total"] | None,
    attention: AttentionRequest | None = None,
    keys_only: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The SDPA attention of transformers; it returns no weights, so they are computed beside it where asked for.

    `keys_only`: nothing is wanted but the keys and values, which are in the cache by now.
    """
    if keys_only:
        return query.transpose(1, 2), None
    if attention is not None and module.layer_idx == attention.layer:
        groups = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = (query[:, :, attention.start :].float() @ groups.float().transpose(2, 3)) * module.scaling
        visible = attention_mask
        if visible is None:  # plain causality over columns that are all new, or one new column that sees all
            columns = torch.arange(key.shape[2], device=key.device)
            visible = (columns <= columns[-query.shape[2] :, None])[None, None]
        attention.weights.append(scores.masked_fill(~visible[:, :, attention.start :], float("-inf")).softmax(-1))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _final_layer(
    layer: Any,
    forward: Any,
    states: Float[Tensor, "batch sequence dim"],
    attention_mask: Bool[Tensor, "batch 1 sequence total"] | None,
    position_embeddings: tuple[Tensor, Tensor],
    past_key_values: Any,
    output_positions: Int[Tensor, "batch read"] | None = None,
    **given: Any,
) -> Float[Tensor, "batch read dim"]:
    """The final layer for the columns that are read; the others only leave their keys and values.

    Its own attention gives the keys and values of all columns, whatever the family does to them, and then reads them
    for the columns that are wanted. In a small language model a layer less is a fifth of the time.
    """
    states = states.to(position_embeddings[0].device)  # the layers before may be elsewhere
    inside = {"position_embeddings": position_embeddings, "attention_mask": attention_mask}
    if output_positions is None:
        return forward(states, **inside, past_key_values=past_key_values, **given)
    layer.self_attn(layer.input_layernorm(states), **inside, past_key_values=past_key_values, **given, keys_only=True)
    if not output_positions.shape[1]:
        return states[:, :0]
    known = past_key_values.layers[layer.self_attn.layer_idx]
    total, new = known.keys.shape[2], states.shape[1]
    if attention_mask is None:  # plain causality
        columns = torch.arange(total, device=states.device)
        mask = (columns <= output_positions[..., None] + total - new)[:, None]
    else:
        mask = _pick(attention_mask[:, 0], output_positions)[:, None]
    cosines, sines = (_pick(part.expand(len(states), -1, -1), output_positions) for part in position_embeddings)
    return forward(
        _pick(states, output_positions),
        attention_mask=mask,
        position_embeddings=(cosines, sines),
        past_key_values=CacheView(known.keys, known.values, whole=True),
        **given,
    )


def _pick(
    values: Shaped[Tensor, "batch sequence width"], read: Int[Tensor, "batch read"]
) -> Shaped[Tensor, "batch read width"]:
    """Columns of each row."""
    return values[torch.arange(len(values), device=values.device)[:, None], read]


def _checkpointed(forward: Any, number: int, states: Tensor, again: Again | None = None, **given: Any) -> Tensor:
    """A layer's forward; with `again` it keeps its input alone, and is computed again when its gradient is wanted.

    transformers' own checkpointing takes the cache away from a layer. Here the layer reads it, and adds nothing to it:
    the second time its own keys and values would be there already.
    """
    if again is None:
        return forward(states, **given)
    known: list[Any] = given["past_key_values"].layers
    past = CacheView(known[number].keys, known[number].values) if number < len(known) else CacheView()
    return checkpoint(
        functools.partial(forward, **given | {"past_key_values": past}),
        states,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), again()),
    )


@dataclass(frozen=True)
class CacheView:
    """A cache that answers with what came before and what is at hand, and keeps nothing of the latter.

    Attributes:
        key: keys of the columns before; None where there are none.
        value: their values.
        whole: what is at hand is among them already.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    whole: bool = False

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """All keys and values."""
        if self.key is None or self.value is None:
            return key, value
        if self.whole:
            return self.key, self.value
        return torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)


def _rotary_without_memory(module: Any, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a rotary embedding whose frequencies follow the length of the sequence.

    transformers' module keeps those of the longest sequence so far; a copy for each pass keeps one from reaching the
    next, or another thread.
    """
    fresh = copy.deepcopy(module, {id(module.config): module.config})
    return type(module).forward(fresh, *given, **more)


# Masks for a language model that is fed in pieces, with padding, branches and images seen as a whole.


def attention_masks(
    mask: Bool[Tensor, "batch total"],
    new: int,
    branch_ids: Int[Tensor, " total"] | None,
    window: int | None,
    layer_types: Sequence[str],
    visual: Bool[Tensor, "batch new"] | None = None,
) -> dict[str, Bool[Tensor, "rows 1 new total"] | None]:
    """For each type of layer, which of all columns each of the last `new` columns sees.

    A column sees the real columns up to itself, of branch 0 and its own; padding sees itself, so that no row of the
    softmax is empty. None stands for the plain causal mask, which kernels apply faster by themselves.

    Args:
        mask: which columns are real.
        new: number of columns that are queries.
        branch_ids: branch of every column; None if there is only one.
        window: number of columns a sliding layer looks back, padding and other branches not counted.
        layer_types: the types of all layers.
        visual: which of the new columns see the whole run of such columns that they stand in.
    """
    total = mask.shape[1]
    sliding = "sliding_attention" in layer_types and window is not None and window < total
    whole = visual is not None and bool(visual.any())
    plain = branch_ids is None and not whole and (new == total or new == 1) and bool(mask.all())
    if plain and not sliding:
        return dict.fromkeys(layer_types)
    columns = torch.arange(total, device=mask.device)
    queries = columns[-new:, None]
    visible = columns <= queries
    if branch_ids is not None:
        visible &= (branch_ids == 0) | (branch_ids == branch_ids[-new:, None])
    seen = (visible & mask[:, None]) | (columns == queries)
    if visual is not None and whole:
        seen[:, :, total - new :] |= _same_run(visual)
    masks: dict[str, Bool[Tensor, "rows 1 new total"] | None] = dict.fromkeys(layer_types, seen[:, None])
    if sliding:
        assert window is not None
        ranks = _ranks(mask, branch_ids)
        masks["sliding_attention"] = (seen & (ranks[:, None] > ranks[:, -new:, None] - window))[:, None]
    return masks


def _same_run(visual: Bool[Tensor, "batch new"]) -> Bool[Tensor, "batch new new"]:
    """Which pairs of columns stand in the same unbroken run of visual columns."""
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    run = (visual & ~before).cumsum(1) * visual
    return (run[:, :, None] == run[:, None]) & visual[:, :, None]


def _ranks(mask: Bool[Tensor, "batch total"], branches: Int[Tensor, " total"] | None) -> Int[Tensor, "batch total"]:
    """Each column's number in its own sequence, which padding and other branches do not lengthen."""
    if branches is None:
        return mask.cumsum(1)
    trunk = (mask & (branches == 0)).cumsum(1)
    same = (branches == branches[:, None]).tril()
    along = (same & (branches != 0)).sum(1)
    return torch.where(branches == 0, trunk, trunk[:, -1:] + along)


# The output head in float32, whatever format its weights are stored in, and without a float32 copy of them.

PART = 2**24
"""Weights that are float32 at a time: 64 MiB. The head of a 7B has 545 million."""


def head_logits(head: nn.Linear, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocabulary"]:
    """Logits in float32: products and sums of a frozen head, as if its weights and the states were float32.

    A head in bfloat16 would round every logit to 8 bits: by up to 0.06 where logits are about 20, while labels often
    differ by less. Of an nf4 backbone the head is not packed, so it is one in half precision as well.
    """
    if head.weight.dtype == torch.float32:
        return functional.linear(hidden.float(), head.weight, head.bias)
    assert not head.weight.requires_grad, "the output head is frozen"
    product: Tensor = _WideProduct.apply(hidden.flatten(0, -2), head.weight)  # pyright: ignore[reportAssignmentType]
    product = product.unflatten(0, hidden.shape[:-1])
    return product if head.bias is None else product + head.bias


class _WideProduct(torch.autograd.Function):
    """hidden weightᵀ in float32 of weights in half precision, and the gradient of `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "rows dim"], weight: Float[Tensor, "vocabulary dim"]
    ) -> Float[Tensor, "rows vocabulary"]:
        ctx.save_for_backward(weight)
        ctx.dtype = hidden.dtype
        if weight.device.type == "cuda" and torch.version.hip is None and hidden.dtype == weight.dtype:
            return torch.mm(hidden, weight.T, out_dtype=torch.float32)  # tensor cores sum in float32 anyhow
        wide = hidden.float()
        result = wide.new_empty(len(hidden), len(weight))
        start = 0
        for part in _parts(weight):
            torch.mm(wide, part.float().T, out=result[:, start : start + len(part)])
            start += len(part)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base takes any number of gradients)
        ctx: Any, gradient: Float[Tensor, "rows vocabulary"]
    ) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        total = gradient.new_zeros(len(gradient), weight.shape[1])
        start = 0
        for part in _parts(weight):
            total.addmm_(gradient[:, start : start + len(part)], part.float())
            start += len(part)
        return total.to(ctx.dtype), None


def _parts(weight: Float[Tensor, "vocabulary dim"]) -> tuple[Float[Tensor, "part dim"], ...]:
    return weight.split(max(1, PART // weight.shape[1]))
