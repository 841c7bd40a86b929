"""The method around a frozen backbone: what is trained in which stage, and the two losses (paper, section 3)."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from masp.backbones.base import Again, Backbone
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import UsageError, did_you_mean
from masp.core.prompts import Questions, load_questions
from masp.core.types import IGNORED, AspectTokens, CachedPrefix, ImageInput, KVCache, ModelInputs, VisualTokens
from masp.model.aspect_attention import AspectModules, AspectRouting
from masp.model.sequence_builder import Layout, SequenceBuilder, SequenceParts
from masp.model.soft_prompt import (
    SoftPrompt,
    prompt_tokens,
    random_init,
    text_init,
    unused_start,
    vocabulary_init,
)


@dataclass(frozen=True)
class ActiveParts:
    """Which parts of a model take part; parts that the model does not have are ignored.

    Attributes:
        aspects: aspects whose tokens are spliced in; their order is the model's.
        prompt: whether the soft prompt is spliced in.

    Raises:
        UsageError: an aspect that does not exist.
    """

    aspects: tuple[str, ...] = ASPECTS
    prompt: bool = True

    def __post_init__(self) -> None:
        for name in self.aspects:
            if name not in ASPECTS:
                raise UsageError(f"unknown aspect '{name}'", "", did_you_mean(name, ASPECTS))


class MaspModel(nn.Module):
    """A frozen backbone with aspect modules and a soft prompt; both may be missing.

    Only the modules are parameters of this object: the backbone is held, not owned, so that nothing trains, saves or
    moves it by accident.

    Args:
        backbone: the frozen vision-language model.
        method: what is computed; nulls mean what the variant says.
        aspects: the modules of stage 1.
        prompt: the soft prompt of stage 2.
        questions: what the aspects are asked, for a backbone whose visual tokens depend on it; None: the package's own.
        again: gradient checkpointing in the losses (see `Backbone.forward`); None: none.
        routing: gates on the aspect tokens of stage 2 (`method.routing`).

    Raises:
        UsageError: a module of another width than the backbone, or gates where visual tokens depend on the question.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: MethodConfig,
        aspects: AspectModules | None = None,
        prompt: SoftPrompt | None = None,
        questions: Questions | None = None,
        again: Again | None = None,
        routing: AspectRouting | None = None,
    ) -> None:
        super().__init__()
        if routing is not None and backbone.question_conditioned:
            got = f"method.routing on {backbone.name}, whose visual tokens depend on the question"
            raise UsageError(got, "a backbone whose visual tokens do not", "Set method.routing=false.")
        widths = {"aspects": aspects and aspects.dim, "soft prompt": prompt and prompt.vectors.shape[1]}
        for part, width in widths.items():
            if width is not None and width != backbone.dim:
                raise UsageError(f"the {part} has width {width}", f"{backbone.dim}, the width of {backbone.name}")
        self.backbone = backbone
        self.method = method.resolved()
        self.sequence_builder = SequenceBuilder(backbone, Layout.of(method))
        self.aspects = None if aspects is None else aspects.to(backbone.device)
        self.prompt = None if prompt is None else prompt.to(backbone.device)
        self.questions = load_questions() if questions is None and backbone.question_conditioned else questions
        self.again = again
        self.routing = None if routing is None else routing.to(backbone.device)

    def aspect_module(self) -> AspectModules:
        """The modules of stage 1.

        Raises:
            UsageError: the model has none.
        """
        if self.aspects is None:
            raise UsageError(
                "this model has no aspects", "an aspect adapter", "Train stage 1, or load an adapter with aspects."
            )
        return self.aspects

    def aspect_tokens(
        self, visual: VisualTokens, names: Sequence[str] | None = None, questions: Sequence[str] | None = None
    ) -> AspectTokens:
        """What all aspect modules, or those in `names` in that order, read from every image.

        Where visual tokens depend on the question, each module reads those for its own: the one in `questions`, or the
        first that the model asks about the aspect.
        """
        modules = self.aspect_module()
        chosen = modules.aspects if names is None else tuple(names)
        if not self.backbone.question_conditioned:
            return modules(visual, chosen)
        assert self.questions is not None
        texts = [self.questions.aspect(name)[0] for name in chosen] if questions is None else questions
        parts = [
            modules(self.backbone.condition_on(visual, [text] * len(visual)), [name])
            for name, text in zip(chosen, texts, strict=True)
        ]
        tokens, weights = torch.cat([part.tokens for part in parts], 1), torch.cat([part.weights for part in parts], 1)
        return AspectTokens(tokens, weights, chosen)

    def build_inputs(
        self,
        visual: ImageInput,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        use: ActiveParts | None = None,
    ) -> ModelInputs:
        """Sequences of stage 2, one question per image; gradients flow to the soft prompt and the gates only.

        Raises:
            UsageError: a kept prefix that belongs to other aspects or another layout.
        """
        chosen = ActiveParts() if use is None else use
        names = self.active_aspects(chosen)
        prompt = self.prompt() if self.prompt is not None and chosen.prompt and self.prompt.length else None
        if isinstance(visual, CachedPrefix):
            if visual.aspects != names:
                had = ", ".join(visual.aspects) or "none"
                raise UsageError(f"the kept prefix holds the aspects: {had}", ", ".join(names) or "none")
            queries = 0 if self.aspects is None else self.aspects.queries
            return self.sequence_builder.continue_from_prefix(visual, questions, answers, queries, prompt)
        tokens = None
        if names:
            with torch.no_grad():
                read = self.aspect_tokens(visual, names)
            tokens = read.tokens if self.routing is None else self.routing(read, visual)
        return self.sequence_builder(questions, answers, self.backbone.condition_on(visual, questions), tokens, prompt)

    def generated_embedding(
        self, assembled: ModelInputs
    ) -> Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch dim"]]:
        """What embeds the tokens that are generated behind these rows.

        In the variant `released` the soft prompt stands in the embedding matrix, as the rows of the tokens that
        `prompt_tokens` names, so a generated token with such an id enters with the trained vector. In any other the
        soft prompt has no ids, and every token enters with the backbone's own row.
        """
        if self.prompt is None or self.method.variant != "released" or not bool(assembled.prompt_columns.any()):
            return self.backbone.embed
        ids = torch.tensor(self.backbone.special_ids(prompt_tokens(self.prompt.length)), device=self.backbone.device)
        vectors = self.prompt().detach().to(self.backbone.dtype)

        def embed(words: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
            same = words[:, None] == ids
            own = vectors[same.int().argmax(1)]
            return torch.where(same.any(1, keepdim=True), own, self.backbone.embed(words))

        return embed

    def active_aspects(self, use: ActiveParts) -> tuple[str, ...]:
        """The aspects that this model has and a use wants, in the order in which they are spliced in."""
        return () if self.aspects is None else tuple(name for name in self.aspects.aspects if name in use.aspects)

    @torch.no_grad()
    def prefix(self, visual: VisualTokens, questions: Sequence[str], use: ActiveParts | None = None) -> CachedPrefix:
        """Everything before the soft prompt, computed once; it stands in for the visual tokens wherever they are taken.

        In the layout of the paper this is nearly the whole row. It does not depend on the soft prompt or its length,
        and on the question only for families whose visual tokens do.

        Raises:
            UsageError: the soft prompt stands before the image too (variant `released`), or aspects pass trained gates.
        """
        assembled = self.build_inputs(visual, questions, use=use)
        cache = self.prefix_cache(assembled)
        if cache is None or bool(assembled.visual_columns[:, assembled.prefix_end :].any()):
            raise UsageError(
                "the image stands behind the first trained vector, so nothing of it can be kept",
                "the layout of the paper",
                "Set method.prompt_places to after_image, and method.routing to false.",
            )
        home = self.backbone.device  # layers may be spread over several
        states = torch.stack([torch.stack(layer).to(home) for layer in cache.layers])
        mask = assembled.attention_mask[:, : assembled.prefix_end]
        names = self.active_aspects(ActiveParts() if use is None else use)
        return CachedPrefix(states, mask, assembled.images, assembled.prefix_hashes, names)

    def prefix_key(self, visual: VisualTokens, question: str, use: ActiveParts | None = None) -> Hashable:
        """What stands before the soft prompt: models and questions with equal keys follow one prefix of an image.

        None where nothing can be kept: the visual tokens depend on the question, or the soft prompt or trained gates
        precede them.
        """
        chosen = ActiveParts() if use is None else use
        layout = self.sequence_builder.layout
        names = self.active_aspects(chosen)
        before = (layout.prompt_places == "both" and chosen.prompt) or (layout.routed and bool(names))
        if self.backbone.question_conditioned or before:
            return None
        queries = 0 if self.aspects is None else self.aspects.queries
        length = 0 if self.prompt is None or not chosen.prompt else self.prompt.length
        one = SequenceParts(visual.layouts[0], len(names), queries, length)
        return id(self.aspects) if names else 0, names, self.sequence_builder.prefix_hashes([question], [one])

    def shares_prefix(self, visual: VisualTokens, questions: Sequence[str], use: ActiveParts | None = None) -> bool:
        """Whether all these questions about one image follow the same prefix, and it holds the image."""
        keys = {self.prefix_key(visual, question, use) for question in questions}
        return len(keys) == 1 and None not in keys

    def aspect_loss(
        self,
        visual: VisualTokens,
        aspect_index: Int[Tensor, " batch"],
        questions: Sequence[str],
        answers: Sequence[str],
        images: Sequence[int] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Stage 1: mean cross-entropy over the supervised tokens of each example's aspect answer.

        The language model sees the tokens of one aspect and that aspect's question, nothing else of the image. Only the
        modules of the aspects that occur get a gradient, each from its own examples.

        Args:
            visual: the images.
            aspect_index: which aspect, counted in the order of the aspect modules.
            questions: question about the aspect.
            answers: its answer.
            images: for each example the row of its image in `visual`; None: one image per example.
        """
        # Where visual tokens depend on the question, pairs share nothing.
        if images is None or self.backbone.question_conditioned:
            own = visual if images is None else visual.select(images)
            tokens, _ = self.aspect_module().per_example(self.backbone.condition_on(own, questions), aspect_index)
        else:
            tokens = self.aspect_module().per_pair(visual, images, aspect_index.tolist())
        return self.loss(self.sequence_builder(questions, answers, aspects=tokens[:, None]))

    def prompt_loss(
        self, visual: ImageInput, questions: Sequence[str], answers: Sequence[str], use: ActiveParts | None = None
    ) -> Float[Tensor, " batch"]:
        """Stage 2: mean cross-entropy over the supervised tokens of each example's label."""
        return self.loss(self.build_inputs(visual, questions, answers, use))

    def loss(self, assembled: ModelInputs) -> Float[Tensor, " batch"]:
        """Mean cross-entropy of each row over its supervised tokens.

        Nothing trainable stands in the prefix, so its states are computed without a graph and the backward pass runs
        over the suffix alone; this is exact. Only places before supervised tokens reach the output head.
        """
        start = assembled.prefix_end
        targets = assembled.labels[:, start:]
        supervised = targets != IGNORED
        positions, real = _left_aligned(supervised)
        # A token is predicted from the place before it; the last column is only ever a target.
        hidden = self._suffix_states(
            assembled, assembled.attention_mask.shape[1] - 1, read=(positions - 1).clamp(min=0)
        )
        wanted = targets.gather(1, positions)[real]
        losses = functional.cross_entropy(self.backbone.logits(hidden[real]), wanted, reduction="none")
        # Sums along a row, not `index_add`, whose order of summing is left to chance on a GPU.
        return losses.new_zeros(real.shape).masked_scatter(real, losses).sum(1) / supervised.sum(1)

    def _suffix_states(
        self, assembled: ModelInputs, end: int, read: Int[Tensor, "batch read"]
    ) -> Float[Tensor, "batch read dim"]:
        """Final hidden states of the columns `read` of the suffix, which is run up to column `end`."""
        start = assembled.prefix_end
        extras = assembled.extras(start, end)
        return self.backbone.forward(
            *assembled.span(start, end),
            cache=self.prefix_cache(assembled),
            output_positions=read,
            extras=extras,
            again=self.again,
        ).hidden

    @torch.no_grad()
    def prefix_cache(self, assembled: ModelInputs) -> KVCache | None:
        """Keys and values of the prefix; None if it is empty."""
        if assembled.cached_prefix is not None:
            return assembled.cached_prefix.cache
        start, end = assembled.common, assembled.prefix_end
        shared = self.shared_prefix_cache(assembled)
        if start == end:
            return shared
        extras = assembled.extras(start, end)
        return self.backbone.forward(
            *assembled.span(start, end),
            cache=shared,
            output_positions=_nothing(assembled.attention_mask),
            extras=extras,
        ).cache

    def cached_prefix(self, assembled: ModelInputs) -> tuple[KVCache | None, int]:
        """What need not be computed for every row: the kept prefix, or the text all rows share; and where it ends."""
        if assembled.cached_prefix is not None:
            return assembled.cached_prefix.cache, assembled.prefix_end
        return self.shared_prefix_cache(assembled), assembled.common

    @torch.no_grad()
    def shared_prefix_cache(self, assembled: ModelInputs) -> KVCache | None:
        """Keys and values of the leading columns that all rows share, from one row; None if there are none."""
        end = assembled.common
        if not end:
            return None
        cut = (
            assembled.inputs_embeds[:1, :end],
            assembled.position_ids[:, :1, :end],
            assembled.attention_mask[:1, :end],
        )
        return self.backbone.forward(*cut, output_positions=_nothing(assembled.attention_mask[:1])).cache.expand(
            len(assembled.attention_mask)
        )


def _nothing(mask: Bool[Tensor, "batch sequence"]) -> Int[Tensor, "batch 0"]:
    """No columns to be read."""
    return torch.zeros(len(mask), 0, dtype=torch.long, device=mask.device)


def _left_aligned(
    chosen: Bool[Tensor, "batch sequence"],
) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """The chosen columns of each row, as many places as the row with the most has, and which places are real."""
    counts = chosen.sum(1, keepdim=True)
    most = int(counts.max())
    positions = torch.argsort(chosen.int(), dim=1, descending=True, stable=True)[:, :most]
    return positions, torch.arange(most, device=chosen.device) < counts


def init_soft_prompt(
    init: PromptInit, length: int, backbone: Backbone, generator: torch.Generator | None = None
) -> SoftPrompt:
    """An untrained soft prompt for a backbone.

    Args:
        init: normal noise with the spread of the backbone's embedding rows, rows of random words, rows of a text, or
            the first rows that no token has, where the authors' code begins.
        length: number of vectors.
        backbone: gives width and embedding rows.
        generator: source of randomness; the same seed gives the same vectors.

    Raises:
        UsageError: the text has no tokens, or the backbone has fewer unused rows than vectors are wanted.
    """
    if init.kind == "unused_rows":
        rows = backbone.embedding_rows()[backbone.known_tokens :]
        vectors = unused_start(rows, length) * backbone.embedding_scale
    elif init.kind == "vocabulary":
        vectors = vocabulary_init(backbone.embedding_rows(), length, generator) * backbone.embedding_scale
    elif init.kind == "text":
        ids = torch.tensor(backbone.tokenize(init.text or ""), dtype=torch.long, device=backbone.device)
        vectors = text_init(backbone.embed(ids), length)
    else:
        vectors = random_init(length, backbone.dim, backbone.embedding_std(), generator)
    return SoftPrompt(length, backbone.dim, vectors)
