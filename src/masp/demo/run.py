"""The demo from the first image to the report; what is finished is not done again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from masp.backbones.base import Backbone
from masp.backbones.files import PHOTO
from masp.backbones.loading import load_backbone
from masp.baselines.concept_bottleneck import ConceptBottleneckSettings, concept_bottleneck_system
from masp.baselines.learning import make_training_data
from masp.core.atomic_io import write_file
from masp.core.config import RunConfig, TrainConfig
from masp.core.runtime import Bar
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset
from masp.demo import photographs, pictures
from masp.demo.measure import DemoMeasurements, Steps, measure, quiet, write_table
from masp.demo.pictures import DemoPicture, Plan, demo_config
from masp.demo.report_builder import Background, loss_curve_of, report_of
from masp.demo.summary import show, show_photographs, standard_output
from masp.evaluation.runner import provenance
from masp.predictor import Masp, Prediction
from masp.report import write_report
from masp.training.run_dir import TrainResult
from masp.training.stage1 import train_aspects
from masp.training.stage2 import train_prompt

RUNS = {
    "aspects": "stage 1: six aspects",
    "prompt-alone": "stage 2 without aspects (V+S)",
    "prompt": "stage 2 with aspects (V+A+S)",
}
"""Folder and name of each training run."""

STEPS = 10


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves.

    Attributes:
        report: the page to open.
        results: every figure as JSON, with what it depended on.
        adapter: aspects and soft prompt, ready for `masp predict`.
        measured: the figures.
        predictions: of the shipped images.
        seconds: of the steps that this run did itself.
    """

    report: Path
    results: Path
    adapter: Path
    measured: DemoMeasurements
    predictions: tuple[Prediction, ...]
    seconds: float


def run_demo(
    out: Path, console: Console | None = None, plan: Plan | None = None, config: RunConfig | None = None
) -> DemoResult:
    """Makes data, trains both stages, measures, explains, predicts, reports.

    Args:
        out: folder for everything; a second run in it goes on where the first one stopped.
        console: for the summary; None for standard output. Progress goes to standard error.
        plan: how many images.
        config: the settings of both stages and the backbone; None for the demo's own.

    Raises:
        MaspError: the folder belongs to another demo, cannot be written, or the run was interrupted.
    """
    plan, config, steps = plan or Plan(), config or demo_config(), Steps(STEPS, out / "times.json")
    console = console or standard_output()
    with quiet():
        _photographs(out, plan, steps, console)
        dataset = _dataset(out / "data", plan, steps)
        backbone = load_backbone(config.backbone)
        _train(config, dataset, backbone, out, steps)
        full = Masp.from_pretrained(out / "prompt" / "adapter", backbone)
        plain = Masp.from_pretrained(out / "prompt-alone" / "adapter", backbone)
        concepts = _concepts(dataset, backbone, out, steps)
        measured = measure(full, plain, dataset.split("test"), plan, steps, concepts)
        shown = _predictions(concepts or full, out / "pictures", steps)
        known = provenance(full, dataset, "test")
    curves = tuple(loss_curve_of(name, out / run) for run, name in RUNS.items())
    data = report_of(measured, full.labels, shown, Background(out, known, curves, tuple(steps.done)))
    report, results = out / "report.html", out / "results.json"
    write_report(report, data)
    write_table(out / "table2", measured.table, known)
    write_file(results, _results(measured, shown, known, steps))
    show(console, measured, data, report, steps.seconds())
    predictions = tuple(prediction for _, prediction in shown)
    return DemoResult(report, results, out / "prompt" / "adapter", measured, predictions, steps.seconds())


def _photographs(out: Path, plan: Plan, steps: Steps, console: Console) -> None:
    """Predicts the shipped photographs, or says what they need."""
    name = "Photographs predicted"
    if why := photographs.left_out() if plan.photographs else "not asked for":
        steps.left_out(name, why)
        return
    with steps.step(name, "4 photographs, with reasons"):
        data = photographs.predict(Masp.from_pretrained(backbone=PHOTO), out)
    show_photographs(console, data, out / photographs.PAGE)


def _dataset(folder: Path, plan: Plan, steps: Steps) -> Dataset:
    name, total = "Emoji scenes drawn", sum(plan.splits().values())
    if pictures.is_drawn(folder, plan):
        steps.ready(name)
        return open_dataset(folder, layout="emoset")
    with steps.step(name, f"{total:,} images"), Bar("drawing", total) as bar:
        pictures.draw_dataset(folder, plan, bar.advance)
    return open_dataset(folder, layout="emoset")


def _train(config: RunConfig, dataset: Dataset, backbone: Backbone, out: Path, steps: Steps) -> None:
    """The three runs; the training functions skip what is finished and go on with what is not."""
    aspects = out / "aspects"
    runs: dict[str, tuple[str, TrainConfig, Callable[[Path], TrainResult]]] = {
        "aspects": (
            "Stage 1: six aspects learned",
            config.aspects,
            lambda run: train_aspects(config, dataset, backbone, run),
        ),
        "prompt-alone": (
            "Stage 2: prompt without aspects",
            config.prompt,
            lambda run: train_prompt(config, dataset, backbone, None, run),
        ),
        "prompt": (
            "Stage 2: prompt with aspects",
            config.prompt,
            lambda run: train_prompt(config, dataset, backbone, aspects / "adapter", run),
        ),
    }
    for folder, (name, settings, train) in runs.items():
        if (out / folder / "adapter" / "adapter.json").is_file():
            train(out / folder)  # makes sure that it is the same run
            steps.ready(name)
            continue
        with steps.step(name, "" if settings.max_steps is None else f"{settings.max_steps:,} steps"):
            train(out / folder)


def _concepts(dataset: Dataset, backbone: Backbone, out: Path, steps: Steps) -> Masp | None:
    """A concept bottleneck on the words of the aspects; None where a label occurs on no image to learn from."""
    name, folder = "Concept bottleneck fitted", out / "concepts"
    train = len(dataset.split("train"))
    settings = ConceptBottleneckSettings(aspects=str(out / "aspects"), fewest=min(20, 1 + train // 50))
    ready = (folder / "adapter" / "adapter.json").is_file()
    if ready:
        steps.ready(name)
    elif {record.label for record in dataset.split("train")} < set(dataset.labels):
        steps.left_out(name, "left out: a label occurs on no image to learn from")
        return None
    else:
        with steps.step(name, f"{train:,} images"):
            system = concept_bottleneck_system(backbone, dataset.labels, settings)
            system.fit(make_training_data(backbone, dataset, system.labels, folder))
    return Masp.from_pretrained(folder, backbone)


def _predictions(full: Masp, folder: Path, steps: Steps) -> list[tuple[DemoPicture, Prediction]]:
    shipped = pictures.demo_pictures(folder)
    with steps.step("Shipped images predicted", f"{len(shipped)} images, with reasons"):
        return list(zip(shipped, full.predict([picture.path for picture in shipped]), strict=True))


def _results(
    measured: DemoMeasurements, shown: Sequence[tuple[DemoPicture, Prediction]], known: dict[str, Any], steps: Steps
) -> bytes:
    content = {
        **measured.summary(),
        "predictions": [{"truth": picture.label, **prediction.to_json()} for picture, prediction in shown],
        "seconds": {step.name: round(step.seconds, 2) for step in steps.done},
        "provenance": known,
    }
    return (json.dumps(content, indent=2) + "\n").encode()
