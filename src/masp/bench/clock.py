"""Timing and memory: repeats of several works in turn, what a step needs beyond what was there, the machine's peaks."""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from masp.core.runtime import processor

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of every repeat of one work, for one example each."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the repeats."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def in_turn(
    works: Mapping[str, tuple[Work, int]], repeats: int, tell: Callable[[str], object] = lambda name: None
) -> dict[str, Timing]:
    """Times of works that are compared: each once to warm up, then all in turn, so that a slow minute hits all.

    Args:
        works: by name, the work and how many examples it handles; times are per example.
        repeats: how often each is timed.
        tell: hears the name of what runs.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, (work, examples) in works.items():
            tell(f"{name}, {'warm-up' if repeat == 0 else f'{repeat} of {repeats}'}")
            seconds = once(work) / examples
            if repeat:
                found[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def once(work: Work) -> float:
    """Seconds of one call, with what a GPU still has to do."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def memory_of(work: Work) -> int:
    """Bytes that a second call of `work` has in use at its peak, what was there before the first call not counted.

    On a GPU as torch counts them, otherwise by the resident memory of this process, looked at every millisecond. What
    earlier works freed is given back to the system first: it would count as there already and hide what this one needs.
    """
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    _give_back()
    before = resident()
    work()
    with Stopwatch() as watch:
        work()
    return watch.peak - before


def _give_back() -> None:
    """Return free memory of the C library's heap to the system. Only glibc can; elsewhere figures may be too small."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def resident() -> int:
    """Bytes of this process that are in memory now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the highest so far is all there is to know
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")


class Stopwatch:
    """While this context is open, a thread remembers the most resident memory."""

    def __init__(self) -> None:
        self.peak = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, resident())

    def __enter__(self) -> "Stopwatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def machine(dtype: torch.dtype, device: torch.device, quick: bool = False) -> dict[str, Any]:
    """What it is, and its measured peaks: a large matrix product in this dtype, and copying memory."""
    side = 512 if quick else 3072
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = min(once(lambda: left @ right) for _ in range(2 if quick else 6))
    source = torch.empty(2**20 if quick else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = min(once(lambda: target.copy_(source)) for _ in range(2 if quick else 6))
    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "gemm_tflops": 2 * side**3 / product / 1e12,
        "bandwidth_gb_s": 2 * source.numel() / copying / 1e9,
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    }
