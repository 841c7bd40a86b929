"""What a launcher (`accelerate launch`, `torchrun`) tells each process: who it is, and how many there are."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_FSDP = "ACCELERATE_USE_FSDP"


def rank() -> int:
    """The number of this process among all of the run; 0 without a launcher."""
    return _number("RANK", 0)


def local_rank() -> int | None:
    """The number of this process among those of its machine; None without a launcher."""
    return _number("LOCAL_RANK", 0) if count() > 1 else None


def count() -> int:
    """Processes of the run; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def fsdp() -> bool:
    """Whether the launcher asks for weights that are divided between the processes (`--use_fsdp`)."""
    return os.environ.get(_FSDP, "").lower() in ("1", "true")


@contextmanager
def without_fsdp() -> Iterator[None]:
    """A context that does not ask for it."""
    asked = os.environ.pop(_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_FSDP] = asked


def speaks() -> bool:
    """Whether this process is the one that talks: progress, results and log of the others would be the same."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, ""))
    except ValueError:
        return default
