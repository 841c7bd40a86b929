"""What the machine is called, as results and benchmarks name it."""

import platform
from pathlib import Path

_TABLE = Path("/proc/cpuinfo")


def processor(table: Path = _TABLE) -> str:
    """The processor's own name, such as "AMD EPYC 7763"; its architecture where the system does not tell.

    `platform.processor` knows the architecture only.

    Args:
        table: Linux's list of processors.
    """
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.machine())
