"""The whole method on the embedded default, with one call: data, both stages, Table 2, explanations, a report."""

from masp.demo.pictures import Plan
from masp.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "Plan", "run_demo"]
