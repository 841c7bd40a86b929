"""The mistakes that a system was surest of, with their images and what the other systems said."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from masp.core.errors import DataError, MaspError, UsageError, did_you_mean
from masp.data.readers.common import exists, inside
from masp.evaluation.result import LabelledPrediction
from masp.report import leaderboard as standings
from masp.report.html import ImageView, SampleView, embedded, sample_of, sample_view
from masp.report.load_results import Comparison, SystemResults
from masp.report.schema import grouped

if TYPE_CHECKING:
    from masp.predictor import Masp

THUMBNAIL = 320
"""Longest side of an image among the mistakes, in pixels."""
TINY = 64
"""Up to this side a thumbnail is embedded without loss."""
NO_DATA = "The image is not embedded: no data set was named (--data)."
GONE = "The data set has no such image."
UNREADABLE = "The image could not be read when this page was written."


@dataclass(frozen=True)
class ErrorPageOptions:
    """What is wanted of a page.

    Attributes:
        against: the reference: "first", "best" or a system's name.
        mistakes: how many mistakes to show.
        data: the data set's folder, for images.
        masp: says what each aspect saw in those images.
        of: name of the system whose mistakes are shown; None: the one that `masp` is, otherwise the best.
    """

    against: str = "first"
    mistakes: int = 12
    data: Path | None = None
    masp: "Masp | None" = None
    of: str | None = None


@dataclass(frozen=True)
class Mistake:
    """An image that was given a wrong label.

    Attributes:
        name: the file, as the result names it.
        truth: its label.
        said: the label it was given, or the words that name none.
        confidence: the probability of that label; None where it is not known, as `chance`.
        chance: the probability of the true label.
        others: name of each other system, what it said, and whether that is right.
        image: the image, embedded; None where it cannot be shown.
        why_missing: why not.
        anchor: where on the page the aspects' readings stand; empty where nowhere.
    """

    name: str
    truth: str
    said: str
    confidence: float | None
    chance: float | None
    others: tuple[tuple[str, str, bool], ...]
    image: ImageView | None
    why_missing: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class MistakesView:
    """The worst mistakes, what they are, what is missing, and what the aspects saw in them."""

    words: str
    notes: tuple[str, ...] = ()
    shown: tuple[Mistake, ...] = ()
    views: tuple[SampleView, ...] = ()
    views_words: str = ""


def shown(number: int, trial: Comparison, asked: ErrorPageOptions) -> MistakesView:
    """The worst mistakes of one system of a trial; `number` makes their anchors unique.

    Raises:
        UsageError: the system that was asked for is not there.
    """
    system = _chosen(trial, asked)
    if not system.answers:
        return MistakesView(f"{system.name}: no predictions lie beside this result, so its mistakes are not known.")
    wrong = worst(system, asked.mistakes)
    if not wrong:
        return MistakesView(f"{system.name} made none on these {grouped(len(system.answers))} images.")
    words = _words(system, wrong)
    if len(system.runs) > 1:
        words += " Of several seeds, the first one's."
    views = explained(asked.masp, wrong, asked.data, 1000 * number) if asked.masp and asked.data else {}
    cards = tuple(mistake(trial, system, one, asked.data, views.get(one.image)) for one in wrong)
    return MistakesView(words, _notes(asked), cards, tuple(views.values()), _views_words(system, asked, wrong, views))


def _words(system: SystemResults, wrong: Sequence[LabelledPrediction]) -> str:
    """Which mistakes of how many these are."""
    total = sum(one.predicted != one.truth for one in system.answers.values())
    sure = any(_chance(one, one.predicted) is not None for one in wrong)
    unsure = "come first (it gave no probabilities, so nobody knows what it was surest of)"
    images = f"among {grouped(len(system.answers))} images"
    which = f"{len(wrong)} that {'it was surest of' if sure else unsure}"
    return f"Of the {grouped(total)} wrong answers of {system.name} {images}, the {which}."


def _notes(asked: ErrorPageOptions) -> tuple[str, ...]:
    result = []
    if asked.data is None:
        result.append("No data set was named (--data DIR), so the images are not embedded.")
    if asked.masp is None:
        result.append("No adapter was named (--adapter DIR), so nothing is said about what each aspect saw.")
    return tuple(result)


def _views_words(
    system: SystemResults, asked: ErrorPageOptions, wrong: Sequence[LabelledPrediction], views: Mapping[str, SampleView]
) -> str:
    """Whose readings they are, and whether it is the system that made the mistakes."""
    if asked.masp is None:
        return ""
    from masp.adapters import portable

    words = f"Read by {portable(asked.masp.adapter)}"
    if _is(asked.masp, system):
        return f"{words}, which is the system that made these mistakes."
    other = sum(views[one.image].sample.label != one.predicted for one in wrong if one.image in views)
    words += f", which is not known to be {system.name}"
    return f"{words}: on {other} of these {len(views)} images it names another label. The label given here is its own."


def _chosen(trial: Comparison, asked: ErrorPageOptions) -> SystemResults:
    """The system whose mistakes are shown."""
    if asked.of is not None:
        names = [system.name for system in trial.systems]
        if asked.of not in names:
            known = f"one of {', '.join(names)}"
            raise UsageError(
                f"no system of {trial.dataset} is called '{asked.of}'", known, did_you_mean(asked.of, names)
            )
        return trial.systems[names.index(asked.of)]
    if asked.masp is not None:
        own = next((system for system in trial.systems if _is(asked.masp, system)), None)
        if own is not None:
            return own
    return standings.best(trial)


def _is(masp: "Masp", system: SystemResults) -> bool:
    """Whether the first seed of a system is this adapter, by its tensors."""
    from masp.adapters import tensors_sha256

    adapter = system.runs[0].provenance.get("adapter")
    if not isinstance(adapter, Mapping) or "tensors_sha256" not in adapter:
        return False
    concepts = masp.handle().concepts
    own = (tensors_sha256(masp.model.state_dict()), None if concepts is None else tensors_sha256(concepts.tensors))
    return (adapter["tensors_sha256"], adapter.get("concepts_sha256")) == own


def worst(system: SystemResults, number: int) -> list[LabelledPrediction]:
    """The wrong answers of the first seed, the surest first; those without probabilities in their own order, last."""
    wrong = [one for one in system.answers.values() if one.predicted != one.truth]
    return sorted(wrong, key=lambda one: -(_chance(one, one.predicted) or 0.0))[:number]


def mistake(
    trial: Comparison,
    system: SystemResults,
    wrong: LabelledPrediction,
    data: Path | None,
    view: SampleView | None = None,
) -> Mistake:
    """A wrong answer as the page shows it; `view` says what the aspects saw in it."""
    image, why = _image(data, wrong.image)
    others = [(other, other.answers.get(wrong.image)) for other in trial.systems if other is not system]
    return Mistake(
        name=wrong.image,
        truth=wrong.truth,
        said=_said(wrong),
        confidence=_chance(wrong, wrong.predicted),
        chance=_chance(wrong, wrong.truth),
        others=tuple((other.name, _said(one), one.predicted == wrong.truth) for other, one in others if one),
        image=image,
        why_missing=why,
        anchor=f"verdict-{view.index}" if view else "",
    )


def explained(masp: "Masp", wrong: Sequence[LabelledPrediction], data: Path, first: int) -> dict[str, SampleView]:
    """What each aspect saw in the images that can be read, by the image's name; `first` numbers their anchors."""
    result: dict[str, SampleView] = {}
    for number, one in enumerate(wrong, start=first):
        file = image_path(data, one.image)
        if file is None:
            continue
        try:
            prediction = masp.predict(file)
        except MaspError:
            continue
        sample = replace(sample_of(prediction, file, one.truth), name=one.image)
        result[one.image] = sample_view(number, sample, embedded(file, THUMBNAIL, TINY))
    return result


def image_path(data: Path, image: str) -> Path | None:
    """The file of an image in the data set's folder; None where there is none, or where it would lie outside."""
    root = data if data.is_dir() else data.parent
    try:
        file = inside(root, image)
    except DataError:
        return None
    if not exists(file) or not file.resolve().is_relative_to(root.resolve()):
        return None
    return file


def _image(data: Path | None, image: str) -> tuple[ImageView | None, str]:
    if data is None:
        return None, NO_DATA
    file = image_path(data, image)
    if file is None:
        return None, GONE
    view = embedded(file, THUMBNAIL, TINY)
    return (view, "") if view.uri else (None, UNREADABLE)


def _said(answer: LabelledPrediction) -> str:
    if answer.predicted is not None:
        return answer.predicted
    text = (answer.answer or "").strip()
    return f"no label (“{text if len(text) <= 60 else text[:59] + '…'}”)" if text else "no label"


def _chance(answer: LabelledPrediction, label: str | None) -> float | None:
    logs = answer.log_probabilities
    return None if logs is None or label is None or label not in logs else math.exp(logs[label])
