"""What the demo begins with: four photographs that may be shared, predicted by the backbone for photographs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from masp.backbones import photo_weights
from masp.backbones.files import PHOTO
from masp.core.atomic_io import write_file
from masp.core.errors import MaspError
from masp.predictor import Masp, Prediction
from masp.report import sample_of, write_report
from masp.report.schema import ReportData

SOURCES, PAGE = "sources.json", "photographs.html"
INSTALL = 'pip install "masp[photo]"'
LABELS = "ekman6"
"""What the backbone chooses from where no adapter ships for it."""


@dataclass(frozen=True)
class Photograph:
    """A photograph that may be shared.

    Attributes:
        path: the file.
        what: what it shows.
        source: who took it, and where it was found.
        licence: why it may be shared.
    """

    path: Path
    what: str
    source: str
    licence: str


def photographs(folder: Path) -> tuple[Photograph, ...]:
    """The photographs, copied into `folder`."""
    home = resources.files("masp").joinpath("demo_pictures", "photographs")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, about in json.loads(home.joinpath(SOURCES).read_text(encoding="utf-8")).items():
        write_file(folder / name, home.joinpath(name).read_bytes())
        found.append(Photograph(folder / name, **about))
    return tuple(found)


def left_out() -> str:
    """Why the photographs cannot be predicted here; empty where they can."""
    return f"left out; for photographs: {INSTALL}" if photo_weights.missing() else ""


def load() -> Masp:
    """The backbone for photographs with the adapter that ships for it; zero-shot where none does.

    Raises:
        MaspError: its checkpoint cannot be made.
    """
    try:
        masp = Masp.from_pretrained(backbone=PHOTO)
    except MaspError as error:
        raise MaspError(f"the photographs of the demo cannot be predicted: {error}") from error
    if masp.zero_shot:
        return Masp.from_pretrained(backbone=masp.backbone, labels=LABELS)
    return masp


def report_of(masp: Masp, shown: Sequence[Photograph], predictions: Sequence[Prediction]) -> ReportData:
    """A page of its own, as the figures of the main one are about the small world."""
    by = "the backbone alone, zero-shot: no adapter ships for it" if masp.zero_shot else f"the adapter {masp.adapter}"
    samples = tuple(
        replace(sample_of(said, one.path), name=f"{one.what} ({one.source}; {one.licence})")
        for one, said in zip(shown, predictions, strict=True)
    )
    return ReportData(title="Photographs", summary=f"Predicted by {by}.", samples=samples)


def predict(masp: Masp, out: Path) -> ReportData:
    """Predict the photographs with reasons, and write their page into `out`."""
    shown = photographs(out / "photographs")
    data = report_of(masp, shown, list(masp.predict([one.path for one in shown])))
    write_report(out / PAGE, data)
    return data
