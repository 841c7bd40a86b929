"""What crosses a file boundary: tensors with their meaning, as frozen dataclasses.

Axis words in the shapes of this package: ``batch`` examples, ``visual`` visual tokens (padded right to the longest of
the batch), ``aspects``, ``queries`` tokens of one aspect, ``prompt`` vectors of the soft prompt, ``sequence`` columns
of the language model's input, ``dim`` width of the language model, ``axes`` axes of a position (3 for M-RoPE).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100  # in ModelInputs.targets: this place is not supervised


@dataclass(frozen=True)
class Pixels:
    """Preprocessed images of one batch, in the form the family's vision tower takes; may be made in a loader thread.

    Attributes:
        values: patches, tiles or whole images, one after the other.
        grid: what the family notes for each image: patches along time, height and width, tiles, or its size.
        mask: which of the values are real, where a family pads them.
    """

    values: Float[Tensor, "parts *values"]
    grid: Int[Tensor, "batch numbers"]
    mask: Bool[Tensor, "parts *places"] | None = None

    def __len__(self) -> int:
        return self.grid.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same pixels on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, values=self.values.to(device), grid=self.grid.to(device), mask=mask)


@dataclass(frozen=True)
class ImageLayout:
    """How the visual tokens of one image are laid out, as far as its place in a chat turn depends on it.

    Attributes:
        count: number of visual tokens; 0 where aspect tokens stand in for the image.
        shape: rows and columns of the tokens or of the tiles; what they mean is the family's own.
    """

    count: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisualTokens:
    """The images of a batch as features in language-model space (V of the paper, Eq. 1).

    Attributes:
        tokens: features; rows beyond an image's own count are zero.
        mask: which tokens are real; the real ones stand on the left.
        boxes: place of each token on its image as (x0, y0, x1, y1), fractions of width and height; None if unknown.
        grid: rows and columns in which an image's tokens are laid out, row by row; None if they are not a grid.
        shapes: `ImageLayout.shape` of each image, where it is not its grid.
        deep: features of the same places that the first layers of the language model add, one level per layer.
        pooled: features of the whole image as the vision tower has them, not in language-model space; None where the
            family gives none.
    """

    tokens: Float[Tensor, "batch visual dim"]
    mask: Bool[Tensor, "batch visual"]
    boxes: Float[Tensor, "batch visual 4"] | None = None
    grid: Int[Tensor, "batch 2"] | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    deep: Float[Tensor, "batch visual levels dim"] | None = None
    pooled: Float[Tensor, "batch features"] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def counts(self) -> list[int]:
        """Number of real visual tokens of each image."""
        return self.mask.sum(1).tolist()

    @property
    def layouts(self) -> list[ImageLayout]:
        """How each image's tokens are laid out."""
        grids = [()] * len(self) if self.grid is None else map(tuple, self.grid.tolist())
        shapes = grids if self.shapes is None else self.shapes
        return [ImageLayout(count, shape) for count, shape in zip(self.counts, shapes, strict=True)]

    def mean(self) -> Float[Tensor, "batch dim"]:
        """The mean token of each image, padding left out; fp32."""
        return (self.tokens.float() * self.mask[..., None]).sum(1) / self.mask.sum(1, keepdim=True)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same visual tokens on another device; `dtype` changes tokens and deep features only."""
        return replace(
            self,
            tokens=self.tokens.to(device=device, dtype=dtype),
            deep=None if self.deep is None else self.deep.to(device=device, dtype=dtype),
            mask=self.mask.to(device=device),
            boxes=None if self.boxes is None else self.boxes.to(device=device),
            grid=None if self.grid is None else self.grid.to(device=device),
            pooled=None if self.pooled is None else self.pooled.to(device=device),
        )

    def select(self, indices: Sequence[int] | Int[Tensor, " chosen"]) -> Self:
        """The images at `indices`, in that order, repeated if an index repeats; surplus padding is cut off."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.mask.device)
        mask = self.mask[index]
        width = int(mask.sum(1).max()) if len(index) else 0
        return replace(
            self,
            tokens=self.tokens[index, :width],
            mask=mask[:, :width],
            boxes=None if self.boxes is None else self.boxes[index, :width],
            grid=None if self.grid is None else self.grid[index],
            shapes=None if self.shapes is None else tuple(self.shapes[row] for row in index.tolist()),
            deep=None if self.deep is None else self.deep[index, :width],
            pooled=None if self.pooled is None else self.pooled[index],
        )

    @staticmethod
    def stack(parts: "Sequence[VisualTokens]") -> "VisualTokens":
        """One batch of all images of `parts`; what not all parts have is left out."""
        width = max(part.tokens.shape[1] for part in parts)
        grids = [part.grid for part in parts if part.grid is not None]
        boxes = [_pad(part.boxes, width) for part in parts if part.boxes is not None]
        shapes = [part.shapes for part in parts if part.shapes is not None]
        deep = [_pad(part.deep, width) for part in parts if part.deep is not None]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return VisualTokens(
            tokens=torch.cat([_pad(part.tokens, width) for part in parts]),
            mask=torch.cat([_pad(part.mask, width) for part in parts]),
            boxes=torch.cat(boxes) if len(boxes) == len(parts) else None,
            grid=torch.cat(grids) if len(grids) == len(parts) else None,
            shapes=sum(shapes, ()) if len(shapes) == len(parts) else None,
            deep=torch.cat(deep) if len(deep) == len(parts) else None,
            pooled=torch.cat(pooled) if len(pooled) == len(parts) else None,
        )


def _pad(values: Tensor, width: int) -> Tensor:
    """`values` with zeros (False) appended along its second axis up to `width`."""
    missing = width - values.shape[1]
    if missing == 0:
        return values
    return torch.cat([values, values.new_zeros(values.shape[0], missing, *values.shape[2:])], dim=1)


@dataclass(frozen=True)
class Domain:
    """Whether an image is of the kind that a backbone was trained on.

    Attributes:
        knows: what the backbone knows, for people: "emoji scenes".
        inside: whether the image is one of these, as far as its visual tokens tell.
        distance: from the backbone's own training images, in their standard deviations.
        limit: the largest distance that counts as inside.
    """

    knows: str
    inside: bool
    distance: float
    limit: float


@dataclass(frozen=True)
class AspectTokens:
    """What the aspect queries read from the visual tokens (Z of the paper, Eq. 2).

    Attributes:
        tokens: aspect tokens, fp32.
        weights: attention of each query over the visual tokens; every row sums to 1, padding gets 0.
        aspects: the name of each aspect, in order.
    """

    tokens: Float[Tensor, "batch aspects queries dim"]
    weights: Float[Tensor, "batch aspects queries visual"]
    aspects: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A chat turn of a family around one image and one question, as token ids with the visual placeholders in place.

    Attributes:
        ids: the whole turn, up to and including the generation prompt.
        vision_open: where the image's part begins (its opening mark, if the family has one).
        spans: first and one past the last placeholder of each run of them, in order; a family that puts text between
            tiles has several. One empty span where aspect tokens stand in for the image.
        vision_close: one past the image's part; the question's text follows.
        newline_after_assistant: where the newline of the generation prompt stands; None if the family has none.
    """

    ids: tuple[int, ...]
    vision_open: int
    spans: tuple[tuple[int, int], ...]
    vision_close: int
    newline_after_assistant: int | None = None

    @property
    def visual_start(self) -> int:
        """The first visual placeholder; aspect tokens stand directly before it."""
        return self.spans[0][0]

    @property
    def visual_stop(self) -> int:
        """One past the last visual placeholder."""
        return self.spans[-1][1]


@dataclass(frozen=True)
class Extras:
    """What new columns of the language model carry besides a vector and a position.

    Attributes:
        visual: which of them hold visual tokens; a family may let those of one image see each other.
        deep: what the first layers add to them, zero at every other column.
    """

    visual: Bool[Tensor, "batch sequence"]
    deep: Float[Tensor, "batch sequence levels dim"] | None = None

    def followed_by(self, text: int) -> Self:
        """The same with `text` columns of plain text behind."""
        deep = self.deep if self.deep is None else _pad(self.deep, self.deep.shape[1] + text)
        return replace(self, visual=_pad(self.visual, self.visual.shape[1] + text), deep=deep)


@dataclass(frozen=True)
class ModelInputs:
    """A batch ready for the language model: prefixes padded left up to one common column, suffixes padded right.

    Attributes:
        inputs_embeds: input vectors in the backbone's dtype; padding is zero.
        position_ids: positions for the rotary embedding; padding is 0.
        attention_mask: which columns are real.
        prefix_end: first column of the suffix; no trainable tensor stands before it.
        labels: the token that stands at this column, to be predicted from the column before; IGNORED elsewhere.
        aspect_columns: which columns hold aspect tokens.
        visual_columns: which columns hold visual tokens.
        prompt_columns: which columns hold the soft prompt.
        aspect_of: number of the aspect a column belongs to, in splicing order; -1 elsewhere.
        common: number of leading columns of the prefix that are the same text in every row of a batch of several, so
            that one row can stand for all.
        deep: what the first layers of the language model add; None for most families.
        prefix_hashes: for each row what its prefix holds beside the numbers of the image: texts, columns, positions.
        images: the image of each row, as far as the row's columns depend on it.
        cached_prefix: the prefix as it was computed before; `inputs_embeds` are then zero up to `prefix_end`.
    """

    inputs_embeds: Float[Tensor, "batch sequence dim"]
    position_ids: Int[Tensor, "axes batch sequence"]
    attention_mask: Bool[Tensor, "batch sequence"]
    prefix_end: int
    labels: Int[Tensor, "batch sequence"]
    aspect_columns: Bool[Tensor, "batch sequence"]
    visual_columns: Bool[Tensor, "batch sequence"]
    prompt_columns: Bool[Tensor, "batch sequence"]
    aspect_of: Int[Tensor, "batch sequence"]
    common: int = 0
    deep: Float[Tensor, "batch sequence levels dim"] | None = None
    prefix_hashes: tuple[bytes, ...] = ()
    images: tuple[ImageLayout, ...] = ()
    cached_prefix: "CachedPrefix | None" = None

    def span(
        self, start: int, end: int | None = None
    ) -> tuple[Float[Tensor, "batch new dim"], Int[Tensor, "axes batch new"], Bool[Tensor, "batch total"]]:
        """The columns from `start` up to `end` as `Backbone.forward` takes them: vectors, positions, and the mask."""
        return self.inputs_embeds[:, start:end], self.position_ids[:, :, start:end], self.attention_mask[:, :end]

    def extras(self, start: int, end: int | None = None) -> Extras:
        """What the columns from `start` up to `end` carry besides vector and position."""
        deep = None if self.deep is None else self.deep[:, start:end]
        return Extras(self.visual_columns[:, start:end], deep)


@dataclass(frozen=True)
class KVCache:
    """Keys and values of every layer for the columns seen so far. Immutable: each use wraps them in a fresh cache.

    Attributes:
        layers: for every layer its keys and values.
    """

    layers: tuple[tuple[Float[Tensor, "batch heads past head_dim"], Float[Tensor, "batch heads past head_dim"]], ...]

    def expand(self, batch: int) -> Self:
        """The one row of this object standing for `batch` rows, without a copy."""
        return replace(
            self, layers=tuple((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in self.layers)
        )


@dataclass(frozen=True)
class CachedPrefix:
    """The prefixes of a batch as the language model left them: computed once, then read by any step, task or seed.

    Rows are padded on the left, as in `ModelInputs`.

    Attributes:
        states: keys (0) and values (1) of every layer.
        mask: which columns are real.
        images: the images in it, as far as the rest of a row depends on them.
        prefix_hashes: what each row holds beside its image; a row is only continued by one that begins in the same way.
        aspects: the aspects whose tokens stand in it, in order.
    """

    states: Float[Tensor, "layers 2 batch heads past head_dim"]
    mask: Bool[Tensor, "batch past"]
    images: tuple[ImageLayout, ...]
    prefix_hashes: tuple[bytes, ...]
    aspects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def cache(self) -> KVCache:
        """As the language model takes them, without a copy."""
        return KVCache(tuple((layer[0], layer[1]) for layer in self.states))

    def select(self, indices: Sequence[int]) -> Self:
        """The rows at `indices`, in that order; surplus padding is cut off."""
        mask = self.mask[list(indices)]
        start = self.mask.shape[1] - int(mask.sum(1).max())
        return replace(
            self,
            states=self.states[:, :, list(indices), :, start:],
            mask=mask[:, start:],
            images=tuple(self.images[index] for index in indices),
            prefix_hashes=tuple(self.prefix_hashes[index] for index in indices),
        )

    def rows(self) -> "list[CachedPrefix]":
        """Every row by itself, without padding, in memory of its own."""
        return [self._row(number) for number in range(len(self))]

    def _row(self, number: int) -> "CachedPrefix":
        length = int(self.mask[number].sum())
        start = self.mask.shape[1] - length
        states = self.states[:, :, number : number + 1, :, start:].contiguous().clone()
        one = slice(number, number + 1)
        return CachedPrefix(
            states, self.mask[one, start:].clone(), self.images[one], self.prefix_hashes[one], self.aspects
        )

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(self, states=self.states.to(device), mask=self.mask.to(device))

    @staticmethod
    def stack(parts: "Sequence[CachedPrefix]") -> "CachedPrefix":
        """One batch of all rows of `parts`, which hold the same aspects."""
        width = max(part.mask.shape[1] for part in parts)
        first = parts[0]
        layers, two, _, heads, _, head_dim = first.states.shape
        batch = sum(len(part) for part in parts)
        states = first.states.new_zeros(layers, two, batch, heads, width, head_dim)
        mask = first.mask.new_zeros(batch, width)
        row = 0
        for part in parts:
            end, start = row + len(part), width - part.mask.shape[1]
            states[:, :, row:end, :, start:] = part.states
            mask[row:end, start:] = part.mask
            row = end
        images = sum((part.images for part in parts), ())
        return CachedPrefix(states, mask, images, sum((part.prefix_hashes for part in parts), ()), first.aspects)


ImageInput = VisualTokens | CachedPrefix
"""What an image is given to the model as: its visual tokens, or all that stands before the soft prompt, computed."""


@dataclass(frozen=True)
class DecoderOutput:
    """What a pass through the language model leaves.

    Attributes:
        hidden: final hidden states (normalised) of the columns that were asked for.
        cache: keys and values of all columns so far; no layers where they are computed again in the backward pass.
    """

    hidden: Float[Tensor, "batch read dim"]
    cache: KVCache
