"""Settings of a system as JSON values."""

from dataclasses import fields
from typing import Any

FREE = ("checkpoint_every", "checkpoint_minutes", "gradient_checkpointing")
"""Settings that change nothing of what is learned or answered."""


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, with lists in place of tuples, as JSON gives them back."""
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def deciding(settings: Any) -> dict[str, Any]:
    """The same without the settings that decide nothing."""
    return {name: value for name, value in plain(settings).items() if name not in FREE}
