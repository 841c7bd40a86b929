"""One self-contained HTML page about predictions, or about a whole study."""

from masp.report.formatting import verdict
from masp.report.page import render, write_report
from masp.report.samples import sample_of

__all__ = ["render", "sample_of", "verdict", "write_report"]
