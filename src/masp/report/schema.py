"""What a report can show: plain frozen records, and how their numbers and causes are put into words.

Every part is optional, so that one function renders both a handful of predictions and a whole study.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from masp.core.aspects import WHOLE_IMAGE, deciding_cue
from masp.evaluation.metrics import Interval, PairedComparison


@dataclass(frozen=True)
class AblationRow:
    """One row of Table 2: its short name (`V+A+S`), what it means in words, and its accuracy."""

    name: str
    meaning: str
    accuracy: Interval
    macro_f1: float | None = None


@dataclass(frozen=True)
class Difference:
    """The gain of one row over another on the same images, for example `V+S` over `V`."""

    name: str
    paired: PairedComparison


@dataclass(frozen=True)
class Ablation:
    """Table 2: the rows, and the two lines to read them against (shares in [0, 1])."""

    rows: tuple[AblationRow, ...]
    images: int
    ceiling: float | None = None
    majority: float | None = None
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class AspectScore:
    """How well one aspect is named: from its aspect tokens alone, and by the frozen backbone from all visual tokens."""

    aspect: str
    measure: str
    aspect_tokens: float
    backbone: float | None = None


@dataclass(frozen=True)
class Confusion:
    """Counts of true labels (rows) against predicted ones; one more column than labels counts unreadable answers."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ExplanationTruth:
    """How often the explanations are right, known only where the cause of each label is.

    `cause` is the share of correct predictions whose largest effect is the true main cause; `pointing` the share of
    images, per aspect, whose heatmap peaks on the right thing. `cause_by_guess` and `pointing_by_guess` are the
    shares that one who knows nothing of the image would reach. `concept_cause` is the same for a concept bottleneck.
    """

    cause: Interval | None = None
    pointing: Mapping[str, Interval] = field(default_factory=dict)
    cause_by_guess: float | None = None
    pointing_by_guess: Mapping[str, float] = field(default_factory=dict)
    concept_cause: Interval | None = None
    concept_cause_by_guess: float | None = None

    def causes(self) -> list[tuple[str, Interval, float | None]]:
        """Each way of naming the main cause: what it is, how often it is right, and how often guessing would be."""
        rows = [("the largest effect is the true cause", self.cause, self.cause_by_guess)]
        name = "the same by the concept bottleneck" if self.cause else rows[0][0]
        rows.append((name, self.concept_cause, self.concept_cause_by_guess))
        return [(name, value, guess) for name, value, guess in rows if value is not None]


@dataclass(frozen=True)
class Curve:
    """The loss of one training run over its steps."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class AspectSight:
    """What one aspect saw in one image.

    `effect` is the fall of the label's log-probability when the aspect is left out, in nats. `attention` holds the
    weights over the image's cells, rows from the top; it is None for a backbone whose tokens form no grid. `truth` is
    the right answer, empty where the image shows nothing of the kind and None where it is unknown.
    """

    aspect: str
    answer: str
    effect: float | None = None
    attention: tuple[tuple[float, ...], ...] | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Sample:
    """One image and everything said about it.

    `image` is read when the page is written; where it cannot be read, the page says so. `expected` holds the
    true probability of every label and `cause` the true main cause, both only where the data set knows them. `warning`
    is what to know before the label is believed, `attribution` how the effects were found, `image_effect` what the
    whole image adds beside its aspects, where it has such a part.
    """

    name: str
    image: Path | Image.Image
    label: str
    probabilities: Mapping[str, float]
    sights: tuple[AspectSight, ...] = ()
    answer: str | None = None
    truth: str | None = None
    expected: Mapping[str, float] | None = None
    cause: str | None = None
    prompt_attention: Mapping[str, float] | None = None
    warning: str | None = None
    attribution: str = "leave_one_out"
    image_effect: float | None = None


@dataclass(frozen=True)
class Step:
    """One step of the work and how long it took, in seconds."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Provenance:
    """Everything the result depended on: facts as (name, value), the commands, the time of each step."""

    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """One report. `left_out` counts images that were read but are not shown; `failures` are (image, reason)."""

    title: str
    summary: str
    ablation: Ablation | None = None
    aspect_scores: tuple[AspectScore, ...] = ()
    confusion: Confusion | None = None
    explanations: ExplanationTruth | None = None
    samples: tuple[Sample, ...] = ()
    left_out: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    curves: tuple[Curve, ...] = ()
    provenance: Provenance | None = None


def decisive(sample: Sample) -> AspectSight | None:
    """The aspect that decided; None where nothing did, or the image as a whole."""
    return next((sight for sight in sample.sights if sight.aspect == _cue(sample)), None)


def whole_image_decided(sample: Sample) -> bool:
    """Whether the image as a whole did more for the label than any aspect."""
    return _cue(sample) == WHOLE_IMAGE


def _cue(sample: Sample) -> str | None:
    effects = {sight.aspect: sight.effect for sight in sample.sights if sight.effect is not None}
    return deciding_cue(effects, sample.image_effect)


def verdict(sample: Sample) -> str:
    """Which cue decided, read from the effects and from nothing else. Empty where there are none."""
    if all(sight.effect is None for sight in sample.sights):
        return ""
    first, whole = decisive(sample), sample.image_effect
    if first is None or first.effect is None:
        if whole is None or not whole_image_decided(sample):
            return "No single cue decided."
        return f"The image as a whole did most for the label ({signed(whole)} nats), more than any single cue."
    if sample.attribution == "leave_one_out":
        return f"{decided(first)}: without it the label would be {_less(first.effect)} less probable."
    beside = "" if whole is None else f", {signed(first.effect)} nats beside {signed(whole)} by the image as a whole"
    return f"{decided(first)}: it did most for the label{beside}."


def decided(sight: AspectSight) -> str:
    """That this aspect decided, and what it saw."""
    saw = f" (“{readable(sight.answer)}”)" if sight.answer else ""
    return f"The {words(sight.aspect)} decided{saw}"


def _less(effect: float) -> str:
    """By how much an effect in nats, when it goes, lowers a probability: "12 %", or "3.1 times"."""
    if effect >= math.log(100):
        return "more than 100 times"
    factor = math.exp(effect)
    return f"{factor:.1f} times" if factor >= 2 else f"{100 * (1 - 1 / factor):.0f} %"


def readable(text: str, longest: int = 60) -> str:
    """A generated text without what a terminal would act on, cut where it goes on for too long."""
    plain = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def words(name: str) -> str:
    """An aspect's name for people."""
    return name.replace("_", " ")


def share(value: float) -> str:
    """A share in [0, 1] in per cent with one decimal."""
    return f"{100 * value:.1f}"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a real minus, and no negative zero."""
    text = f"{value:+.{digits}f}".replace("-", "\u2212")
    return text if any(digit in text for digit in "123456789") else text[1:]


def points(value: float) -> str:
    """A difference of shares in percentage points, signed."""
    return signed(100 * value, digits=1)


def width(value: float) -> str:
    """A length in per cent for a style attribute: digits and nothing else, whatever the number is."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%" if math.isfinite(value) else "0%"


def duration(seconds: float) -> str:
    """A time as a person says it: "4.2 s", "3 min 07 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def grouped(number: int) -> str:
    """A count with a thin space between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def styled(value: float, style: str) -> str:
    """A figure in the style of its column: "percent" of a share, "count" of whole things, or a plain "number"."""
    if style == "percent":
        return share(value)
    if style == "count":
        return grouped(round(value)) if float(value).is_integer() else f"{value:.1f}"
    return f"{value:.3f}"


def whole(value: float) -> str:
    """A share in [0, 1] in whole per cent; one that is not quite 0 or 100 is not called so."""
    if 0 < value < 0.005:
        return "<1"
    return ">99" if 0.995 <= value < 1 else f"{100 * value:.0f}"


def chance(value: float) -> str:
    """A p-value with three decimals; smaller ones are only bounded."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


FILTERS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (words, share, signed, points, width, duration, grouped, styled, whole, chance)
}
"""What the templates may call."""
