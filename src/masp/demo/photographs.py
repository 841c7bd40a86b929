"""What the demo begins with: four photographs that may be shared, predicted by the backbone for photographs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from masp.adapters.shipped import default_backbone
from masp.backbones import photo_weights
from masp.backbones.files import PHOTO
from masp.core.atomic_io import write_file
from masp.predictor import Masp, Prediction
from masp.report import sample_of, write_report
from masp.report.schema import ReportData

SOURCES, PAGE = "sources.json", "photographs.html"
INSTALL = 'pip install "masp[photo]"'


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
    if photo_weights.missing():
        return f"left out; for photographs: {INSTALL}"
    return "" if default_backbone() == PHOTO else "left out: no adapter for photographs ships"


def report_of(masp: Masp, shown: Sequence[Photograph], predictions: Sequence[Prediction]) -> ReportData:
    """A page of its own, as the figures of the main one are about the small world."""
    samples = tuple(
        replace(sample_of(said, one.path), name=f"{one.what} ({one.source}; {one.licence})")
        for one, said in zip(shown, predictions, strict=True)
    )
    return ReportData(
        title="Photographs", summary=f"Predicted by {masp.adapter} on {masp.backbone.name}.", samples=samples
    )


def predict(masp: Masp, out: Path) -> ReportData:
    """Predict the photographs with reasons, and write their page into `out`."""
    shown = photographs(out / "photographs")
    data = report_of(masp, shown, list(masp.predict([one.path for one in shown])))
    write_report(out / PAGE, data)
    return data
