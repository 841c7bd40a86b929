"""SEPM (ICML 2025): first good or bad feeling, then which, without the image tokens that the first look passed over."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from masp.backbones.base import Backbone
from masp.baselines.base import Reading, SystemPrediction, TrainingData, plain, question_by_letter
from masp.baselines.prompted import lettered, letters_of, named_by_letter
from masp.core.config import MethodConfig
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.labels import mapping, validate_labels
from masp.core.prompts import Questions
from masp.core.setting_types import Number, Share
from masp.core.types import ImageLayout, ModelInputs, VisualTokens
from masp.model.masp_model import MaspModel
from masp.model.scoring import first_word, generate_rows, longest_answer, score_rows


def cue_span(backbone: Backbone, question: str, cue: str, image: ImageLayout) -> tuple[int, int]:
    """Where the tokens of a cue stand in the chat turn of a question that ends with it: first, and one past the last.

    They are what the turn has more than the turn without the cue, so no family need be known here; a token in which
    the cue and its surroundings have merged counts as the cue's.
    """
    assert question.endswith(cue)
    long = backbone.template(question, image).ids
    short = backbone.template(question.removesuffix(cue).rstrip(), image).ids
    first = _same(long, short)
    behind = _same(long[first:][::-1], short[first:][::-1])
    assert first < len(long) - behind, "the cue has tokens of its own"
    return first, len(long) - behind


def _same(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading numbers are equal."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def least_attended(
    attention: Float[Tensor, "batch sequence"], visual: Bool[Tensor, "batch sequence"], share: float
) -> list[Int[Tensor, " _"]]:
    """For each image the numbers of its visual tokens with least attention: `share` of them, rounded down."""
    result = []
    for weights, columns in zip(attention, visual, strict=True):
        own = weights[columns]
        count = math.floor(share * len(own) + 1e-9)  # 0.29 · 100 is 28.999…
        result.append(own.argsort(stable=True)[:count])
    return result


def without(rows: ModelInputs, dropped: Sequence[Int[Tensor, " _"]]) -> ModelInputs:
    """The rows without some of their visual tokens; all that is left keeps its position.

    The columns are taken out, not only masked: a family whose visual tokens see each other would see them still, and a
    sliding window would count them. Padding on the left takes their room.
    """
    gone = torch.zeros_like(rows.attention_mask)
    for index, tokens in enumerate(dropped):
        gone[index, rows.visual_columns[index].nonzero().flatten()[tokens]] = True
    end = rows.prefix_end
    assert not gone[:, end:].any(), "visual tokens stand in the prefix"
    staying = rows.attention_mask & ~gone
    order = staying[:, :end].int().argsort(dim=1, stable=True)
    rest = torch.arange(end, rows.attention_mask.shape[1], device=order.device).expand(len(order), -1)
    rank = torch.cat([order, rest], dim=1)
    row = torch.arange(len(rank), device=rank.device)[:, None]
    stays = staying[row, rank]

    def moved(values: Tensor, padding: int) -> Tensor:
        picked = values[row, rank]
        return picked.masked_fill(~stays.reshape(*stays.shape, *[1] * (picked.ndim - 2)), padding)

    positions = rows.position_ids[:, row, rank].masked_fill(~stays, 0)
    return replace(
        rows,
        inputs_embeds=moved(rows.inputs_embeds, 0),
        position_ids=positions,
        attention_mask=stays,
        labels=rows.labels[row, rank],
        aspect_columns=moved(rows.aspect_columns, 0),
        visual_columns=moved(rows.visual_columns, 0),
        prompt_columns=moved(rows.prompt_columns, 0),
        aspect_of=moved(rows.aspect_of, -1),
        common=0,
        deep=None if rows.deep is None else moved(rows.deep, 0),
        prefix_hashes=(),
    )


NAME = "sepm"
POLARITIES = ("positive", "negative")
AMBIGUOUS = "ambiguous"
CUE = "Please focus on emotion."
COARSE = (
    "Is the emotion that this image evokes positive or negative?\n"
    "A. positive\nB. negative\nAnswer with the option's letter."
)
UNSURE = "This image may evoke a positive or a negative emotion. "


@dataclass(frozen=True)
class SepmSettings:
    """SEPM's numbers.

    Attributes:
        ambiguous_below: variance of p(A) and p(B) below which all labels stay open (α).
        dropped: share of the image tokens that the second pass goes without (β).
        reading: the most probable letter, or the greedy answer, which must name one.
        positive: labels of the first route; needed where the labels belong to no known taxonomy.
        negative: labels of the second route. A label that stands in neither list is in both routes.
    """

    ambiguous_below: Annotated[Number, Field(ge=0, le=0.5)] = 0.1
    dropped: Annotated[Share, Field(lt=1)] = 0.2
    reading: Reading = "score"
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()


class Sepm:
    """Two questions, the second one shaped by the answer to the first; nothing is trained.

    Args:
        backbone: is asked.
        labels: what it chooses from.
        settings: SEPM's numbers.
        questions: whose emotion question is the fine one; None: the package's own. The coarse one is SEPM's.

    Raises:
        UsageError: nobody knows which labels are positive and which negative, or one of the two routes has none.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: tuple[str, ...],
        settings: SepmSettings | None = None,
        questions: Questions | None = None,
    ) -> None:
        self.model, self.backbone = MaspModel(backbone, MethodConfig()), backbone
        self.labels = validate_labels(labels)
        self.settings = settings or SepmSettings()
        self.routes = routes(self.labels, self.settings.positive, self.settings.negative)
        self.fine = question_by_letter(questions)

    def fit(self, examples: TrainingData) -> None:
        """Nothing: nothing is trained."""

    @torch.no_grad()
    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """Coarse question, choice of the route, fine question without the tokens that got least attention."""
        question = f"{COARSE} {CUE}"
        rows = self.model.build_inputs(visual, [question] * len(visual))
        chances = self._chances(rows)
        least = least_attended(self._attention(rows, question), rows.visual_columns, self.settings.dropped)
        chosen = [route(chance, self.settings.ambiguous_below) for chance in chances.tolist()]
        predictions: dict[int, SystemPrediction] = {}
        for name in dict.fromkeys(chosen):
            images = [number for number, taken in enumerate(chosen) if taken == name]
            fine = self._fine(visual.select(images), [least[image] for image in images], name, chances[images])
            predictions |= dict(zip(images, fine, strict=True))
        return [predictions[number] for number in range(len(visual))]

    def config(self) -> Mapping[str, Any]:
        """Its settings, the questions, and the labels of each route."""
        texts = {"cue": CUE, "coarse": COARSE, "fine": self.fine, "unsure": UNSURE}
        routed = {name: list(labels) for name, labels in self.routes.items()}
        return {"system": NAME, "trained": 0, "settings": plain(self.settings), "questions": texts, "routes": routed}

    def _chances(self, rows: ModelInputs) -> Float[Tensor, "batch 2"]:
        """Probabilities of the letters A and B as the first token, among all tokens."""
        first = [self.backbone.answer_ids(letter, end=False)[0] for letter in letters_of(POLARITIES)]
        return first_word(self.model, rows).exp()[:, first]

    def _attention(self, rows: ModelInputs, question: str) -> Float[Tensor, "batch sequence"]:
        """Last layer's attention from the cue's tokens to every column, mean over heads and the cue's tokens."""
        cue = torch.zeros_like(rows.attention_mask)
        for index, image in enumerate(rows.images):
            start = int(rows.attention_mask[index].int().argmax())
            first, last = cue_span(self.backbone, question, CUE, image)
            cue[index, start + first : start + last] = True
        weights = self.backbone.last_attention(rows, rows.prefix_end).mean(1)
        asking = cue[:, rows.prefix_end :]
        return (weights * asking[..., None]).sum(1) / asking.sum(1, keepdim=True)

    def _fine(
        self, visual: VisualTokens, least: Sequence[Int[Tensor, " _"]], name: str, chances: Float[Tensor, "batch 2"]
    ) -> list[SystemPrediction]:
        """The fine question of one route; a route with one label needs none."""
        options = self.routes[name]
        single = len(options) == 1
        if single and self.settings.reading == "generate":
            letter = letters_of(POLARITIES)[POLARITIES.index(name)]
            return [SystemPrediction(options[0], answer=letter, exact=True)] * len(visual)
        log_p = torch.zeros(len(visual), 1, device=chances.device)
        if not single:
            question = (UNSURE if name == AMBIGUOUS else "") + self.fine.replace("{}", lettered(options))
            rows = without(self.model.build_inputs(visual, [question] * len(visual)), least)
            if self.settings.reading == "generate":
                texts = generate_rows(self.model, rows, longest_answer(self.backbone, self.labels))
                return [named_by_letter(text, options) for text in texts]
            log_p = score_rows(self.model, rows, letters_of(options))
        best = [options[number] for number in log_p.argmax(1).tolist()]
        tables = spread(log_p, chances, [self.labels.index(option) for option in options], len(self.labels))
        named = [dict(zip(self.labels, row, strict=True)) for row in tables.tolist()]
        return [SystemPrediction(label, table) for label, table in zip(best, named, strict=True)]


def route(chances: Sequence[float], ambiguous_below: float) -> str:
    """The route of an image by p(A) and p(B): ambiguous where their unbiased variance, (p(A) - p(B))² / 2, is small."""
    good, bad = chances
    if (good - bad) ** 2 / 2 < ambiguous_below:
        return AMBIGUOUS
    return POLARITIES[0] if good > bad else POLARITIES[1]


def routes(
    labels: tuple[str, ...], positive: Sequence[str] = (), negative: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The labels of each route: those given, or else by taxonomy; a label that is neither is in both.

    Raises:
        UsageError: a given label that is none, no taxonomy and nothing given, or a route without labels.
    """
    todo = "Name them: positive=[…] and negative=[…]."
    for label in (*positive, *negative):
        if label not in labels:
            raise UsageError(f"'{label}' is none of the labels", "", did_you_mean(label, labels))
    sides = dict.fromkeys(positive, POLARITIES[0]) | dict.fromkeys(negative, POLARITIES[1])
    if not sides:
        try:
            sides = mapping(labels, "polarity")
        except DataError:
            got = f"nobody knows which of {', '.join(labels)} are positive"
            raise UsageError(got, "labels of a known taxonomy", todo) from None
    result = {side: tuple(label for label in labels if sides.get(label, side) == side) for side in POLARITIES}
    for side, chosen in result.items():
        if not chosen:
            raise UsageError(f"none of the labels {', '.join(labels)} is {side}", "at least one", todo)
    return {**result, AMBIGUOUS: labels}


def spread(
    log_p: Float[Tensor, "batch options"], chances: Float[Tensor, "batch 2"], indices: Sequence[int], labels: int
) -> Float[Tensor, "batch labels"]:
    """Log-probabilities of all labels from those of a route's options; SEPM itself gives none.

    The options share the route's probability, p(A) or p(B) over their sum. The other labels share the rest alike, none
    of them more than the best option, so that the most probable label is the one that is named.
    """
    rest = labels - len(indices)
    if not rest:
        own = torch.empty(len(log_p), labels, dtype=torch.double)
        own[:, list(indices)] = log_p.cpu().double()
        return own.log_softmax(1)
    sure = (chances.amax(1) / chances.sum(1)).cpu().double().clamp(max=1 - 1e-6)[:, None]
    options = log_p.cpu().double() + sure.log()
    others = torch.minimum((1 - sure).log() - math.log(rest), options.amax(1, keepdim=True))
    table = others.expand(-1, labels).clone()
    table[:, list(indices)] = options
    return table.log_softmax(1)
