"""The machine that a benchmark ran on, as its result file names it."""

import os
from typing import Any

from masp.core.runtime import processor


def machine(**more: Any) -> dict[str, Any]:
    """Processor and cores, and what else counts there, such as `threads` or `dtype`."""
    return {"processor": processor(), "cores": os.cpu_count(), **more}
