"""Results that were never measured, small enough to check every number on the page by hand."""

import math
from pathlib import Path

from masp.evaluation.compute_metrics import Calibration, ResultContext, measured
from masp.evaluation.metrics import BootstrapSamples
from masp.evaluation.result import Evaluation, LabelledPrediction, write_result

LABELS = ("joy", "fear", "awe")
TRUTH = ("joy", "joy", "joy", "joy", "fear", "fear", "awe", "awe")


def answer(number: int, said: str | None, sure: float | None, truth: str | None = None, text: str | None = None):
    """What was said about image `number`; the rest of the probability is shared by the other labels."""
    label = truth or TRUTH[number]
    logs = None
    if sure is not None:
        logs = {name: math.log(sure if name == said else (1 - sure) / (len(LABELS) - 1)) for name in LABELS}
    return LabelledPrediction(f"{label}/{number}.png", label, said, logs, text)


def answers(words: str, sure: tuple[float, ...] | None = (0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, 0.6)):
    """One answer an image, each named by the first letter of its label; "-" names none."""
    names = {name[0]: name for name in LABELS} | {"-": None}
    return [answer(number, names[word], None if sure is None else sure[number]) for number, word in enumerate(words)]


def result(system: str, said: list[LabelledPrediction], temperature: bool = False, **about) -> Evaluation:
    """All figures of the answers; with few draws, since nobody reads the ends of the intervals here."""
    given = {"provenance": {"seed": None, "data": {"fingerprint": "f"}}, "mode": "score"} | about
    facts = ResultContext(system, given.pop("dataset", "made"), given.pop("split", "test"), labels=LABELS, **given)
    calibration = Calibration("val", tuple(said)) if temperature else None
    return measured(facts, said, calibration=calibration, samples=BootstrapSamples(20, 0))


def written(folder: Path, found: Evaluation) -> str:
    """The place of a result on the disk."""
    write_result(folder, found)
    return str(folder)
