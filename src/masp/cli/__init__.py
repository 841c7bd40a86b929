"""The command `masp`. The only place that parses arguments; what is heavy is imported inside the commands."""

from masp.cli.app import main

__all__ = ["main"]
