"""`masp predict`: images in, labels with reasons out."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masp.cli.console import legend, prediction_panel, results, say
from masp.cli.options import (
    Accept,
    AdapterRevision,
    AspectsOfPrompt,
    Attribution,
    BackboneOrNoAdapter,
    Device,
    Dtype,
    DtypeOption,
    Labels,
    NoConcepts,
    Raw,
    Revision,
    Task,
    accepted,
    refuse,
)
from masp.core.errors import DataError, counted

if TYPE_CHECKING:
    from masp.predictor import Explain, Failure, Masp, Prediction

MOST_REPORTED = 200
"""A report shows at most this many images and failures; a page with more is of no use."""

MOST_SAID = 50
"""Failures that are told one by one on the terminal; the others are counted."""

EXAMPLES = """
Examples:

`masp predict photo.jpg`

`masp predict photos/ --adapter runs/first --json > answers.jsonl`

`masp predict photo.jpg --backbone Qwen/Qwen2-VL-2B-Instruct --labels ekman6`

`find . -name '*.jpg' | masp predict - --report page.html`
"""

Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Images, folders, `@list.txt` with a path on each line, or `-` for such a list on stdin.",
    ),
]

AdapterOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|ID",
        help="The adapter, its run, or its id on a hub. Default: the one that ships for the backbone; where there is "
        "none, the backbone answers alone.",
    ),
]
AttributionOption = Annotated[
    Attribution | None,
    typer.Option(
        help="How an aspect's effect is found: *leave_one_out* takes it from all aspects, *shapley* from every set "
        "of them (64 passes for six). Default: *leave_one_out*. A concept bottleneck has its own, and neither of these."
    ),
]


def predict(
    paths: Paths,
    adapter: AdapterOption = None,
    adapter_revision: AdapterRevision = None,
    task: Task = None,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="Every task of an adapter with several; an image is read once for all.")
    ] = False,
    backbone: BackboneOrNoAdapter = None,
    labels: Labels = None,
    aspects: AspectsOfPrompt = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per image, each on a line.")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a page with heatmaps, of 200 images at most.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Say why; without it only the labels, several times faster.")] = True,
    attribution: AttributionOption = None,
    raw: Raw = False,
    no_concepts: NoConcepts = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Threads that read images ahead; 0: none.")] = 2,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    accept: Accept = None,
) -> None:
    """Predict the emotion of images: every label's probability, what each aspect saw, and which of them decided.

    An image that cannot be read is reported and the others go on; the exit code is then 1.
    """
    from masp.predictor import Failure, Masp

    if all_tasks:
        refuse({"--task": task, "--report": report}, "with --all-tasks", "one of them")
    task = _named_task(adapter, adapter_revision, task, all_tasks)
    loading: dict[str, Any] = {"backbone_revision": revision, "dtype": dtype.value, "device": device, "raw": raw}
    loading |= {"revision": adapter_revision, "accept": accepted(accept), "concepts": not no_concepts}
    masp = Masp.from_pretrained(adapter, backbone, aspects=aspects, labels=labels, task=task, **loading)
    asked = masp.tasks if all_tasks else ()
    how = attribution.value if explain and attribution is not None else explain
    show = _json_line if as_json else _for_people(masp.use(asked[0]) if asked else masp, how)
    failures = _Failures(show, None if as_json else MOST_SAID)
    found = _Predictions(show)
    for answer in masp.predict_stream(_named(paths, failures), batch_size, how, workers, asked or None):
        if isinstance(answer, Failure):
            failures.add(answer)
        else:
            found.add(answer)
    if failures.unsaid:
        say(f"{failures.unsaid:,} more could not be read, {failures.count:,} in all")
    if found.foreign:
        say(found.warning)
    if report is not None:
        _write_report(report, masp, found, failures)
    if failures.count:
        raise typer.Exit(1)


def _named_task(adapter: str | None, revision: str | None, task: str | None, all_tasks: bool) -> str | None:
    """The task that is asked; that one has to be named is said before a large backbone is loaded."""
    from masp.adapters import find_adapter, read_info

    if adapter is None:
        refuse({"--adapter-revision": revision}, "without --adapter", "it only with an adapter on a hub")
        return task
    return None if all_tasks else read_info(find_adapter(adapter, revision)).chosen(task)


class _Predictions:
    """How many there were, how many of images that the backbone does not know, and the first of them."""

    def __init__(self, show: "Callable[[Prediction | Failure], None]") -> None:
        self.count = self.foreign = 0
        self.kept: list[Prediction] = []
        self._show = show

    @property
    def warning(self) -> str:
        """That some mean nothing, and what to do instead; empty where all images are such as the backbone knows."""
        from masp.model.prediction import INSTEAD

        if not self.foreign:
            return ""
        count = f"{self.foreign:,} of {counted(self.count, 'image')}"
        return f"Outside of what the backbone knows: {count}; what it says of them means nothing. {INSTEAD}"

    def add(self, prediction: "Prediction") -> None:
        self.count += 1
        self.foreign += prediction.warning is not None
        if len(self.kept) < MOST_REPORTED:
            self.kept.append(prediction)
        self._show(prediction)


class _Failures:
    """How many there were, and the first of them: a stream may be endless, and so may what is wrong with it.

    Each is shown as it comes, up to `limit` of them.
    """

    def __init__(self, show: "Callable[[Prediction | Failure], None]", limit: int | None) -> None:
        self.count = 0
        self.kept: list[Failure] = []
        self._show, self._limit = show, limit

    @property
    def unsaid(self) -> int:
        return 0 if self._limit is None else max(0, self.count - self._limit)

    def add(self, failure: "Failure") -> None:
        self.count += 1
        if len(self.kept) < MOST_REPORTED:
            self.kept.append(failure)
        if not self.unsaid:
            self._show(failure)


def _named(paths: Sequence[str], failures: _Failures) -> Iterator[Path]:
    """Every image that the arguments name.

    An argument that names none, and a line of a list whose folder cannot be read, are failures; the others go on.
    """
    from masp.data.file_listing import images_from
    from masp.data.images import FORMAT_NAMES
    from masp.predictor import Failure

    for argument in paths:
        anything, before = False, failures.count
        try:
            for path in images_from([argument], sys.stdin, lambda line, error: failures.add(Failure(line, str(error)))):
                anything = True
                yield path
        except DataError as error:
            failures.add(Failure(argument, str(error)))
            continue
        if not anything and failures.count == before:
            failures.add(Failure(argument, f"names no images ({FORMAT_NAMES})"))


def _json_line(answer: "Prediction | Failure") -> None:
    """One line, at once; escaped so that every terminal and every file name survives."""
    sys.stdout.write(json.dumps(answer.to_json()) + "\n")
    sys.stdout.flush()


def _for_people(masp: "Masp", explain: "Explain") -> "Callable[[Prediction | Failure], None]":
    """Shows predictions on stdout and failures on stderr; says once what the adapter cannot tell."""
    from masp.model.prediction import WORDS
    from masp.predictor import Failure

    console = results()
    if masp.zero_shot:
        say(f"{_alone(masp)}; it chooses from {', '.join(masp.labels)}")
    elif not masp.task.use.aspects:
        say("this adapter was trained without aspects (V+S): it names the emotion, not the reasons")
    elif explain:
        say(legend(explain if masp.handle().concepts is None else WORDS))

    def show(answer: "Prediction | Failure") -> None:
        if isinstance(answer, Failure):
            say(answer.error if answer.image in answer.error else f"{answer.image}: {answer.error}")
        else:
            console.print(prediction_panel(answer))

    return show


def _alone(masp: "Masp") -> str:
    return f"zero-shot: {masp.backbone.name} alone, without aspects and soft prompt (row V of the paper's Table 2)"


def _write_report(file: Path, masp: "Masp", predictions: _Predictions, failures: _Failures) -> None:
    from masp.adapters import library_versions
    from masp.report import sample_of, write_report
    from masp.report.schema import Provenance, ReportData

    read = counted(predictions.count, "image")
    shown = read if predictions.count == len(predictions.kept) else f"the first {len(predictions.kept)} of {read}"
    unread = f" {failures.count:,} more could not be read." if failures.count else ""
    by = _alone(masp) if masp.zero_shot else f"predicted by {masp.adapter} on {masp.backbone.name}"
    facts = {"adapter": masp.adapter, "backbone": masp.backbone.name, "question": masp.task.question}
    data = ReportData(
        title="Predicted emotions",
        summary=f"{shown}, {by}.{unread} {predictions.warning}".rstrip(),
        samples=tuple(sample_of(prediction, Path(prediction.image)) for prediction in predictions.kept),
        failures=tuple((failure.image, failure.error) for failure in failures.kept),
        provenance=Provenance(facts=(*facts.items(), *library_versions().items())),
    )
    write_report(file, data)
    say(f"report: {file}")
