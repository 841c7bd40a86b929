"""Assembly: splicing text, aspect tokens, visual tokens and soft prompt into one sequence (paper, Eq. 4).

A family gives the whole chat turn with placeholders; the other parts are spliced in by index. Rows are planned once per
(question, answer, image layout) on small integer arrays and gathered from one table of vectors per batch.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from masp.backbones.base import Backbone
from masp.core.config import MethodConfig
from masp.core.errors import UsageError
from masp.core.types import IGNORED, CachedPrefix, ImageLayout, ModelInputs, Template, VisualTokens

TEXT, ASPECT, VISUAL, PROMPT = range(4)  # what a column holds
PLAN_OBJECTS = 1_500
"""Bytes of a row plan beside its numbers: the objects that hold them, and its key."""


@dataclass(frozen=True)
class Layout:
    """Where things stand; every variant is a choice of these.

    Attributes:
        prompt_places: the soft prompt stands after the image, or also before it.
        native: the backbone's own positions, otherwise 0, 1, 2 … for every token.
        supervised: the answer with its end, or the newline before it and the answer.
        routed: aspect tokens pass a gate that is trained, so no column from the first of them on belongs to the prefix.
    """

    prompt_places: Literal["after_image", "both"] = "after_image"
    native: bool = True
    supervised: Literal["answer_end", "newline_answer"] = "answer_end"
    routed: bool = False

    @staticmethod
    def of(method: MethodConfig) -> "Layout":
        """The layout that a method asks for."""
        resolved = method.resolved()
        assert resolved.prompt_places is not None
        assert resolved.supervised is not None
        return Layout(resolved.prompt_places, resolved.positions == "native", resolved.supervised, resolved.routing)


@dataclass(frozen=True)
class SequenceParts:
    """What is spliced into a chat turn, as counts.

    Attributes:
        image: visual tokens; none when the aspect tokens stand in for the image.
        aspects: aspects.
        queries: tokens of one aspect.
        prompt: vectors of the soft prompt.
    """

    image: ImageLayout
    aspects: int
    queries: int
    prompt: int


@dataclass(frozen=True)
class SequenceLayout:
    """One row as integers, column by column.

    Attributes:
        kind: TEXT, ASPECT, VISUAL or PROMPT.
        value: token id of a text column, number within its kind of another.
        positions: positions along each axis.
        targets: supervised token at this column, or IGNORED.
        prefix: number of columns before the first trainable one.
        prefix_hash: hash of what stands in the prefix, beside the numbers of the image.
        image: the image that the row was planned for.
    """

    kind: NDArray[np.int64]
    value: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    prefix: int
    prefix_hash: bytes = b""
    image: ImageLayout | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes where it is kept."""
        return sum(part.nbytes for part in (self.kind, self.value, self.positions, self.targets)) + PLAN_OBJECTS


class SequenceBuilder:
    """Assembles batches for one backbone in one layout; the plans of its rows are kept with the backbone.

    Args:
        backbone: gives templates, embeddings and positions.
        layout: where things stand.
    """

    def __init__(self, backbone: Backbone, layout: Layout) -> None:
        self.backbone = backbone
        self.layout = layout

    def __call__(
        self,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        visual: VisualTokens | None = None,
        aspects: Float[Tensor, "batch aspects queries dim"] | None = None,
        prompt: Float[Tensor, "prompt dim"] | None = None,
    ) -> ModelInputs:
        """One row per question: [system, user, ⟨vision start⟩ Z V ⟨vision end⟩ P question, assistant, answer].

        Args:
            questions: text of the user turn, one per row.
            answers: supervised answers; None leaves the rows open after the generation prompt.
            visual: V; without it the aspect tokens stand in for the image, and they count as the trainable part.
            aspects: Z.
            prompt: P, the same vectors for every row.

        Raises:
            UsageError: neither visual nor aspect tokens, or a supervised newline that the family's template lacks.
        """
        if visual is None and aspects is None:
            raise UsageError("there is nothing to look at", "visual tokens, aspect tokens or both")
        a, n = aspects.shape[1:3] if aspects is not None else (0, 0)
        p = 0 if prompt is None else len(prompt)
        images = [ImageLayout(0)] * len(questions) if visual is None else visual.layouts
        rows = self._rows(questions, answers, [SequenceParts(image, a, n, p) for image in images])
        return self._gather(rows, visual, aspects, prompt, n)

    def continue_from_prefix(
        self,
        cached: CachedPrefix,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        queries: int = 0,
        prompt: Float[Tensor, "prompt dim"] | None = None,
    ) -> ModelInputs:
        """The same rows where the prefix is computed already: only what follows it is filled in.

        Args:
            cached: the prefixes, one per row.
            questions: text of the user turn, one per row.
            answers: supervised answers, or None.
            queries: tokens of each aspect in the prefix.
            prompt: P.

        Raises:
            UsageError: these rows do not begin with what is kept.
        """
        p = 0 if prompt is None else len(prompt)
        parts = [SequenceParts(image, len(cached.aspects), queries, p) for image in cached.images]
        rows = self._rows(questions, answers, parts)
        inside = all(bool(np.isin(row.kind[row.prefix :], (TEXT, PROMPT)).all()) for row in rows)
        if not inside or tuple(row.prefix_hash for row in rows) != cached.prefix_hashes:
            raise UsageError("these questions do not continue the prefixes that were kept", "the same layout and image")
        return replace(self._gather(rows, None, None, prompt, queries), cached_prefix=cached)

    def prefix_hashes(self, questions: Sequence[str], images: Sequence[SequenceParts]) -> tuple[bytes, ...]:
        """What the prefixes of these rows hold; rows of one image with equal signs have one prefix."""
        return tuple(row.prefix_hash for row in self._rows(questions, None, images))

    def _rows(
        self, questions: Sequence[str], answers: Sequence[str] | None, parts: Sequence[SequenceParts]
    ) -> list[SequenceLayout]:
        texts = [None] * len(questions) if answers is None else answers
        return [self._plan(*row) for row in zip(questions, texts, parts, strict=True)]

    def _plan(self, question: str, answer: str | None, parts: SequenceParts) -> SequenceLayout:
        """The plan of a row, kept from before or made."""
        key = (self.layout, question, answer, parts)
        return self.backbone.plans.get(key, lambda: self._plan_row(question, answer, parts))

    def _plan_row(self, question: str, answer: str | None, parts: SequenceParts) -> SequenceLayout:
        template, image = self.backbone.template(question, parts.image), parts.image
        ends = self.layout.supervised == "answer_end"
        answer_ids = [] if answer is None else self.backbone.answer_ids(answer, end=ends)
        kind, value = self._columns(template, answer_ids, parts)
        visual_start = int(np.argmax(kind == VISUAL)) if image.count else 0
        positions = self.backbone.positions(len(kind), visual_start, image, self.layout.native)
        targets = np.full(len(kind), IGNORED, dtype=np.int64)
        supervised = len(answer_ids)
        if answer is not None and not ends:
            if template.newline_after_assistant != len(template.ids) - 1:
                raise UsageError(
                    "the backbone's chat template has no newline after 'assistant'", "", "Use supervised: answer_end."
                )
            supervised += 1
        if supervised:
            targets[-supervised:] = value[-supervised:]
        trainable = kind == (PROMPT if parts.prompt else ASPECT)
        if self.layout.routed and parts.aspects:
            trainable = trainable | (kind == ASPECT)
        fallback = template.vision_close + parts.aspects * parts.queries
        begins = parts.prompt or not image.count or (self.layout.routed and parts.aspects)
        prefix = int(np.argmax(trainable)) if begins else fallback
        sign = self._sign(question, kind[:prefix], value[:prefix], positions.numpy()[:, :prefix])
        return SequenceLayout(kind, value, positions.numpy(), targets, prefix, sign, image)

    def _sign(self, question: str, *columns: NDArray[np.int64]) -> bytes:
        """Hash of the columns of a prefix, and of the question where visual tokens depend on it."""
        digest = hashlib.blake2b(question.encode() if self.backbone.question_conditioned else b"", digest_size=16)
        for part in columns:
            digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        return digest.digest()

    def _columns(
        self, template: Template, answer_ids: list[int], parts: SequenceParts
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Kind and value of every column."""
        first = parts.prompt if self.layout.prompt_places == "both" else 0
        ids = template.ids
        columns = [
            (TEXT, ids[: template.vision_open]),
            (PROMPT, range(first)),
            (TEXT, ids[template.vision_open : template.visual_start]),
            (ASPECT, range(parts.aspects * parts.queries)),
            *_image_parts(template),
            (TEXT, ids[template.visual_stop : template.vision_close]),
            (PROMPT, range(parts.prompt)),
            (TEXT, ids[template.vision_close :]),
            (TEXT, answer_ids),
        ]
        kind = np.concatenate([np.full(len(values), kind, dtype=np.int64) for kind, values in columns])
        value = np.concatenate([np.asarray(values, dtype=np.int64) for _, values in columns])
        return kind, value

    def _gather(
        self,
        rows: list[SequenceLayout],
        visual: VisualTokens | None,
        aspects: Float[Tensor, "batch aspects queries dim"] | None,
        prompt: Float[Tensor, "prompt dim"] | None,
        queries: int,
    ) -> ModelInputs:
        grid = padded(rows)
        backbone, row = self.backbone, np.arange(len(rows))[:, None]
        text = grid.kind == TEXT
        words, word = np.unique(grid.value[text], return_inverse=True)
        index = np.zeros_like(grid.value)  # 0 is the padding row of the table
        index[text] = word + 1
        tables = [
            torch.zeros(1, backbone.dim, dtype=backbone.dtype, device=backbone.device),
            backbone.embed(torch.from_numpy(words).to(backbone.device)),
        ]
        start = 1 + len(words)
        for kind, part in ((ASPECT, aspects), (VISUAL, None if visual is None else visual.tokens), (PROMPT, prompt)):
            if part is None:
                continue
            own = 0 if kind == PROMPT else int(np.prod(part.shape[1:-1]))  # vectors per row; P is shared
            index = np.where(grid.kind == kind, start + row * own + grid.value, index)
            tables.append(part.reshape(-1, backbone.dim).to(backbone.device, backbone.dtype))
            start += len(tables[-1])
        table = torch.cat(tables)
        move = functools.partial(_tensor, device=backbone.device)
        aspect_of = np.where(grid.kind == ASPECT, grid.value // max(queries, 1), -1)
        return ModelInputs(
            inputs_embeds=functional.embedding(move(index), table),
            position_ids=move(grid.positions),
            attention_mask=move(grid.kind != PADDING),
            prefix_end=grid.prefix,
            labels=move(grid.targets),
            aspect_columns=move(grid.kind == ASPECT),
            visual_columns=move(grid.kind == VISUAL),
            prompt_columns=move(grid.kind == PROMPT),
            aspect_of=move(aspect_of),
            common=_common(grid),
            prefix_hashes=tuple(row.prefix_hash for row in rows),
            images=tuple(row.image for row in rows if row.image is not None),
            deep=None if visual is None or visual.deep is None else self._deep(grid, visual.deep),
        )

    def _deep(
        self, grid: SequenceLayout, deep: Float[Tensor, "batch visual levels dim"]
    ) -> Float[Tensor, "batch sequence levels dim"]:
        """The deep features in the columns of their visual tokens, zero elsewhere."""
        visual = grid.kind == VISUAL
        result = deep.new_zeros(*grid.kind.shape, *deep.shape[2:]).to(self.backbone.device, self.backbone.dtype)
        rows, columns = np.nonzero(visual)
        result[rows, columns] = deep[rows, grid.value[visual]].to(result)
        return result


PADDING = -1


def _image_parts(template: Template) -> Iterator[tuple[int, Sequence[int]]]:
    """Visual tokens, numbered through, and the family's text between their spans."""
    begin = template.visual_start
    seen = 0
    for start, stop in template.spans:
        yield TEXT, template.ids[begin:start]
        yield VISUAL, range(seen, seen + stop - start)
        seen, begin = seen + stop - start, stop


def padded(rows: Sequence[SequenceLayout]) -> SequenceLayout:
    """The rows as one plan with a leading batch axis: prefixes end in one column, padding has kind PADDING."""
    prefix = max(row.prefix for row in rows)
    length = prefix + max(len(row.kind) - row.prefix for row in rows)
    fill = {"kind": PADDING, "value": 0, "positions": 0, "targets": IGNORED}
    axes = rows[0].positions.shape[0]
    shapes = {"positions": (axes, len(rows), length)}
    columns = {
        name: np.full(shapes.get(name, (len(rows), length)), value, dtype=np.int64) for name, value in fill.items()
    }
    for index, row in enumerate(rows):
        span = slice(prefix - row.prefix, prefix - row.prefix + len(row.kind))
        columns["kind"][index, span] = row.kind
        columns["value"][index, span] = row.value
        columns["positions"][:, index, span] = row.positions
        columns["targets"][index, span] = row.targets
    kind, value, positions, targets = (columns[name] for name in fill)
    return SequenceLayout(kind, value, positions, targets, prefix)


def _common(grid: SequenceLayout) -> int:
    """Number of leading columns of the prefix that are the same text in every row; 0 for a single row."""
    kind, value = grid.kind[:, : grid.prefix], grid.value[:, : grid.prefix]
    same = ((kind == TEXT) & (value == value[:1])).all(0)
    return 0 if len(kind) == 1 else int(np.argmin(np.append(same, False)))


def _tensor(values: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
