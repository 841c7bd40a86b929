"""One self-contained HTML page about predictions, or about a whole study."""

from masp.report.html import render, sample_of, write_report
from masp.report.schema import verdict

__all__ = ["render", "sample_of", "verdict", "write_report"]
