"""A check as a JSON file: the same content for the same data, on every machine."""

import json
from pathlib import Path

from masp import __version__
from masp.core.atomic_io import write_file
from masp.core.errors import DataError
from masp.data.validation.check import DatasetCheck, Report
from masp.data.validation.issues import KINDS, Issue

FORMAT = 1


def as_json(report: Report) -> dict[str, object]:
    """The report as plain values."""
    near = report.depth.hasher is not None and report.depth.images
    return {
        "format": FORMAT,
        "masp": __version__,
        "images_opened": report.depth.images,
        "near_duplicates": f"pHash, at most {report.depth.distance} of 64 bits" if near else None,
        "errors": report.errors,
        "warnings": report.warnings,
        "data_sets": [_data_set(checked) for checked in report.data_sets],
        "between": [
            {
                "first": str(pair.first),
                "second": str(pair.second),
                "findings": [_finding(one) for one in pair.findings],
            }
            for pair in report.between
        ],
    }


def _data_set(checked: DatasetCheck) -> dict[str, object]:
    return {
        "path": str(checked.path),
        "layout": checked.layout,
        "images": checked.images,
        "split_by": checked.split_by,
        "labels": list(checked.labels),
        "splits": {split: dict(counts) for split, counts in checked.counts.items()},
        "aspects": dict(checked.aspects),
        "skipped": dict(checked.skipped),
        "formats": dict(checked.formats),
        "findings": [_finding(one) for one in checked.findings],
    }


def _finding(one: Issue) -> dict[str, object]:
    return {
        "kind": one.kind,
        "severity": one.severity,
        "says": KINDS[one.kind].says,
        "count": one.count,
        "cases": [{name: value for name, value in case._asdict().items() if value} for case in one.cases],
    }


def write_report(report: Report, file: Path) -> None:
    """Write the report.

    Raises:
        DataError: the file cannot be written.
    """
    content = json.dumps(as_json(report), indent=1, ensure_ascii=True) + "\n"
    try:
        write_file(file, content.encode("ascii"))
    except OSError as error:
        raise DataError(f"the report {file} cannot be written ({error.strerror})", "", "Check the folder.") from None
