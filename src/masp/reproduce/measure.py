"""Measuring a system on images whose visual tokens are there already, and what a data set alone tells."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from masp.backbones.base import Backbone
from masp.baselines.base import Images, System
from masp.core.errors import DataError
from masp.core.flops import images_at_once
from masp.core.runtime import Bar
from masp.core.types import VisualTokens
from masp.data.records import Dataset, Record
from masp.evaluation import metrics
from masp.evaluation.compute_metrics import Calibration, ResultContext, measured, votes_of
from masp.evaluation.explanation_metrics import ceiling
from masp.evaluation.predictions import LabelledPrediction
from masp.evaluation.result import Evaluation, SkippedImage
from masp.model.attention import prompt_attention
from masp.model.explain import normalised
from masp.reproduce.ablations import Variant
from masp.training.signals import StopRequest
from masp.training.trainer import groups_of

EXAMPLES = 3  # images of Figure 4


@dataclass(frozen=True)
class SplitImages:
    """Labelled images of one split, and where their visual tokens are.

    Attributes:
        dataset: what they belong to.
        records: the readable, labelled ones.
        numbers: the number of each in `images`.
        images: visual tokens by number.
        left_out: those that cannot be read.
        unlabelled: how many have no label.
    """

    dataset: Dataset
    records: tuple[Record, ...]
    numbers: tuple[int, ...]
    images: Images
    left_out: tuple[SkippedImage, ...] = ()
    unlabelled: int = 0


def answers(system: System, pictures: SplitImages, stop: StopRequest, title: str) -> list[LabelledPrediction]:
    """What a system says about every image, in order.

    Raises:
        Interrupted: a signal arrived.
    """
    found: list[LabelledPrediction] = []
    with Bar(title, len(pictures.records)) as bar:
        for places, visual in _batches(pictures, system.backbone, stop):
            for record, one in zip([pictures.records[place] for place in places], system.predict(visual), strict=True):
                place = pictures.dataset.place(record.path)
                what = (one.predicted, one.log_probabilities, one.answer, one.exact)
                found.append(LabelledPrediction(place, record.label or "", *what))
            bar.show(len(found))
    return found


def evaluation(
    what: tuple[str, SplitImages, tuple[str, ...], Mapping[str, Any]],
    found: Sequence[LabelledPrediction],
    held: Sequence[LabelledPrediction],
) -> Evaluation:
    """Every figure of a system's answers on the test split.

    Args:
        what: name of the system, images, labels, and what the figures depended on.
        found: the answers.
        held: answers on the validation split, which a temperature is fitted on; empty: none is.

    Raises:
        DataError: there are no answers.
    """
    name, pictures, labels, provenance = what
    dataset = pictures.dataset
    if not found:
        raise DataError("no image of the test split has a label and can be read", "some", "Check the data set.")
    mode = "generate" if all(one.answer is not None for one in found) else "score"
    about = ResultContext(name, dataset.name, "test", mode, labels, provenance, pictures.left_out, pictures.unlabelled)
    scored = any(one.log_probabilities is not None for one in held)
    calibration = Calibration("val", tuple(held)) if scored else None
    return measured(about, found, votes_of(dataset, "test"), calibration)


def figures(found: Evaluation) -> dict[str, Any]:
    """The figures that tables are made of, ready for JSON; all others are in the result itself."""
    content: dict[str, Any] = {
        "images": found.used,
        "accuracy": asdict(found.accuracy),
        "macro_f1": asdict(found.macro_f1),
        "unparsed": found.unparsed,
    }
    if found.exact is not None:
        content["exact"] = asdict(found.exact)
    chances = found.chances
    if chances is not None:
        content["negative_log_likelihood"] = asdict(chances.negative_log_likelihood)
        content["calibration_error"] = asdict(chances.calibration_error)
        if chances.calibrated is not None:
            content["temperature"] = chances.calibrated.temperature
            content["calibration_error_scaled"] = asdict(chances.calibrated.calibration_error)
    return content


def facts(pictures: SplitImages) -> dict[str, Any]:
    """What accuracies on a data set have to be read against; ready for JSON."""
    dataset = pictures.dataset
    truth = [record.label or "" for record in pictures.records]
    if not truth:
        raise DataError(f"no test image of {dataset.name} has a label and can be read", "some", "Check the data set.")
    content: dict[str, Any] = {
        "labels": list(dataset.labels),
        "layout": dataset.layout,
        "split_by": dataset.split_by,
        "splits": {name: len(records) for name, records in dataset.splits.items()},
        "images": len(truth),
        "unreadable": len(pictures.left_out),
        "classes": dict(sorted(Counter(truth).items())),
        "guess": 1 / len(dataset.labels),
        "majority": asdict(metrics.majority_accuracy(truth)),
    }
    if all("emoji" in record.extra for record in pictures.records):
        content["ceiling"] = asdict(ceiling(pictures.records))
    return content


def attention(variant: Variant, pictures: SplitImages, stop: StopRequest) -> dict[str, Any]:
    """Attention from the soft prompt to each aspect (Figure 4): mean over the images, and some images.

    `raw` are weights of the final layer, `normalised` the same as shares of the aspects; `spread` is the standard
    deviation over the images.
    """
    rows: list[torch.Tensor] = []
    for _, visual in _batches(pictures, variant.model.backbone, stop):
        rows.append(prompt_attention(variant.model, visual, variant.question, variant.use).cpu().double())
    raw = torch.cat(rows)
    shares, names = normalised(raw), variant.use.aspects
    chosen = examples(pictures.records)
    said = answers(
        variant, SplitImages(pictures.dataset, *_picked(pictures, chosen), pictures.images), stop, "examples"
    )
    return {
        "images": len(raw),
        "raw": _by_name(names, raw.mean(0)),
        "normalised": _by_name(names, shares.mean(0)),
        "spread": _by_name(names, shares.std(0, correction=0)),
        "examples": [
            {
                "image": one.image,
                "truth": one.truth,
                "predicted": one.predicted,
                "raw": _by_name(names, raw[place]),
                "normalised": _by_name(names, shares[place]),
            }
            for place, one in zip(chosen, said, strict=True)
        ],
    }


def _batches(
    pictures: SplitImages, backbone: Backbone, stop: StopRequest
) -> Iterator[tuple[Sequence[int], VisualTokens]]:
    """Places of the images with their visual tokens, batch by batch in order, read ahead."""
    groups = stop.between(groups_of(range(len(pictures.records)), images_at_once(backbone.dim)))
    for group, visual in pictures.images.stream(groups, lambda group: [pictures.numbers[place] for place in group]):
        assert visual is not None
        yield group, visual


def examples(records: Sequence[Record]) -> list[int]:
    """The first image of each of some labels, so that the same data gives the same examples."""
    first: dict[str | None, int] = {}
    for place, record in enumerate(records):
        first.setdefault(record.label, place)
    return sorted(first.values())[:EXAMPLES]


def _picked(pictures: SplitImages, places: Sequence[int]) -> tuple[tuple[Record, ...], tuple[int, ...]]:
    return tuple(pictures.records[place] for place in places), tuple(pictures.numbers[place] for place in places)


def _by_name(names: Sequence[str], row: torch.Tensor) -> Mapping[str, float]:
    return dict(zip(names, row.tolist(), strict=True))
