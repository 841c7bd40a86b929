"""What a result says of its data and its machine, and the hash that names a run. Needs no model code."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from masp.core.runtime import processor
from masp.data.records import Dataset


def data_facts(dataset: Dataset, split: str | None) -> dict[str, Any]:
    """Which data, divided how."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "layout": dataset.layout,
        "split": split,
        "split_by": dataset.split_by,
    }


def machine_facts(accelerator: str | None) -> dict[str, Any]:
    """Processor, cores, accelerator and platform."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "accelerator": accelerator,
        "platform": platform.platform(),
    }


def when(seconds: float) -> dict[str, Any]:
    """Time of day, UTC, and the seconds that were spent on the images."""
    return {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 3)}


def dated(known: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """All that answers depend on as a result holds it: with its hash, the time, and the seconds that they took."""
    return {"run": run_of(known), **known, **when(seconds)}


def run_of(known: Mapping[str, Any]) -> str:
    """SHA-256 of all that answers depend on. What a backbone is called is not among it: its weights are."""
    backbone = {key: value for key, value in (known.get("backbone") or {}).items() if key != "name"}
    return hashlib.sha256(json.dumps({**known, "backbone": backbone}, sort_keys=True).encode()).hexdigest()
