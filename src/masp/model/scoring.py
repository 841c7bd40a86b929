"""Reading answers: the probability of every label, or greedy text (paper, Algorithm 1)."""

from collections import Counter
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from masp.backbones.base import Backbone
from masp.core.errors import UsageError
from masp.core.prompts import Questions
from masp.core.types import DecoderOutput, ImageInput, ModelInputs, VisualTokens
from masp.model.masp_model import ActiveParts, MaspModel

LOGITS = 2**25
"""Logits that there are at a time while labels are scored: 128 MiB. A thousand labels have some thousand columns, each
with a logit for every word of the vocabulary."""

LONGEST = 32
"""Tokens of an aspect's answer as people read it. A list of objects may need more, and is then marked as cut."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        text: without what ends it, and without special tokens.
        cut: it did not end by itself.
    """

    text: str
    cut: bool


@torch.no_grad()
def score(
    model: MaspModel, visual: ImageInput, question: str, labels: Sequence[str], use: ActiveParts | None = None
) -> Float[Tensor, "batch labels"]:
    """Log-probabilities of the labels for every image, normalised over the label set; fp32.

    A label's own log-probability is the sum over its tokens and the end-of-turn token, so that a label that begins like
    another one has no advantage.

    Raises:
        UsageError: no labels, or one twice.
    """
    return log_probabilities(model, visual, question, labels, use).log_softmax(-1)


@torch.no_grad()
def log_probabilities(
    model: MaspModel, visual: ImageInput, question: str, labels: Sequence[str], use: ActiveParts | None = None
) -> Float[Tensor, "batch labels"]:
    """As `score`, but each label's own log-probability, so that a long list may be asked for in parts.

    Raises:
        UsageError: no labels, or one twice.
    """
    return score_rows(model, model.build_inputs(visual, [question] * len(visual), use=use), labels)


@dataclass(frozen=True)
class LabelQuestion:
    """A question about images, the labels there are to choose from, and the model that answers."""

    model: MaspModel
    question: str
    labels: Sequence[str]
    use: ActiveParts | None = None


@torch.no_grad()
def score_tasks(visual: VisualTokens, asked: Sequence[LabelQuestion]) -> list[Float[Tensor, "batch labels"]]:
    """As `score` for several questions over one backbone, each perhaps with a soft prompt of its own.

    Where several follow the same prefix (`paper` layout, visual tokens that depend on no question), it is computed once
    and each of them costs only what follows it. The others have a pass of their own.

    Raises:
        UsageError: no questions, no labels, or one twice.
    """
    if not asked:
        raise UsageError("there are no tasks", "at least one question with its labels")
    keys = [one.model.prefix_key(visual, one.question, one.use) for one in asked]
    shared = {key for key, count in Counter(keys).items() if count > 1 and key is not None}
    cached: dict[Hashable, ImageInput] = {}
    result: list[Tensor] = []
    for key, one in zip(keys, asked, strict=True):
        if key in shared and key not in cached:
            cached[key] = one.model.prefix(visual, [one.question] * len(visual), one.use)
        result.append(score(one.model, cached.get(key, visual), one.question, one.labels, one.use))
    return result


@torch.no_grad()
def aspect_log_probabilities(
    model: MaspModel, visual: VisualTokens, aspect: str, question: str, labels: Sequence[str]
) -> Float[Tensor, "batch labels"]:
    """As `log_probabilities`, but the model sees the tokens of one aspect instead of the image (as in stage 1)."""
    return score_rows(model, _about_aspect(model, visual, aspect, question), labels)


@torch.no_grad()
def generate_aspect_ids(
    model: MaspModel, visual: VisualTokens, aspect: str, question: str, max_new_tokens: int = 16
) -> list[list[int]]:
    """As `generate_ids`, from the tokens of one aspect instead of the image."""
    return _greedy(model, _about_aspect(model, visual, aspect, question), max_new_tokens)


def longest_answer(backbone: Backbone, labels: Sequence[str]) -> int:
    """Tokens that a generated answer may have: those of the longest label, and enough to show a wrong one."""
    return max(12, *(len(backbone.answer_ids(label, end=True)) for label in labels)) + 4


def answer_of(backbone: Backbone, ids: Sequence[int]) -> Answer:
    """What generated token ids say."""
    end = next((index for index, word in enumerate(ids) if word in backbone.stop_tokens), None)
    return Answer(backbone.decode(ids[:end]), end is None)


@torch.no_grad()
def generate(
    model: MaspModel, visual: ImageInput, question: str, use: ActiveParts | None = None, max_new_tokens: int = 16
) -> list[str]:
    """The greedy answer for every image, up to where it stops, without special tokens."""
    return [answer_of(model.backbone, ids).text for ids in generate_ids(model, visual, question, use, max_new_tokens)]


@torch.no_grad()
def generate_ids(
    model: MaspModel, visual: ImageInput, question: str, use: ActiveParts | None = None, max_new_tokens: int = 16
) -> list[list[int]]:
    """As `generate`, but token ids; the last of them is the stop token, where one was reached."""
    return _greedy(model, model.build_inputs(visual, [question] * len(visual), use=use), max_new_tokens)


@torch.no_grad()
def aspect_answers(
    model: MaspModel,
    visual: VisualTokens,
    questions: Questions,
    max_new_tokens: int = LONGEST,
    wanted: Sequence[Container[str]] | None = None,
) -> list[dict[str, Answer]]:
    """What each aspect module has read from each image, in words.

    This is the greedy answer to the aspect's first question from the aspect's tokens alone, as in stage 1. All
    questions about all images are one batch.

    Args:
        model: with aspect modules.
        visual: the images.
        questions: texts to ask.
        max_new_tokens: of an answer.
        wanted: the aspects to ask about each image; None: all of the model's about every one.
    """
    texts = [questions.aspect(name)[0] for name in model.aspect_module().aspects]
    read = model.aspect_tokens(visual, questions=texts)
    asked = [
        (image, aspect)
        for image in range(len(visual))
        for aspect, name in enumerate(read.aspects)
        if wanted is None or name in wanted[image]
    ]
    result: list[dict[str, Answer]] = [{} for _ in range(len(visual))]
    if not asked:
        return result
    images, aspects = (list(indices) for indices in zip(*asked, strict=True))
    rows = read.tokens[images, aspects][:, None]  # (pairs, 1, n, d)
    assembled = model.sequence_builder([texts[aspect] for aspect in aspects], aspects=rows)
    for (image, aspect), ids in zip(asked, _greedy(model, assembled, max_new_tokens), strict=True):
        result[image][read.aspects[aspect]] = answer_of(model.backbone, ids)
    return result


@torch.no_grad()
def describe_aspects(
    model: MaspModel,
    visual: VisualTokens,
    questions: Questions,
    max_new_tokens: int = 16,
    wanted: Sequence[Container[str]] | None = None,
) -> list[dict[str, str]]:
    """The texts of `aspect_answers`, as far as they were generated."""
    answers = aspect_answers(model, visual, questions, max_new_tokens, wanted)
    return [{name: answer.text for name, answer in one.items()} for one in answers]


def label_loss(
    model: MaspModel,
    visual: ImageInput,
    questions: Sequence[str],
    answers: Sequence[str],
    labels: Sequence[str],
    use: ActiveParts | None = None,
) -> Float[Tensor, " batch"]:
    """Stage 2 with `prompt.loss=labels`: cross-entropy over the probabilities that `score` gives the labels.

    Scores of labels are sums over their tokens, so the token that tells labels apart has its full weight, where the
    mean over an answer gives it one of k for k tokens; words that are no label have no part. This is the loss L_LN of
    T-Few (Liu et al., 2022) without its division by length. The prefix is computed without a graph, as in
    `MaspModel.loss`; the logits of all labels' tokens are kept for the backward pass.

    Args:
        model: with the soft prompt to train.
        visual: the images, or their cached prefixes.
        questions: one per image.
        answers: the right label of each image.
        labels: all labels there are to choose from.
        use: what stands in the sequence.

    Raises:
        UsageError: no labels, or one twice.
        ValueError: an answer is not among the labels.
    """
    scores = score_rows(model, model.build_inputs(visual, questions, use=use), labels)
    targets = torch.tensor([labels.index(answer) for answer in answers], device=scores.device)
    return functional.cross_entropy(scores, targets, reduction="none")


def score_rows(model: MaspModel, assembled: ModelInputs, labels: Sequence[str]) -> Float[Tensor, "batch labels"]:
    """As `log_probabilities`, for rows that were assembled already, each perhaps with a question of its own.

    One pass over every prompt with all labels behind it, each label a branch that sees the prompt and itself. Where
    gradients are wanted, all that stands before the soft prompt is computed without a graph.

    Raises:
        UsageError: no labels, or one twice.
    """
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"the labels are {', '.join(labels) or 'empty'}", "at least one label, each once")
    backbone, device = model.backbone, assembled.attention_mask.device
    answers = [backbone.answer_ids(label, end=True) for label in labels]
    fed = [answer[:-1] for answer in answers]  # the end of turn is predicted, never fed
    branch = torch.tensor([b for b, ids in enumerate(fed, 1) for _ in ids], dtype=torch.long, device=device)
    offset = torch.tensor([o for ids in fed for o, _ in enumerate(ids, 1)], dtype=torch.long, device=device)
    batch, prompt = assembled.attention_mask.shape
    row, last = torch.arange(batch, device=device), last_real(assembled)
    words = torch.tensor([i for ids in fed for i in ids], dtype=torch.long, device=device)
    tails = backbone.embed(words).expand(batch, -1, -1)
    positions = assembled.position_ids[:, row, last, None] + offset  # (axes, b, branch columns)
    if torch.is_grad_enabled():
        known, start = model.prefix_cache(assembled), assembled.prefix_end
    else:
        known, start = model.cached_prefix(assembled)
    branch_columns = torch.arange(prompt - start, prompt - start + len(branch), device=device).expand(batch, -1)
    run = backbone.forward(
        torch.cat([assembled.inputs_embeds[:, start:], tails], dim=1),
        torch.cat([assembled.position_ids[:, :, start:], positions], dim=2),
        torch.cat([assembled.attention_mask, assembled.attention_mask.new_ones(batch, len(branch))], dim=1),
        cache=known,
        branch_ids=torch.cat([branch.new_zeros(prompt), branch]),
        output_positions=torch.cat([last[:, None] - start, branch_columns], dim=1),
        extras=assembled.extras(start).followed_by(len(branch)),
        again=model.again if torch.is_grad_enabled() else None,
    )
    begins = accumulate(map(len, fed[:-1]), initial=1)  # column 0 is the end of the prompt
    columns = [
        column for begin, ids in zip(begins, fed, strict=True) for column in (0, *range(begin, begin + len(ids)))
    ]
    chosen = _log_p(backbone, run.hidden, columns, [word for answer in answers for word in answer])
    return torch.stack([own.sum(1) for own in chosen.split([len(answer) for answer in answers], dim=1)], dim=1)


@torch.no_grad()
def generate_rows(model: MaspModel, rows: ModelInputs, max_new_tokens: int = 16) -> list[str]:
    """As `generate`, for rows that were assembled already."""
    return [answer_of(model.backbone, ids).text for ids in _greedy(model, rows, max_new_tokens)]


@torch.no_grad()
def first_word(model: MaspModel, rows: ModelInputs) -> Float[Tensor, "batch vocabulary"]:
    """Log-probabilities of the first token of each row's answer, over the whole vocabulary; fp32."""
    return model.backbone.logits(_opened(model, rows).hidden[:, 0]).log_softmax(-1)


def _about_aspect(model: MaspModel, visual: VisualTokens, aspect: str, question: str) -> ModelInputs:
    """Rows that hold the tokens of one aspect and a question, open for the answer."""
    tokens = model.aspect_tokens(visual, [aspect], [question]).tokens
    return model.sequence_builder([question] * len(visual), aspects=tokens)


def last_real(assembled: ModelInputs) -> Int[Tensor, " batch"]:
    """The last real column of every row."""
    columns = torch.arange(assembled.attention_mask.shape[1], device=assembled.attention_mask.device)
    return (columns * assembled.attention_mask).amax(1)


def _opened(model: MaspModel, assembled: ModelInputs) -> DecoderOutput:
    """A pass over every prompt, or what of it is not known yet, that reads its last real column."""
    known, start = model.cached_prefix(assembled)
    last = last_real(assembled)[:, None] - start
    extras = assembled.extras(start)
    return model.backbone.forward(*assembled.span(start), cache=known, output_positions=last, extras=extras)


def _log_p(
    backbone: Backbone, hidden: Float[Tensor, "batch read dim"], columns: Sequence[int], words: Sequence[int]
) -> Float[Tensor, "batch words"]:
    """Log-probability of each word after its column of `hidden`; no more than LOGITS logits are there at a time."""
    batch, read = hidden.shape[:2]
    column, word = (torch.tensor(one, dtype=torch.long, device=hidden.device) for one in (columns, words))
    result = torch.empty(batch, len(words), device=hidden.device)
    step = max(1, LOGITS // (batch * len(backbone.embedding_rows())))
    for start in range(0, read, step):
        inside = ((column >= start) & (column < start + step)).nonzero()[:, 0]
        logits, own = backbone.logits(hidden[:, start : start + step]), column[inside] - start
        result[:, inside] = logits[:, own, word[inside]] - logits.logsumexp(-1)[:, own]
    return result


def _greedy(model: MaspModel, assembled: ModelInputs, limit: int) -> list[list[int]]:
    """The likeliest token, again and again, until one of the backbone's stop tokens; it is the last one."""
    backbone = model.backbone
    batch = len(assembled.attention_mask)
    row, last = torch.arange(batch, device=assembled.attention_mask.device), last_real(assembled)
    mask, position = assembled.attention_mask, assembled.position_ids[:, row, last, None]
    run = _opened(model, assembled)
    done, stops = torch.zeros_like(mask[:, 0]), torch.tensor(backbone.stop_tokens, device=mask.device)
    embed = model.generated_embedding(assembled)
    words: list[Int[Tensor, " batch"]] = []
    for step in range(1, limit + 1):
        word = backbone.logits(run.hidden[:, 0]).argmax(-1).masked_fill(done, backbone.end_of_turn)
        words.append(word)
        done = done | torch.isin(word, stops)
        if step == limit or bool(done.all()):
            break
        position = position + 1
        mask = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        run = backbone.forward(embed(word)[:, None], position, mask, run.cache)
    rows: list[list[int]] = torch.stack(words, dim=1).tolist() if words else [[]] * batch
    return [_until(ids, backbone.stop_tokens) for ids in rows]


def _until(ids: list[int], stops: Sequence[int]) -> list[int]:
    """Ids up to the first stop token and with it."""
    end = next((end_index for end_index, word in enumerate(ids, start=1) if word in stops), None)
    return ids[:end]
