"""What `masp evaluate` and `masp baseline` share: settings of the data, its split, the bar, and the figures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masp.baselines.base import System
    from masp.core.config import DataConfig
    from masp.data.records import Dataset
    from masp.evaluation.predict_split import Batching
    from masp.evaluation.result import Evaluation, Mode
    from masp.predictor import Masp


def data_settings(changes: Sequence[str], data: Path) -> "DataConfig":
    """The settings of the data with what the command line changes.

    Raises:
        ConfigError: A change is wrong.
    """
    from masp.core.config import load_config

    return load_config(None, changes).data.model_copy(update={"path": data})


def with_split(dataset: "Dataset", settings: "DataConfig", split: str) -> "Dataset":
    """The data set, once it is certain that it has the split.

    Raises:
        UsageError: It has not.
    """
    from masp.core.errors import UsageError, did_you_mean

    if split not in dataset.splits:
        raise UsageError(f"--split {split}: {settings.path} has no such split", "", did_you_mean(split, dataset.splits))
    return dataset


def measured(
    system: "System | Masp",
    dataset: "Dataset",
    split: str,
    mode: "Mode",
    batching: "Batching",
    calibrate: bool,
    out: Path | None,
) -> "Evaluation":
    """Every image of the split, and of the one that a temperature is fitted on, under one bar."""
    from masp.cli.console import counting
    from masp.evaluation.runner import CALIBRATION, evaluate
    from masp.training.progress import Bar

    more = calibrate and split != CALIBRATION
    images = len(dataset.split(split)) + (len(dataset.splits.get(CALIBRATION, ())) if more else 0)
    with Bar("images", images) as bar:
        return evaluate(system, dataset, split, mode, replace(batching, progress=counting(bar)), out, more)


def tell(found: "Evaluation", out: Path | None) -> None:
    """The figures on stdout, and what else there is to know on stderr."""
    from masp.cli.console import evaluation_tables, results, say

    results().print(evaluation_tables(found))
    for bad in found.quarantined:
        say(f"left out {bad.image}: {bad.reason}")
    if out is not None:
        say(f"predictions.jsonl and summary.json are in {out}")
