"""What a report can show: plain frozen records, filled by `masp predict --report` and by `masp demo`.

Every part is optional, so that one function renders both a handful of predictions and a whole study.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

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
    pictures: int
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
    shares that one who knows nothing of the image would reach.
    """

    cause: Interval | None = None
    pointing: Mapping[str, Interval] = field(default_factory=dict)
    cause_by_guess: float | None = None
    pointing_by_guess: Mapping[str, float] = field(default_factory=dict)


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
    the right answer, empty where the image shows nothing of the kind and None where nobody knows.
    """

    aspect: str
    answer: str
    effect: float | None = None
    attention: tuple[tuple[float, ...], ...] | None = None
    truth: str | None = None


@dataclass(frozen=True)
class Sample:
    """One image and everything said about it.

    `picture` is read when the page is written; where it cannot be read, the page says so. `expected` holds the
    true probability of every label and `cause` the true main cause, both only where the data set knows them. `warning`
    is what to know before the label is believed.
    """

    name: str
    picture: Path | Image.Image
    label: str
    probabilities: Mapping[str, float]
    sights: tuple[AspectSight, ...] = ()
    answer: str | None = None
    truth: str | None = None
    expected: Mapping[str, float] | None = None
    cause: str | None = None
    prompt_attention: Mapping[str, float] | None = None
    warning: str | None = None


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
