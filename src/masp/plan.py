"""What a job will take before it is paid for: time, memory, disk and money of each stage, by arithmetic.

Times are operations over what a device reaches (its peak times a measured efficiency), or bytes over its bandwidth,
whichever is longer; reading pictures runs beside the computation and counts where it is slower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from masp.arithmetic import Sizes
from masp.backbones.four_bit import packed_bytes
from masp.errors import UsageError

Store = Literal["none", "features", "prefix", "auto"]
AROUND = 16  # columns before the soft prompt that are neither visual nor aspect tokens
SUFFIX = 40  # columns of question, answer and turn marks behind the soft prompt; a test counts these three
PAIR = 45  # columns of a pair of stage 1
SUPERVISED = 3  # tokens of an answer with its end
BRANCHES = 16  # columns of all labels behind a prompt
READING = 20.0  # pictures per second and core, where nothing was measured


@dataclass(frozen=True)
class Device:
    """Where the job runs.

    Attributes:
        tflops: peak of matrix products in the dtype that is used, in 10¹² operations per second.
        bandwidth: of its memory, in GB/s.
        memory: in GB.
        efficiency: share of the peak that training and prediction reach.
        number: how many of them.
        cores: cores that read pictures, all together.
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
class Job:
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
        batch: examples that go together.
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
    released: bool = False
    itemsize: int = 2
    packed: bool = False

    def __post_init__(self) -> None:
        least = {"images": (self.images, 0), "visual tokens": (self.visual, 1), "images to label": (self.label, 0)}
        least |= {
            "epochs": (min(self.epochs1, self.epochs2), 0),
            "batch": (self.batch, 1),
            "aspects": (self.aspects, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise UsageError(f"{name}: {value}", f"{bound} or more")
        if not self.disk >= 0:
            raise UsageError(f"the disk has {self.disk:g} GB", "0 or more")
        if self.images == self.label == 0:
            raise UsageError("there are no images", "images to train on or to label", "Give --images or --label.")
        if self.released and self.store == "prefix":
            raise UsageError(
                "in the released layout the soft prompt stands before the image, so no prefix can be kept",
                "none, features or auto",
            )

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
    """

    name: str
    examples: int
    seconds: float
    memory: float
    weights: float
    disk: float
    cost: float
    bound: str


def estimate(sizes: Sizes, job: Job, device: Device, reading: float = READING) -> list[Part]:
    """Every part of the job, in order.

    Args:
        sizes: the backbone.
        job: what is to be done.
        device: where.
        reading: pictures per second that one core decodes, shrinks and normalises.
    """
    kept = chosen_store(sizes, job)
    image, column = sizes.feature_bytes(job.visual, job.itemsize), sizes.kept_bytes(1, job.itemsize)
    vision, before = sizes.vision_flops(job.visual), sizes.forward_flops(job.prefix)
    step = sizes.step_flops(job.graph, job.prefix, SUPERVISED)
    plan = _Planner(sizes, job, device, reading)
    parts: list[Part] = []
    if job.images and kept != "none":
        parts.append(plan.part("features", job.images, vision, 0, 0, image * job.images / 1e9, 1.0))
    if job.images and job.epochs1 and job.aspects:
        pictures = 1 / job.aspects if kept == "none" else 0.0  # an image is read once for all its pairs
        flops = sizes.step_flops(PAIR, 0, SUPERVISED) + vision * pictures
        parts.append(plan.part("stage 1", job.images * job.aspects * job.epochs1, flops, PAIR, 0, 0.0, pictures))
    if job.images and kept == "prefix":
        parts.append(plan.part("prefixes", job.images, before, 0, 0, job.prefix * column * job.images / 1e9, 0.0))
    if job.images and job.epochs2:
        flops = step + {"none": vision + before, "features": before, "prefix": 0.0}[kept]
        read = job.prefix * column if kept == "prefix" else 0
        parts.append(plan.part("stage 2", job.images * job.epochs2, flops, job.graph, read, 0.0, float(kept == "none")))
    if job.label:
        columns = AROUND + job.aspects * job.queries + job.visual + job.prompt * (1 + job.released) + SUFFIX + BRANCHES
        flops = vision + sizes.forward_flops(columns) + sizes.head_flops(BRANCHES)
        parts.append(plan.part("labelling", job.label, flops, 0, 0, 0.0, 1.0))
    return parts


def chosen_store(sizes: Sizes, job: Job) -> Literal["none", "features", "prefix"]:
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


def store_gb(sizes: Sizes, job: Job, kept: Literal["none", "features", "prefix"]) -> float:
    """GB that a store takes; prefixes lie beside the visual tokens."""
    image = 0 if kept == "none" else sizes.feature_bytes(job.visual, job.itemsize)
    return job.images * (image + (sizes.kept_bytes(job.prefix, job.itemsize) if kept == "prefix" else 0)) / 1e9


@dataclass(frozen=True)
class _Planner:
    sizes: Sizes
    job: Job
    device: Device
    reading: float

    def part(self, name: str, examples: int, flops: float, graph: int, read: int, disk: float, pictures: float) -> Part:
        """One part, from what one example takes.

        Args:
            name: what it is called.
            examples: how many.
            flops: operations.
            graph: columns with a graph.
            read: bytes of kept keys and values.
            disk: GB of all examples.
            pictures: pictures that are read for an example.
        """
        device, job, sizes = self.device, self.job, self.sizes
        rows = sizes.dim * sizes.vocabulary * job.itemsize
        layers = sizes.language + sizes.vision
        weights = (packed_bytes(layers) if job.packed else layers * job.itemsize) + rows
        times = {
            "arithmetic": flops / (device.tflops * 1e12 * device.efficiency),
            "memory bandwidth": (weights * (2 if graph else 1) / job.batch + read) / (device.bandwidth * 1e9),
            "reading pictures": pictures * device.number / (self.reading * device.cores),
        }
        bound = max(times, key=times.__getitem__)
        seconds = times[bound] * examples / device.number
        weights += 0 if sizes.tied else rows  # input embeddings lie there too, but few of them are read
        step = job.batch * (graph * activation_bytes(sizes, job.itemsize) + self._cache())
        cost = seconds / 3600 * device.price * device.number
        return Part(name, examples, seconds, (weights + step) / 1e9, weights / 1e9, disk, cost, bound)

    def _cache(self) -> int:
        return self.sizes.kept_bytes(self.job.prefix + self.job.graph, self.job.itemsize)


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
