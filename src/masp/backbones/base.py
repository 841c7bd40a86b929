"""The interface between the method and a backbone; a family file fits one kind of backbone to it."""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from masp.core.types import (
    DecoderOutput,
    Domain,
    Extras,
    ImageLayout,
    KVCache,
    ModelInputs,
    Pixels,
    Template,
    VisualTokens,
)


@runtime_checkable
class Sized(Protocol):
    """A value that knows how many bytes it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, with what belongs to it."""
        ...


Value = TypeVar("Value", bound=Sized)


class LRUCache:
    """Values by key, as many as take `limit` bytes together; what was used lately stays.

    Values are made outside the lock: at worst two threads make one value each, and both get the one that was there
    first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: dict[Hashable, Any] = {}  # the least lately used first
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not kept. What `make` raises is raised, and nothing is kept."""
        with self._lock:
            result = self._values.pop(key, None)
            if result is not None:
                self._values[key] = result
                return result
        made = make()
        with self._lock:
            if key in self._values:
                return self._values[key]
            self._values[key] = made
            self._bytes += made.nbytes
            while self._bytes > self._limit and len(self._values) > 1:  # one that was just made stays
                oldest = next(iter(self._values))
                self._bytes -= self._values.pop(oldest).nbytes
        return made

    def kept(self) -> tuple[Any, ...]:
        """The values that need not be made again."""
        with self._lock:
            return tuple(self._values.values())


Again = Callable[[], AbstractContextManager[object]]
"""Gives the context in which a layer is computed a second time: the one in which it was computed first."""


@runtime_checkable
class Backbone(Protocol):
    """A frozen vision-language model in evaluation mode; any number of threads may call it at once.

    Attributes:
        name: hub id, folder or "embedded", as the user asked for it.
        revision: commit of the weights on the hub; None for a folder.
        family: name of the family that serves it.
        dim: width of the language model.
        dtype: dtype of everything it returns but logits, and of its weights where none are packed.
        weight_dtype: of its weights, for the record: "bfloat16", or "nf4/bfloat16" where linear layers are packed.
        device: where it lives.
        end_of_turn: id of the token that ends an answer.
        known_tokens: one more than the tokenizer's largest id; embedding rows from there on belong to no token.
        stop_tokens: ids at which a generated answer is over, `end_of_turn` the first of them.
        image_transform: what happens to an image on its way to the vision tower, for the record.
        embedding_scale: what rows of the embedding matrix are multiplied with before they enter; 1 for most families.
        question_conditioned: whether visual tokens depend on the question: `condition_on` is then called for each.
        accepted: names of `hashes` that adapters and runs may have been made with others of.
        plans: row plans of all models over this backbone, within one bound.
    """

    name: str
    revision: str | None
    family: str
    dim: int
    dtype: torch.dtype
    weight_dtype: str
    device: torch.device
    end_of_turn: int
    known_tokens: int
    stop_tokens: tuple[int, ...]
    image_transform: dict[str, Any]
    embedding_scale: float
    question_conditioned: bool
    accepted: frozenset[str]
    plans: LRUCache

    def bound_pixels(self, least: int | None, most: int | None) -> None:
        """Bring images to an area between these bounds, in pixels, from now on; None leaves a bound as it is.

        Raises:
            BackboneError: the family has no such bounds, or not these.
        """
        ...

    def fingerprint(self) -> str:
        """Hash of configuration and weights as stored; does not depend on the dtype or device they were loaded to."""
        ...

    def hashes(self) -> Mapping[str, str]:
        """Hashes of what decides how it reads images and texts, as stored: `processor`, `template`, `tokenizer`."""
        ...

    def preprocess(self, images: Sequence[Any]) -> Pixels:
        """Pixels of RGB images (PIL), on the CPU; safe to call from several threads."""
        ...

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens of a batch, without gradients.

        Where the family asks, these are the features that questions are put to, shared by all of them.
        """
        ...

    def domain(self, visual: VisualTokens) -> list[Domain] | None:
        """For each image whether it is of the kind that the backbone was trained on; None: the backbone cannot tell."""
        ...

    def condition_on(self, visual: VisualTokens, questions: Sequence[str]) -> VisualTokens:
        """Visual tokens as they are for these questions, one per image; `visual` itself where they depend on none."""
        ...

    def template(self, question: str, image: ImageLayout) -> Template:
        """The chat turn with a question about an image; special tokens in the question are text."""
        ...

    def answer_ids(self, answer: str, end: bool) -> list[int]:
        """Token ids of an answer, closed by the end-of-turn token if `end`; special tokens in `answer` are text."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text; special tokens in it are text."""
        ...

    def special_ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """Ids of special tokens; those that the tokenizer lacks get the ids that adding them would give."""
        ...

    def embed(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... dim"]:
        """Input embeddings of token ids."""
        ...

    def embedding_rows(self) -> Float[Tensor, "vocabulary dim"]:
        """The input embedding matrix as stored, one row per token of the vocabulary; not to be written to."""
        ...

    def embedding_std(self) -> float:
        """Standard deviation of all numbers in the embedding matrix, scaled as they enter the language model."""
        ...

    def positions(self, length: int, visual_start: int, image: ImageLayout, native: bool) -> Int[Tensor, "axes length"]:
        """Positions of one sequence of `length` columns whose visual tokens begin at `visual_start`.

        `native`: the backbone's own scheme (rows and columns of the image for M-RoPE), otherwise 0, 1, 2 … for all.
        """
        ...

    def forward(
        self,
        inputs_embeds: Float[Tensor, "batch sequence dim"],
        position_ids: Int[Tensor, "axes batch sequence"],
        attention_mask: Bool[Tensor, "batch total"],
        cache: KVCache | None = None,
        branch_ids: Int[Tensor, " total"] | None = None,
        output_positions: Int[Tensor, "batch read"] | None = None,
        extras: Extras | None = None,
        again: Again | None = None,
    ) -> DecoderOutput:
        """The language model over new columns.

        Args:
            inputs_embeds: vectors of the new columns.
            position_ids: their positions.
            attention_mask: which columns are real, those in `cache` first, then the new ones.
            cache: keys and values of the columns before; they are read, never changed.
            branch_ids: a number for every column of `attention_mask`; a column sees branch 0 and its own branch only,
                so that several continuations of one prompt share one pass. None: one continuation.
            output_positions: which of the new columns' hidden states are wanted, for each row; the final layer skips
                the others. None: all of them, in order.
            extras: what the new columns carry besides. None: they are plain text.
            again: the backward pass computes the layers below the final one a second time, inside what this gives,
                instead of keeping what they computed (gradient checkpointing); nothing can continue such a pass. None:
                everything is kept.
        """
        ...

    def logits(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocabulary"]:
        """The output head, in fp32 whatever the format of its weights."""
        ...

    def layers(self) -> Sequence[nn.Module]:
        """The blocks of the language model, in order; whoever puts another layer into one takes it out again."""
        ...

    def last_attention(self, assembled: ModelInputs, start: int) -> Float[Tensor, "batch heads rest sequence"]:
        """Attention weights of the final layer from the columns `start` … to all columns, fp32, without gradients.

        Raises:
            UsageError: `start` stands in a prefix that was kept: its own states are not known any more.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        ...
