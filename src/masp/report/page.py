"""The page itself: templates filled and written.

It loads nothing: styles, plots and images are inside it, and a content policy in its head forbids anything else.
Names, labels and answers come from outside and are escaped wherever they appear.
"""

from pathlib import Path

import jinja2

from masp import __version__
from masp.core.atomic_io import write_file
from masp.core.errors import MaspError
from masp.report import plots, study
from masp.report.formatting import FILTERS
from masp.report.samples import sample_view
from masp.report.schema import ReportData


def write_report(file: Path, data: ReportData) -> None:
    """Writes the page, whole or not at all; folders on the way are made.

    Raises:
        MaspError: the file cannot be written.
    """
    write_page(file, render(data))


def write_page(file: Path, page: str) -> None:
    """Writes a page that is rendered already, whole or not at all; folders on the way are made.

    Raises:
        MaspError: the file cannot be written.
    """
    content = page.encode("utf-8", "backslashreplace")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, content)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MaspError(f"the report {file} cannot be written ({reason})", "", "Name another file.") from error


def render(data: ReportData) -> str:
    """The page as text."""
    rows = data.ablation.rows if data.ablation else ()
    return fill(
        "report.html.j2",
        data=data,
        title=data.title,
        summary=data.summary,
        headlines=study.headlines(data),
        chapters=study.chapters(data),
        best=max(rows, key=lambda row: row.accuracy.value, default=None),
        with_f1=any(row.macro_f1 is not None for row in rows),
        reference_lines=study.reference_lines(data.ablation),
        agreements=study.agreements(data.explanations),
        confusion_columns=study.confusion_columns(data.confusion),
        confusion_rows=study.confusion_rows(data.confusion),
        plots=_plots(data),
        curve_plots=[(curve, plots.loss_curve(curve).decode()) for curve in data.curves],
        views=(sample_view(index, sample) for index, sample in enumerate(data.samples, start=1)),
    )


def fill(template: str, **values: object) -> str:
    """A template of the package with these values; every text among them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("masp"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(version=__version__, **values)


def _plots(data: ReportData) -> dict[str, str]:
    """The drawings that stand beside tables, as SVG elements; matplotlib escapes the names inside them."""
    drawn: dict[str, str] = {}
    if data.ablation:
        drawn["ablation"] = plots.ablation_bars(data.ablation).decode()
    if data.aspect_scores:
        drawn["aspects"] = plots.aspect_bars(data.aspect_scores).decode()
    return drawn
