"""What the benchmarks without released weights measure on and how: backbone, images, models; time, memory, peaks."""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import machine
from PIL import Image
from random_weights import RandomBackbone, Shape, make

from masp.backbones.base import Backbone
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.flops import Sizes
from masp.core.labels import LabelStyle, render_labels
from masp.core.prompts import load_questions
from masp.core.types import Pixels
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import MaspModel, init_soft_prompt

LABELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
TASKS: tuple[Sequence[str], ...] = (
    LABELS,
    ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    ("negative", "positive"),
    ("calm", "moderate", "strong"),
)
ANSWERS = {
    "facial_expression": "smile",
    "object": "person, tree, dog",
    "scene": "beach",
    "human_action": "walking",
    "brightness": "very high",
    "colorfulness": "moderate",
}
GRIDS = {16: (4, 4), 35: (5, 7), 64: (8, 8), 128: (8, 16), 256: (16, 16), 512: (16, 32), 700: (25, 28)}
CELL = 28  # pixels along the side of a visual token
TINY = Shape(
    dim=64, layers=2, heads=4, intermediate=96, vocabulary=1024, vision_width=32, vision_depth=2, vision_heads=2
)


@dataclass(frozen=True)
class Setting:
    """One backbone with untrained models around it; the same weights everywhere."""

    made: RandomBackbone
    shape: Shape
    counts: tuple[int, ...]
    repeats: int
    quick: bool
    seed: int = 0

    @property
    def backbone(self) -> Backbone:
        """As this package runs it."""
        return self.made.backbone

    def model(self, variant: str) -> MaspModel:
        """Six untrained aspects and a soft prompt of 32 vectors, in one of the variants."""
        method = MethodConfig.model_validate({"variant": variant}).resolved()
        assert method.queries is not None
        assert method.attention is not None
        generator = torch.Generator().manual_seed(0)
        aspects = AspectModules(self.backbone.dim, ASPECTS, method.queries, method.attention, generator)
        prompt = init_soft_prompt(PromptInit(), method.prompt_length, self.backbone, generator)
        return MaspModel(self.backbone, method, aspects, prompt)

    def pixels(self, count: int, images: int = 1, seed: int = 0) -> Pixels:
        """Preprocessed images of noise with so many visual tokens each, on the backbone's device."""
        rows, columns = GRIDS[count]
        generator = torch.Generator().manual_seed(seed)
        pictures = [
            Image.fromarray(
                torch.randint(0, 256, (rows * CELL, columns * CELL, 3), generator=generator, dtype=torch.uint8).numpy()
            )
            for _ in range(images)
        ]
        return self.backbone.preprocess(pictures).to(self.backbone.device)

    def question(self, labels: Sequence[str] = LABELS, variant: str = "paper") -> str:
        """The emotion question."""
        style: LabelStyle = "python" if variant == "released" else "comma"
        return load_questions().ask_emotion(render_labels(labels, style))

    def aspect_question(self, aspect: str) -> str:
        """The question about an aspect."""
        return load_questions().aspect(aspect)[0]

    def sizes(self) -> Sizes:
        """The backbone as the arithmetic sees it."""
        model, shape = self.made.plain.model, self.shape
        return Sizes(
            dim=shape.dim,
            layers=shape.layers,
            kv_dim=shape.dim // shape.heads * shape.groups,
            language=sum(one.numel() for one in model.language_model.layers.parameters()),
            vocabulary=shape.vocabulary,
            vision=sum(one.numel() for one in model.visual.blocks.parameters()),
            vision_width=shape.vision_width,
            vision_layers=shape.vision_depth,
            tied=shape.tied,
        )


def setting(quick: bool, repeats: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Setting:
    """The size that the goals are about, or a tiny one."""
    shape = replace(TINY) if quick else Shape()
    return Setting(make(shape, dtype, device, seed), shape, (16, 35) if quick else (256, 700), repeats, quick, seed)


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
    """Times of works that are compared: each once to warm up, then all in turn, so that a slow minute hits all."""
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
    """Bytes that a second call of `work` has in use at its peak, what was there before the first call not counted."""
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


def machine_of(dtype: torch.dtype, device: torch.device, quick: bool = False) -> dict[str, Any]:
    """What it is, and its measured peaks: a large matrix product in this dtype, and copying memory."""
    side = 512 if quick else 3072
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = min(once(lambda: left @ right) for _ in range(2 if quick else 6))
    source = torch.empty(2**20 if quick else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = min(once(lambda: target.copy_(source)) for _ in range(2 if quick else 6))
    return machine(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        gemm_tflops=2 * side**3 / product / 1e12,
        bandwidth_gb_s=2 * source.numel() / copying / 1e9,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    )
