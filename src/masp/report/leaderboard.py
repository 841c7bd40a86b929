"""The table of all systems, each system against the reference, and what each aspect adds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from masp.core.aspects import ASPECTS
from masp.core.errors import UsageError, did_you_mean
from masp.evaluation import metrics
from masp.evaluation.metrics import Interval
from masp.evaluation.result import Evaluation, ProbabilisticMetrics
from masp.report.load_results import Comparison, Figure, SystemResults, over_seeds, seed_of

FIRST, BEST = "first", "best"


@dataclass(frozen=True)
class Column:
    """A column of the table: its head, what it means, how its numbers are written, where they come from."""

    key: str
    name: str
    style: str
    meaning: str
    read: Callable[[Evaluation], Interval | float | None]


@dataclass(frozen=True)
class LeaderboardRow:
    """A system in the table; `meaning` says what else there is to know about it."""

    name: str
    meaning: str
    images: int
    figures: Mapping[str, Figure | None]
    best: bool = False


@dataclass(frozen=True)
class Pair:
    """A system minus the reference on the images that both answered; `points` is None where there are none.

    `p`, `only_this` and `only_reference` belong to McNemar's test of two single systems.
    """

    name: str
    points: Interval | None
    images: int
    p: float | None = None
    only_this: int | None = None
    only_reference: int | None = None


@dataclass(frozen=True)
class Gain:
    """What an aspect adds to the accuracy, on the same images."""

    aspect: str
    points: Interval
    images: int


@dataclass(frozen=True)
class Gains:
    """One way to ask what each aspect adds."""

    name: str
    meaning: str
    gains: tuple[Gain, ...]


def _of(
    read: Callable[[ProbabilisticMetrics], Interval | float | None],
) -> Callable[[Evaluation], Interval | float | None]:
    return lambda result: None if result.chances is None else read(result.chances)


def _scaled(chances: ProbabilisticMetrics) -> Interval | None:
    return chances.calibrated.calibration_error if chances.calibrated else None


COLUMNS = (
    Column("accuracy", "Accuracy, %", "percent", "", lambda found: found.accuracy),
    Column("f1", "Macro F1, %", "percent", "the mean of the F1 of all labels, rare ones as much as frequent ones",
           lambda found: found.macro_f1),
    Column("top2", "Top 2, %", "percent", "the true label is one of the two most probable",
           _of(lambda chances: chances.top2)),
    Column("nll", "NLL", "number", "mean of −log p(true label), in nats; smaller is better",
           _of(lambda chances: chances.negative_log_likelihood)),
    Column("brier", "Brier", "number", "mean squared distance of the probabilities from the truth, 0 to 2",
           _of(lambda chances: chances.brier)),
    Column("ece", "ECE, %", "percent", "expected calibration error: how far confidence and accuracy lie apart; how "
           "much of it is chance stands under the diagrams",
           _of(lambda chances: chances.calibration_error)),
    Column("scaled", "ECE after, %", "percent", "the same after temperature scaling on the validation split",
           _of(_scaled)),
    Column("unparsed", "Unparsed", "count", "answers that name no label; they count as wrong",
           lambda found: float(found.unparsed)),
)  # fmt: skip
"""Every column there can be, in the order of the table."""


def rows(trial: Comparison) -> tuple[tuple[Column, ...], tuple[LeaderboardRow, ...]]:
    """The columns that any system fills, and a row for every system."""
    result = [
        {column.key: over_seeds([column.read(run) for run in system.runs]) for column in COLUMNS}
        for system in trial.systems
    ]
    columns = tuple(column for column in COLUMNS if any(figures[column.key] for figures in result))
    top = best(trial)
    for system, figures in zip(trial.systems, result, strict=True):
        figures["accuracy"] = _with_interval(system, figures["accuracy"])
    return columns, tuple(
        LeaderboardRow(system.name, _meaning(system), system.runs[0].used, figures, system is top and len(result) > 1)
        for system, figures in zip(trial.systems, result, strict=True)
    )


def over_images(system: SystemResults) -> Interval:
    """Accuracy with an interval over the images; of several seeds the mean, as far as their answers are known."""
    if len(system.runs) == 1:
        return system.runs[0].accuracy
    if system.said[0]:
        right = [sum(predictions[key] == key[1] for predictions in system.said) for key in system.said[0]]
        return metrics.mean_share(right, len(system.said))
    mean = accuracy(system)
    return Interval(mean, mean, mean)


def accuracy(system: SystemResults) -> float:
    """Of a system, the mean over its seeds."""
    return sum(run.accuracy.value for run in system.runs) / len(system.runs)


def best(trial: Comparison) -> SystemResults:
    """The system with the highest accuracy, the earlier one of two alike."""
    return max(trial.systems, key=accuracy)


def reference(trial: Comparison, against: str) -> SystemResults:
    """What the others are compared with: the first system, the best one, or the one of this name.

    Raises:
        UsageError: there is no such system.
    """
    if against == BEST:
        return best(trial)
    names = [system.name for system in trial.systems]
    if against in names:
        return trial.systems[names.index(against)]
    if against == FIRST:
        return trial.systems[0]
    known = f"first, best, or one of {', '.join(names)}"
    raise UsageError(f"no system of {trial.dataset} is called '{against}'", known, did_you_mean(against, names))


def pairs(trial: Comparison, base: SystemResults) -> tuple[Pair, ...]:
    """Every other system minus the reference."""
    return tuple(_pair(base, system) for system in trial.systems if system is not base)


def disagreements(trial: Comparison) -> tuple[str, ...]:
    """Sentences about results that do not fit together: other copies of the data, other labels of one image."""
    result = []
    prints = {json.dumps(_data(run).get("fingerprint")) for run in trial.runs} - {"null"}
    if len(prints) > 1:
        result.append(
            f"These results were measured on {len(prints)} different copies of {trial.dataset}: their files, labels or "
            "splits differ. Only images with the same name and label are compared one by one."
        )
    targets: dict[str, str] = {}
    odd = {
        one.image for run in trial.runs for one in run.answers if targets.setdefault(one.image, one.truth) != one.truth
    }
    if odd:
        result.append(f"The results do not agree on the true label of {len(odd):,} of the images.")
    return tuple(result)


def gains(trial: Comparison) -> tuple[Gains, ...]:
    """What each aspect adds, where systems were measured that differ in nothing but their aspects."""
    families: dict[str, dict[frozenset[str], SystemResults]] = {}
    for system in trial.systems:
        described = _aspects(system)
        if described is not None:
            families.setdefault(described[1], {}).setdefault(described[0], system)
    result = []
    for family in families.values():
        full = max(family, key=len)
        alone = [(name, frozenset(), frozenset({name})) for name in ASPECTS]
        left_out = [(name, full - {name}, full) for name in ASPECTS if name in full]
        result.append(_gains(family, "Each aspect alone", "The accuracy with one aspect minus that with none.", alone))
        if len(full) > 1:
            meaning = "The accuracy with all aspects minus that with all but one."
            result.append(_gains(family, "Each aspect left out", meaning, left_out))
    return tuple(one for one in result if one.gains)


def _gains(
    family: Mapping[frozenset[str], SystemResults],
    name: str,
    meaning: str,
    asked: Sequence[tuple[str, frozenset[str], frozenset[str]]],
) -> Gains:
    result = []
    for aspect, without, with_it in asked:
        if without in family and with_it in family:
            pair = _pair(family[without], family[with_it])
            if pair.points is not None:
                result.append(Gain(aspect, pair.points, pair.images))
    return Gains(name, meaning, tuple(result))


def _pair(base: SystemResults, system: SystemResults) -> Pair:
    common = [key for key in base.said[0] if key in system.said[0]]
    if not common:
        return Pair(system.name, None, 0)
    predictions, answered = ([[seed[key] for key in common] for seed in one.said] for one in (base, system))
    comparison = metrics.compare_seeds([label for _, label in common], predictions, answered)
    points = Interval(comparison.difference, comparison.low, comparison.high)
    if len(base.runs) == len(system.runs) == 1:
        return Pair(system.name, points, len(common), comparison.p_value, comparison.only_second, comparison.only_first)
    return Pair(system.name, points, len(common))


def _with_interval(system: SystemResults, figure: Figure | None) -> Figure | None:
    """The mean accuracy of several seeds with the interval over the images, where their answers are known."""
    if figure is None or figure.sd is None or not system.said[0]:
        return figure
    interval = over_images(system)
    return replace(figure, low=interval.low, high=interval.high)


def _meaning(system: SystemResults) -> str:
    """What the name does not say: seeds, how the answer was read, what was left out."""
    runs = system.runs
    free = runs[0].mode == "generate"
    words = []
    if len(runs) > 1:
        seeds = [seed_of(run) or "?" for run in runs]
        words.append(f"{len(runs)} seeds ({', '.join(seeds)})")
    if free:
        words.append("answers in free text")
    for count, what in (
        (sum(len(run.quarantined) for run in runs), "unreadable"),
        (sum(run.unanswered for run in runs), "not answered"),
    ):
        if count:
            words.append(f"{count:,} {what}")
    return ", ".join(words)


def _data(evaluation: Evaluation) -> Mapping[str, object]:
    data = evaluation.provenance.get("data")
    return data if isinstance(data, Mapping) else {}


def _aspects(system: SystemResults) -> tuple[frozenset[str], str] | None:
    """The aspects that a system was given, and everything else that it was, as text; None where it is unknown.

    A name such as "V+scene+S" comes first: it tells an untrained prompt from a trained one and from none.
    """
    first = system.runs[0]
    named = _from_name(first.system) or _from_name(system.name)
    if named is not None:
        return named
    for key in ("adapter", "system"):
        described = first.provenance.get(key)
        names = described.get("aspects") if isinstance(described, Mapping) else None
        if isinstance(described, Mapping) and isinstance(names, list | tuple):
            same = [first.mode, described.get("method"), described.get("settings"), first.provenance.get("question")]
            return frozenset(map(str, names)), json.dumps(same, sort_keys=True, default=str)
    return None


def _from_name(name: str) -> tuple[frozenset[str], str] | None:
    """The same from a name such as "V+scene+S", as the rows of Table 2 and Figure 3 are called."""
    whole, _, length = name.partition(" ")
    first, *parts = whole.split("+")
    if first != "V":
        return None
    aspects = ASPECTS if "A" in parts else tuple(part for part in parts if part in ASPECTS)
    rest = [part for part in parts if part not in (*ASPECTS, "A")]
    return frozenset(aspects), json.dumps([rest, length])
