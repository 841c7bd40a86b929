"""`masp predict`: images in, labels with reasons out."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.options import Device, Dtype, DtypeOption, Revision

if TYPE_CHECKING:
    from masp.predictor import Failure, Masp, Prediction

MOST_REPORTED = 200
"""A report shows at most this many pictures; a page with more is of no use to anybody."""

EXAMPLES = """
Examples:

`masp predict photo.jpg`

`masp predict photos/ --adapter runs/first --json > answers.jsonl`

`find . -name '*.jpg' | masp predict - --report page.html`
"""


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Images, folders, `@list.txt` with a path on each line, or `-` for stdin."),
    ],
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ID",
            help="The adapter, its run, or its id on a hub. Default: the one shipped for the embedded backbone.",
        ),
    ] = None,
    adapter_revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch of an adapter on a hub.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="For an adapter with several tasks: which.")] = None,
    backbone: Annotated[str | None, typer.Option(metavar="ID", help="Default: the one that the adapter names.")] = None,
    aspects: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="For a prompt that only names its aspects: where they are.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write a page with heatmaps.")] = None,
    explain: Annotated[bool, typer.Option(help="Say why. Without, only the labels: several times faster.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
) -> None:
    """Predict the emotion of images: every label's probability, what each aspect saw, and which of them decided.

    An image that cannot be read is reported and the others go on; the exit code is then 1.
    """
    from masp.adapters import find_adapter, read_info
    from masp.predictor import Failure, Masp

    if adapter is not None:  # where a task has to be named, that is said before a large backbone is loaded
        task = read_info(find_adapter(adapter, adapter_revision)).chosen(task)
    loading = {"backbone_revision": revision, "dtype": dtype.value, "device": device}
    masp = Masp.from_pretrained(adapter, backbone, aspects=aspects, task=task, revision=adapter_revision, **loading)
    show = _json_line if as_json else _for_people(masp, explain)
    lost: list[Failure] = []
    failures: list[Failure] = []
    kept: list[Prediction] = []
    predicted = 0
    for result in masp.predict_stream(_named(paths, lost), batch_size=batch_size, explain=explain):
        show(result)
        if isinstance(result, Failure):
            failures.append(result)
            continue
        predicted += 1
        if report is not None and len(kept) < MOST_REPORTED:
            kept.append(result)
    for failure in lost:
        show(failure)
    failures += lost
    if report is not None:
        _write_report(report, masp, kept, failures, predicted)
    if failures:
        raise typer.Exit(1)


def _named(paths: Sequence[str], lost: "list[Failure]") -> Iterator[Path]:
    """Every image that the arguments name; an argument that names none is added to `lost`, and the others go on."""
    from masp.data.walk import images_from
    from masp.errors import DataError
    from masp.predictor import Failure

    for argument in paths:
        found = False
        try:
            for path in images_from([argument], sys.stdin):
                found = True
                yield path
        except DataError as error:
            lost.append(Failure(argument, str(error)))
            continue
        if not found:
            lost.append(Failure(argument, "names no images (JPEG, PNG, WebP, GIF or BMP)"))


def _json_line(result: "Prediction | Failure") -> None:
    """One line, at once; escaped so that every terminal and every file name survives."""
    sys.stdout.write(json.dumps(result.to_json()) + "\n")
    sys.stdout.flush()


def _for_people(masp: "Masp", explain: bool) -> "Callable[[Prediction | Failure], None]":
    """Shows predictions on stdout and failures on stderr; says once what the adapter cannot tell."""
    from masp.cli.show import LEGEND, prediction_panel, results, say
    from masp.predictor import Failure

    console = results()
    if not masp.task.use.aspects:
        say("this adapter was trained without aspects (V+S): it names the emotion, not the reasons")
    elif explain:
        say(LEGEND)

    def show(result: "Prediction | Failure") -> None:
        if isinstance(result, Failure):
            say(result.error if result.image in result.error else f"{result.image}: {result.error}")
        else:
            console.print(prediction_panel(result))

    return show


def _write_report(
    file: Path, masp: "Masp", kept: "Sequence[Prediction]", failures: "Sequence[Failure]", predicted: int
) -> None:
    from masp.adapters import library_versions
    from masp.cli.show import say
    from masp.report import sample_of, write_report
    from masp.report_data import Provenance, ReportData

    shown = f"{predicted} pictures" if predicted == len(kept) else f"the first {len(kept)} of {predicted} pictures"
    facts = {"adapter": masp.adapter, "backbone": masp.backbone.name, "question": masp.task.question}
    data = ReportData(
        title="Predicted emotions",
        summary=f"{shown}, predicted by {masp.adapter} on {masp.backbone.name}.",
        samples=tuple(sample_of(prediction, Path(prediction.image)) for prediction in kept),
        failures=tuple((failure.image, failure.error) for failure in failures),
        provenance=Provenance(facts=(*facts.items(), *library_versions().items())),
    )
    write_report(file, data)
    say(f"report: {file}")
