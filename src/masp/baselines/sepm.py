"""SEPM (ICML 2025): first good or bad feeling, then which, without the image tokens that the first look passed over."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from masp.backbones.base import Backbone
from masp.baselines.asking import question_by_letter
from masp.baselines.base import Lessons, Reading, Said
from masp.baselines.multiple_choice import lettered, letters_of, named_by_letter
from masp.baselines.plain import plain
from masp.baselines.token_pruning import cue_span, least_attended, without
from masp.core.config import MethodConfig
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.label_mapping import mapping
from masp.core.labels import validate_labels
from masp.core.prompts import Questions
from masp.core.setting_types import Number, Share
from masp.core.types import Assembled, VisualTokens
from masp.model.masp_model import MaspModel
from masp.model.scoring import first_word, generate_rows, longest_answer, score_rows

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
        self.model = MaspModel(backbone, MethodConfig())
        self.labels = validate_labels(labels)
        self.settings = settings or SepmSettings()
        self.routes = routes(self.labels, self.settings.positive, self.settings.negative)
        self.fine = question_by_letter(questions)

    @property
    def backbone(self) -> Backbone:
        """The backbone that is asked."""
        return self.model.backbone

    def learn(self, lessons: Lessons) -> None:
        """Nothing: nothing is trained."""

    @torch.no_grad()
    def answer(self, visual: VisualTokens) -> list[Said]:
        """Coarse question, choice of the route, fine question without the tokens that got least attention."""
        question = f"{COARSE} {CUE}"
        rows = self.model.assemble(visual, [question] * len(visual))
        chances = self._chances(rows)
        least = least_attended(self._attention(rows, question), rows.visual_columns, self.settings.dropped)
        chosen = [route(chance, self.settings.ambiguous_below) for chance in chances.tolist()]
        found: dict[int, Said] = {}
        for name in dict.fromkeys(chosen):
            images = [number for number, taken in enumerate(chosen) if taken == name]
            said = self._fine(visual.select(images), [least[image] for image in images], name, chances[images])
            found |= dict(zip(images, said, strict=True))
        return [found[number] for number in range(len(visual))]

    def describe(self) -> Mapping[str, Any]:
        """Its settings, the questions, and the labels of each route."""
        texts = {"cue": CUE, "coarse": COARSE, "fine": self.fine, "unsure": UNSURE}
        routed = {name: list(labels) for name, labels in self.routes.items()}
        return {"system": NAME, "trained": 0, "settings": plain(self.settings), "questions": texts, "routes": routed}

    def _chances(self, rows: Assembled) -> Float[Tensor, "batch 2"]:
        """Probabilities of the letters A and B as the first token, among all tokens."""
        first = [self.backbone.answer_ids(letter, end=False)[0] for letter in letters_of(POLARITIES)]
        return first_word(self.model, rows).exp()[:, first]

    def _attention(self, rows: Assembled, question: str) -> Float[Tensor, "batch sequence"]:
        """Last layer's attention from the cue's tokens to every column, mean over heads and the cue's tokens."""
        cue = torch.zeros_like(rows.mask)
        for number, image in enumerate(rows.images):
            start = int(rows.mask[number].int().argmax())
            first, last = cue_span(self.backbone, question, CUE, image)
            cue[number, start + first : start + last] = True
        weights = self.backbone.last_attention(rows, rows.prefix_end).mean(1)
        asking = cue[:, rows.prefix_end :]
        return (weights * asking[..., None]).sum(1) / asking.sum(1, keepdim=True)

    def _fine(
        self, visual: VisualTokens, least: Sequence[Int[Tensor, " _"]], name: str, chances: Float[Tensor, "batch 2"]
    ) -> list[Said]:
        """The fine question of one route; a route with one label needs none."""
        options = self.routes[name]
        single = len(options) == 1
        if single and self.settings.reading == "generate":
            letter = letters_of(POLARITIES)[POLARITIES.index(name)]
            return [Said(options[0], answer=letter, exact=True)] * len(visual)
        log_p = torch.zeros(len(visual), 1, device=chances.device)
        if not single:
            question = (UNSURE if name == AMBIGUOUS else "") + self.fine.replace("{}", lettered(options))
            rows = without(self.model.assemble(visual, [question] * len(visual)), least)
            if self.settings.reading == "generate":
                texts = generate_rows(self.model, rows, longest_answer(self.backbone, self.labels))
                return [named_by_letter(text, options) for text in texts]
            log_p = score_rows(self.model, rows, letters_of(options))
        best = [options[number] for number in log_p.argmax(1).tolist()]
        tables = spread(log_p, chances, [self.labels.index(option) for option in options], len(self.labels))
        named = [dict(zip(self.labels, row, strict=True)) for row in tables.tolist()]
        return [Said(label, table) for label, table in zip(best, named, strict=True)]


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
    found = {side: tuple(label for label in labels if sides.get(label, side) == side) for side in POLARITIES}
    for side, chosen in found.items():
        if not chosen:
            raise UsageError(f"none of the labels {', '.join(labels)} is {side}", "at least one", todo)
    return {**found, AMBIGUOUS: labels}


def spread(
    log_p: Float[Tensor, "batch options"], chances: Float[Tensor, "batch 2"], places: Sequence[int], labels: int
) -> Float[Tensor, "batch labels"]:
    """Log-probabilities of all labels from those of a route's options; SEPM itself gives none.

    The options share the route's probability, p(A) or p(B) over their sum. The other labels share the rest alike, none
    of them more than the best option, so that the most probable label is the one that is named.
    """
    rest = labels - len(places)
    if not rest:
        own = torch.empty(len(log_p), labels, dtype=torch.double)
        own[:, list(places)] = log_p.cpu().double()
        return own.log_softmax(1)
    sure = (chances.amax(1) / chances.sum(1)).cpu().double().clamp(max=1 - 1e-6)[:, None]
    options = log_p.cpu().double() + sure.log()
    others = torch.minimum((1 - sure).log() - math.log(rest), options.amax(1, keepdim=True))
    table = others.expand(-1, labels).clone()
    table[:, list(places)] = options
    return table.log_softmax(1)
