"""What a job will take before it is paid for: time, memory, disk and money of each stage, by arithmetic.

And what the method trains, in numbers and bytes (paper, Table 4, with stage 1 beside it).

Times are operations over what a device reaches (its peak times a measured efficiency), or bytes over its bandwidth,
whichever is longer; reading images runs beside the computation and counts where it is slower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from masp.backbones.device_map import packed_bytes
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig
from masp.core.errors import UsageError
from masp.core.flops import VALIDATED, Sizes, images_at_once
from masp.core.settings import TrainConfig, Variant
from masp.model.aspect_attention import AspectModules
from masp.model.soft_prompt import SoftPrompt

Store = Literal["none", "features", "prefix", "auto"]
AROUND = 16  # columns before the soft prompt that are neither visual nor aspect tokens
SUFFIX = 40  # columns of question, answer and turn marks behind the soft prompt; a test counts these three
PAIR = 45  # columns of a pair of stage 1
SUPERVISED = 3  # tokens of an answer with its end
WORDS = 16  # tokens of an aspect put into words
BRANCHES = 16  # columns of all labels behind a prompt
READING = 20.0  # images per second and core, where nothing was measured


@dataclass(frozen=True)
class Device:
    """Where the job runs.

    Attributes:
        tflops: peak of matrix products in the dtype that is used, in 10¹² operations per second.
        bandwidth: of its memory, in GB/s.
        memory: in GB.
        efficiency: share of the peak that training and prediction reach.
        number: how many of them.
        cores: cores that read images, all together.
        price: of one of them for an hour, in whatever money.

    Raises:
        UsageError: a number that cannot be.
    """

    tflops: float
    bandwidth: float
    memory: float
    efficiency: float = 0.35
    number: int = 1
    cores: int = 16
    price: float = 0.0

    def __post_init__(self) -> None:
        numbers = {"peak": self.tflops, "bandwidth": self.bandwidth, "memory": self.memory}
        for name, value in numbers.items():
            if not value > 0:
                raise UsageError(f"the {name} is {value:g}", "more than 0", "See the data sheet of the device.")
        if not 0 < self.efficiency <= 1:
            raise UsageError(f"the efficiency is {self.efficiency:g}", "a share above 0, at most 1")
        if self.number < 1 or self.cores < 1 or not self.price >= 0:
            raise UsageError("fewer than one device or core, or a price below 0", "at least one of each")


@dataclass(frozen=True)
class CostJob:
    """What is to be done.

    Attributes:
        images: to train on.
        visual: visual tokens of an image.
        label: images to label afterwards.
        epochs1: passes of stage 1; 0 leaves it out.
        epochs2: passes of stage 2; 0 leaves it out.
        aspects: annotated aspects of an image.
        queries: aspect tokens of an aspect.
        prompt: vectors of the soft prompt.
        store: what is kept between epochs; `auto`: the largest that fits `disk`.
        disk: GB that the store may take.
        batch: examples of a step.
        micro_batch: examples that are trained at once; None: all of a step.
        checkpointing: whether layers are computed again in the backward pass.
        val: images of the split val, measured once an epoch.
        eval_batch: images that are measured at once; None: as `images_at_once` says.
        checkpoint_minutes: between checkpoints; 0: one after every step.
        released: the layout of the released code, in which only the images' features can be kept.
        itemsize: bytes of a number of the backbone, as it computes.
        packed: whether its layers lie in memory in 4 bits (NF4); embeddings and output head do not.

    Raises:
        UsageError: a number that cannot be, or a store that the layout does not have.
    """

    images: int
    visual: int
    label: int = 0
    epochs1: int = 3
    epochs2: int = 3
    aspects: int = 6
    queries: int = 1
    prompt: int = 32
    store: Store = "auto"
    disk: float = 1000.0
    batch: int = 8
    micro_batch: int | None = None
    checkpointing: bool = False
    val: int = 0
    eval_batch: int | None = None
    checkpoint_minutes: float = 10.0
    released: bool = False
    itemsize: int = 2
    packed: bool = False

    def __post_init__(self) -> None:
        least = {"images": (self.images, 0), "visual tokens": (self.visual, 1), "images to label": (self.label, 0)}
        least |= {
            "epochs": (min(self.epochs1, self.epochs2), 0),
            "batch": (self.batch, 1),
            "micro-batch": (self.at_once, 1),
            "evaluation batch": (self.eval_batch or 1, 1),
            "images of the split val": (self.val, 0),
            "aspects": (self.aspects, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise UsageError(f"{name}: {value}", f"{bound} or more")
        if not self.disk >= 0:
            raise UsageError(f"the disk has {self.disk:g} GB", "0 or more")
        if not self.checkpoint_minutes >= 0:
            raise UsageError(f"{self.checkpoint_minutes:g} minutes between checkpoints", "0 or more")
        if self.images == self.label == 0:
            raise UsageError("there are no images", "images to train on or to label", "Give --images or --label.")
        if self.released and self.store == "prefix":
            raise UsageError(
                "in the released layout the soft prompt stands before the image, so no prefix can be kept",
                "none, features or auto",
            )

    @property
    def at_once(self) -> int:
        """Examples that are trained at once."""
        return self.batch if self.micro_batch is None else min(self.batch, self.micro_batch)

    @property
    def steps1(self) -> int:
        """Steps of stage 1, whose batches hold whole images."""
        together = max(1, (2 * self.batch + self.aspects) // (2 * self.aspects)) if self.aspects else 1
        return self.epochs1 * -(-self.images // together) * (self.aspects > 0)

    @property
    def steps2(self) -> int:
        """Steps of stage 2."""
        return self.epochs2 * -(-self.images // self.batch)

    @property
    def prefix(self) -> int:
        """Columns that are computed without a graph."""
        return AROUND if self.released else AROUND + self.aspects * self.queries + self.visual

    @property
    def graph(self) -> int:
        """Columns of an example of stage 2 that are computed with a graph."""
        behind = self.prompt + SUFFIX
        return behind + (self.prompt + self.aspects * self.queries + self.visual if self.released else 0)


@dataclass(frozen=True)
class Part:
    """One part of the job.

    Attributes:
        name: what it is called.
        examples: how many.
        seconds: all together.
        memory: in GB, on each device.
        weights: GB of it that the frozen weights take.
        disk: GB that it leaves there.
        cost: money.
        bound: what sets the time.
        steps: of the optimizer.
    """

    name: str
    examples: int
    seconds: float
    memory: float
    weights: float
    disk: float
    cost: float
    bound: str
    steps: int = 0


@dataclass(frozen=True)
class _Work:
    """What one example takes.

    Attributes:
        flops: operations.
        at_once: examples that go through the model together.
        graph: columns with a graph.
        bare: columns that are computed without one, where there is no graph at all.
        read: bytes of kept keys and values.
        images: images that are read.
        passes: of the language model, one after the other.
    """

    flops: float
    at_once: int
    graph: int = 0
    bare: int = 0
    read: int = 0
    images: float = 0.0
    passes: int = 1


def estimate(sizes: Sizes, job: CostJob, device: Device, reading: float = READING) -> list[Part]:
    """Every part of the job, in order.

    Args:
        sizes: the backbone.
        job: what is to be done.
        device: where.
        reading: images per second that one core decodes, shrinks and normalises.
    """
    kept, plan = chosen_store(sizes, job), _Planner(sizes, job, device, reading)
    image, column = sizes.feature_bytes(job.visual, job.itemsize), sizes.kept_bytes(1, job.itemsize)
    vision, before = sizes.vision_flops(job.visual), sizes.forward_flops(job.prefix)
    seen = {"none": vision + before, "features": before, "prefix": 0.0}[kept]  # of an image, at each use in stage 2
    read, images = job.prefix * column * (kept == "prefix"), float(kept == "none")
    parts: list[Part] = []
    if job.images and kept != "none":
        parts.append(plan.part("features", job.images, _Work(vision, job.batch, images=1.0), image * job.images / 1e9))
    if job.images and job.epochs1 and job.aspects:
        once = images / job.aspects  # an image is read once for all its pairs
        pair = _Work(_step_flops(sizes, job, PAIR, 0) + vision * once, job.at_once, graph=PAIR, images=once)
        parts.append(plan.part("stage 1", job.images * job.aspects * job.epochs1, pair, steps=job.steps1))
        parts += plan.beside(1, parts[-1], min(job.val, VALIDATED) * job.epochs1, _words(sizes, job, vision * images))
    if job.images and kept == "prefix":
        work = _Work(before, job.batch, bare=job.prefix)
        parts.append(plan.part("prefixes", job.images, work, job.prefix * column * job.images / 1e9))
    if job.images and job.epochs2:
        flops = _step_flops(sizes, job, job.graph, job.prefix) + seen
        work = _Work(flops, job.at_once, graph=job.graph, read=read, images=images)
        parts.append(plan.part("stage 2", job.images * job.epochs2, work, steps=job.steps2))
        flops = sizes.forward_flops(job.graph + BRANCHES, job.prefix) + sizes.head_flops(BRANCHES) + seen
        bare = job.graph + BRANCHES + (0 if kept == "prefix" else job.prefix)
        scored = _Work(flops, measured_at_once(sizes, job), bare=bare, read=read, images=images)
        parts += plan.beside(2, parts[-1], job.val * job.epochs2, scored)
    if job.label:
        columns = AROUND + job.aspects * job.queries + job.visual + job.prompt * (1 + job.released) + SUFFIX + BRANCHES
        flops = vision + sizes.forward_flops(columns) + sizes.head_flops(BRANCHES)
        parts.append(plan.part("labelling", job.label, _Work(flops, job.batch, bare=columns, images=1.0)))
    return parts


def measured_at_once(sizes: Sizes, job: CostJob) -> int:
    """Images of the split val that are measured at once."""
    return images_at_once(sizes.dim, job.at_once) if job.eval_batch is None else job.eval_batch


def _step_flops(sizes: Sizes, job: CostJob, graph: int, past: int) -> float:
    """Operations of an example that is trained, behind `past` columns."""
    again = sizes.forward_flops(graph, past) if job.checkpointing else 0.0
    return sizes.step_flops(graph, past, SUPERVISED) + again


def _words(sizes: Sizes, job: CostJob, vision: float) -> _Work:
    """An image of the split val whose aspects are put into words: a row for each, and a pass for each word."""
    flops = job.aspects * (sizes.forward_flops(PAIR + WORDS) + sizes.head_flops(WORDS)) + vision
    once = measured_at_once(sizes, job)
    return _Work(flops, once, bare=job.aspects * (PAIR + WORDS), images=float(vision > 0), passes=WORDS)


def checkpoint_bytes(sizes: Sizes, job: CostJob, stage: int) -> int:
    """Bytes of a checkpoint: what is trained in fp32, the two moments of AdamW, and where val is measured the best."""
    size = trained_size("released" if job.released else "paper", sizes.dim, job.queries, job.prompt)
    trained = size.aspects * job.aspects // len(ASPECTS) if stage == 1 else size.prompt
    return trained * FP32 * (4 if job.val else 3)


def chosen_store(sizes: Sizes, job: CostJob) -> Literal["none", "features", "prefix"]:
    """What is kept: the largest that fits, for `auto`.

    Raises:
        UsageError: what was asked for does not fit.
    """
    if job.store == "auto":
        if not job.released and job.epochs2 > 1 and store_gb(sizes, job, "prefix") <= job.disk:
            return "prefix"
        return "features" if store_gb(sizes, job, "features") <= job.disk else "none"
    needed = store_gb(sizes, job, job.store)
    if needed > job.disk:
        raise UsageError(
            f"the store {job.store} takes {needed:,.0f} GB", f"at most {job.disk:,.0f} GB of disk", "Use auto."
        )
    return job.store


def store_gb(sizes: Sizes, job: CostJob, kept: Literal["none", "features", "prefix"]) -> float:
    """GB that a store takes; prefixes lie beside the visual tokens."""
    image = 0 if kept == "none" else sizes.feature_bytes(job.visual, job.itemsize)
    return job.images * (image + (sizes.kept_bytes(job.prefix, job.itemsize) if kept == "prefix" else 0)) / 1e9


@dataclass(frozen=True)
class _Planner:
    sizes: Sizes
    job: CostJob
    device: Device
    reading: float

    def part(self, name: str, examples: int, work: _Work, disk: float = 0.0, steps: int = 0) -> Part:
        """One part, from what one example takes.

        Args:
            name: what it is called.
            examples: how many.
            work: what one takes.
            disk: GB of all examples.
            steps: of the optimizer.
        """
        device, job, sizes = self.device, self.job, self.sizes
        rows = sizes.dim * sizes.vocabulary * job.itemsize
        layers = sizes.language + sizes.vision
        weights = (packed_bytes(layers) if job.packed else layers * job.itemsize) + rows
        passes = work.passes * (2 if work.graph else 1)
        times = {
            "arithmetic": work.flops / (device.tflops * 1e12 * device.efficiency),
            "memory bandwidth": (weights * passes / work.at_once + work.read) / (device.bandwidth * 1e9),
            "reading images": work.images * device.number / (self.reading * device.cores),
        }
        bound = max(times, key=times.__getitem__)
        seconds = times[bound] * examples / device.number
        weights += 0 if sizes.tied else rows  # input embeddings lie there too, but few of them are read
        memory = (weights + work.at_once * self._example(work)) / 1e9
        cost = seconds / 3600 * device.price * device.number
        return Part(name, examples, seconds, memory, weights / 1e9, disk, cost, bound, steps)

    def beside(self, stage: int, training: Part, images: int, work: _Work) -> list[Part]:
        """What goes with a stage: its validation, and its checkpoints, of which the newest stay on the disk."""
        result = [self.part(f"validation {stage}", images, work)] if images else []
        number, minutes = training.steps, self.job.checkpoint_minutes
        if minutes:
            seconds = training.seconds + sum(part.seconds for part in result)
            number = min(number, 1 + int(seconds / (60 * minutes)))  # the last step leaves one, whatever the time
        size = checkpoint_bytes(self.sizes, self.job, stage) / 1e9
        kept = size * min(number, TrainConfig().keep_checkpoints)
        return [*result, Part(f"checkpoints {stage}", number, 0.0, 0.0, 0.0, kept, 0.0, f"{size:.2g} GB each")]

    def _example(self, work: _Work) -> int:
        """Bytes that an example takes while it goes through the model."""
        sizes, job = self.sizes, self.job
        column = activation_bytes(sizes, job.itemsize)
        bare = work.bare * column // sizes.layers  # a layer's own, until the next one
        if job.checkpointing and work.graph:
            column = sizes.layers * sizes.dim * job.itemsize + column // sizes.layers
        return work.graph * column + bare + sizes.kept_bytes(job.prefix + job.graph, job.itemsize)


def activation_bytes(sizes: Sizes, itemsize: int) -> int:
    """Bytes that a column with a graph keeps for the backward pass.

    Per layer some ten vectors of the width and the four of the feed-forward part, whose width follows from the count
    of parameters.
    """
    attention = 2 * sizes.dim * (sizes.dim + sizes.kv_dim)
    wide = max(0, sizes.language // sizes.layers - attention) // (3 * sizes.dim)
    return sizes.layers * (10 * sizes.dim + 4 * wide) * itemsize


def measured_peaks(bench: Mapping[str, Any]) -> tuple[float, float]:
    """TFLOP/s of a matrix product and GB/s of the memory in a result of `masp bench`.

    They are measured before every group of lines, and a machine that has other things to do is slow for a while: the
    highest count.
    """
    seen = [bench["machine"], *bench.get("groups", {}).values()]
    tops, widths = ([one[key] for one in seen if key in one] for key in ("gemm_tflops", "bandwidth_gb_s"))
    return max(tops), max(widths)


def measured_efficiency(bench: Mapping[str, Any]) -> float:
    """The share of the measured peak that training reached in a result of `masp bench`.

    Raises:
        UsageError: the file holds no such line.
    """
    try:
        known = [rate for line in bench.get("results", []) if (rate := reached(line))]
    except (AttributeError, KeyError, TypeError, ValueError):
        known = []
    if not known:
        raise UsageError("the benchmark holds no line of training", "a file that `masp bench --json` wrote")
    return efficiency_of(known, measured_peaks(bench)[0])


def reached(line: Mapping[str, Any]) -> float:
    """TFLOP/s of a line of training; 0 for other lines."""
    return float(line["more"].get("tflops") or 0.0)


def efficiency_of(rates: Sequence[float], peak: float) -> float:
    """The middle one of some rates, as a share of the peak."""
    return min(1.0, median(rates) / peak)


FP32 = 4  # bytes of a number; what is trained is kept in fp32


@dataclass(frozen=True)
class TrainedSize:
    """The trained parts of one variant.

    Attributes:
        variant: which one.
        queries: aspect tokens per aspect.
        aspects: numbers in the six aspect modules.
        prompt: numbers in the soft prompt.
        added: places that aspect tokens and soft prompt take in the sequence of an image.
    """

    variant: str
    queries: int
    aspects: int
    prompt: int
    added: int


def trained_size(variant: Variant, dim: int, queries: int | None = None, prompt_length: int = 32) -> TrainedSize:
    """Sizes on a backbone of width `dim`, counted on the modules themselves.

    Args:
        variant: the method of the paper, or of the authors' code.
        dim: width of the language model.
        queries: per aspect; None: what the variant says.
        prompt_length: vectors in the soft prompt.
    """
    method = MethodConfig(variant=variant, queries=queries, prompt_length=prompt_length).resolved()
    assert method.queries is not None
    assert method.attention is not None
    with torch.device("meta"):
        aspects = AspectModules(dim, ASPECTS, method.queries, method.attention)
        prompt = SoftPrompt(prompt_length, dim)
    places = 2 if method.prompt_places == "both" else 1
    added = len(ASPECTS) * method.queries + places * prompt_length
    return TrainedSize(variant, method.queries, numbers(aspects), numbers(prompt), added)


def numbers(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
