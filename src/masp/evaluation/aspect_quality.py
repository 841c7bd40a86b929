"""What stage 1 reads: each aspect's answer from its own tokens, beside the frozen backbone's from all visual tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from masp.core.errors import DataError
from masp.core.labels import normalise_answer
from masp.core.prompts import Questions
from masp.data.records import BadFiles, Record
from masp.evaluation import metrics
from masp.evaluation.batches import Batching, visual_batches
from masp.evaluation.metrics import Interval
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import describe_aspects, generate

LONGEST = 24
"""Tokens that an aspect's answer may have; a list of objects needs some."""


@dataclass(frozen=True)
class SetScore:
    """Answers as sets of things (a list is split at its commas), counted over all images together."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class AspectQuality:
    """How well one aspect is named, over the images where it is annotated.

    Attributes:
        aspect: its name.
        exact: share of answers that are the annotation, word for word, from the aspect's own tokens.
        things: the same answers as sets; a list in another order is right here.
        backbone_exact: as `exact`, for the frozen backbone that sees all visual tokens and no adapter.
        backbone_things: as `things`, for the frozen backbone.
    """

    aspect: str
    exact: Interval
    things: SetScore
    backbone_exact: Interval
    backbone_things: SetScore


def aspect_quality(
    model: MaspModel, records: Sequence[Record], questions: Questions, batching: Batching | None = None
) -> tuple[AspectQuality, ...]:
    """Quality of each aspect of a model on annotated images.

    Raises:
        UsageError: the model has no aspects.
        DataError: no image is annotated, or too many cannot be read.
    """
    names = model.aspect_module().aspects
    annotated = [record for record in records if any(name in record.annotations for name in names)]
    if not annotated:
        todo = "Name a data set in EmoSet's layout, or one that `masp data make` wrote."
        raise DataError("no image has annotated aspects", "annotations beside the images", todo)
    truth: dict[str, list[str]] = {name: [] for name in names}
    ours: dict[str, list[str]] = {name: [] for name in names}
    plain: dict[str, list[str]] = {name: [] for name in names}
    account = BadFiles(total=len(annotated))
    for batch, visual in visual_batches(model.backbone, annotated, batching or Batching(), account):
        read = describe_aspects(model, visual, questions, LONGEST)
        for name in names:
            known = [index for index, record in enumerate(batch) if name in record.annotations]
            if not known:
                continue
            truth[name] += [batch[index].annotations[name] for index in known]
            ours[name] += [read[index][name] for index in known]
            seen = visual.select(known)
            plain[name] += generate(model, seen, questions.aspect(name)[0], ActiveParts((), prompt=False), LONGEST)
    return tuple(_quality(name, truth[name], ours[name], plain[name]) for name in names if truth[name])


def set_score(truth: Sequence[str], answers: Sequence[str]) -> SetScore:
    """Precision, recall and F1 of answers as sets, with hits and things counted over all images (micro)."""
    hits = said = wanted = 0
    for true, answer in zip(truth, answers, strict=True):
        real, named = _things(true), _things(answer)
        hits, said, wanted = hits + sum((real & named).values()), said + named.total(), wanted + real.total()
    f1 = 2 * hits / (said + wanted) if said + wanted else 0.0
    return SetScore(hits / said if said else 0.0, hits / wanted if wanted else 0.0, f1)


def _quality(name: str, truth: Sequence[str], ours: Sequence[str], plain: Sequence[str]) -> AspectQuality:
    return AspectQuality(
        name, _exact(truth, ours), set_score(truth, ours), _exact(truth, plain), set_score(truth, plain)
    )


def _exact(truth: Sequence[str], answers: Sequence[str]) -> Interval:
    return metrics.accuracy([normalise_answer(t) for t in truth], [normalise_answer(a) for a in answers])


def _things(answer: str) -> Counter[str]:
    """The things that an answer lists, each counted once."""
    parts = (normalise_answer(part) for part in answer.split(","))
    return Counter({part for part in parts if part})
