"""What both stages have in common from an opened data set to a finished adapter."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from masp.adapters import AdapterInfo, BackboneRecord, DataRecord, TrainingRecord, save_adapter
from masp.backbones.base import Again, Backbone
from masp.core.config import MethodConfig, PromptInit, RunConfig
from masp.core.errors import ConfigError
from masp.core.flops import images_at_once
from masp.core.prompts import EMOTION, Questions, load_questions
from masp.core.setting_types import FREE, Settings
from masp.core.settings import AspectTraining, PromptTraining, TrainConfig
from masp.data.images import Rounding, image_area
from masp.data.records import BadFiles, Dataset, Record, write_account
from masp.data.splits import write_split
from masp.model.aspect_attention import AspectModules, AspectRouting
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.soft_prompt import SoftPrompt
from masp.training.checkpoints import CheckpointStore, left_out, writing
from masp.training.disk_cache import GIGA, DiskCache
from masp.training.distributed import ALONE, Processes, launched
from masp.training.feature_cache import FeatureCache, ImageReading, VisualMemory
from masp.training.prefix_cache import PrefixCache, choose
from masp.training.run_dir import RunFolder, TrainResult, hash_of, reading
from masp.training.signals import StopRequest
from masp.training.trainer import (
    NEGLIGIBLE,
    LoopSettings,
    RateScale,
    Trainer,
    TrainingLength,
    TrainTask,
    reach,
    training_length,
)

log = logging.getLogger(__name__)


@runtime_checkable
class Order(Protocol):
    """Which examples every step sees, as `masp.data.splits.Batches` says it."""

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        ...

    def batches(self, epoch: int, start_batch: int = 0) -> Iterable[Sequence[int]]:
        """The examples of each step of an epoch, from its step `start_batch` on; each occurs once in the epoch."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a stage prepares: what is trained, in which order, and how the result is saved."""

    stage: TrainTask
    store: FeatureCache
    order: Order
    info: AdapterInfo
    aspects: AspectModules | None
    prompt: SoftPrompt | None
    scale: RateScale
    prompt_start: PromptInit | None = None
    routing: AspectRouting | None = None


@dataclass(frozen=True)
class Run:
    """One run of one stage, with what both stages need of it."""

    config: RunConfig
    settings: TrainConfig
    dataset: Dataset
    backbone: Backbone
    folder: RunFolder
    stop: StopRequest
    memory: VisualMemory | None = None
    processes: Processes = ALONE
    before: str | None = None  # what an earlier start of this run kept between epochs
    disk_cache: DiskCache | None = None  # where it is kept, if not in memory

    @property
    def method(self) -> MethodConfig:
        """The variant with every choice filled in."""
        return self.config.method.resolved()

    @property
    def rounding(self) -> Rounding:
        """How the shorter side of an image that is shrunk becomes a whole number."""
        return self.method.shrink_rounding or "nearest"

    def store(self, splits: Mapping[str, Sequence[Record]]) -> tuple[FeatureCache, dict[str, list[tuple[int, Record]]]]:
        """Read all images once.

        Returns:
            The store, and for every split its usable records with their numbers in the store.

        Raises:
            DataError: too many images are bad, none is left to train on, or one that the run began with cannot be read.
        """
        records = [(name, record) for name, chosen in splits.items() for record in chosen]
        paths = [record.path for _, record in records]
        store = FeatureCache(self.backbone, paths, self._reading(), self.memory, self.disk_cache, self.processes)
        known = self.processes.on_main(lambda: left_out(CheckpointStore(self.folder.checkpoints)))
        account = store.fill(
            self.stop, None if known is None else {path for path in paths if self.dataset.relative_path(path) in known}
        )
        log.info("images: %s", account.summary())
        if known is None:
            self.processes.on_main(lambda: self._write(account))
        indices: dict[str, list[tuple[int, Record]]] = {name: [] for name in splits}
        for index, (name, record) in enumerate(records):
            if store.usable[index]:
                indices[name].append((index, record))
        if not indices.get("val"):
            log.warning("there is no validation split: the last state is kept, and nothing is measured")
        return store, indices

    def _write(self, account: BadFiles) -> None:
        with writing(self.folder.quarantine):
            write_account(self.folder.quarantine, account)

    def _reading(self) -> ImageReading:
        wanted, data = self.before or self.settings.store, self.config.data
        if wanted == "none":
            budget = 0
        elif self.before is not None:
            budget = sys.maxsize  # it fitted when the run began
        else:
            budget = int(self.settings.feature_memory_gb * GIGA) if self.disk_cache is None else self.disk_cache.budget
        cached = wanted in ("features", "prefix")
        return ImageReading(data.longest_side, data.workers, budget, self.settings.strict, cached, self.rounding)

    def _room(self, store: FeatureCache, prefixes: PrefixCache) -> int:
        """Bytes of memory, or of disk where there is a disk cache, for all that is kept: the same in all processes."""
        if self.before is not None:
            return sys.maxsize
        disk_cache = self.disk_cache
        if disk_cache is None:
            return int(self.settings.feature_memory_gb * GIGA)
        return self.processes.on_main(lambda: disk_cache.room(prefixes.keys() | store.keys))

    def kept(
        self,
        store: FeatureCache,
        model: MaspModel | None = None,
        use: ActiveParts | None = None,
        questions: Sequence[str] = (),
        images: int = 0,
        endless: bool = False,
    ) -> PrefixCache | None:
        """The prefixes, where they are to be kept; and a record of what this run keeps.

        Args:
            store: visual tokens, read already.
            model: with the soft prompt to train; None in stage 1, which has no prefixes.
            use: what stands in the sequence.
            questions: texts that may be asked.
            images: training images.
            endless: whether other texts may be asked too.

        Raises:
            MaspError: they are wanted and do not fit, or there is nothing to keep.
        """
        prefixes, before, settings = None, self.before, self.settings
        if model is not None and any(store.usable):
            candidate = PrefixCache(model, store, use or ActiveParts(), questions, endless)
            steps = training_length(settings, -(-images // settings.batch_size), 1.0).steps
            again = steps * settings.batch_size > images
            room = partial(self._room, store, candidate)
            prefixes = candidate if choose(candidate, before or settings.store, room, again) else None
        if before is None:
            cached = "prefix" if prefixes else "features" if store.kept else "none"
            self.processes.on_main(lambda: self.folder.keep(cached))
        if prefixes is not None:
            prefixes.build(self.stop)
        return prefixes

    def lengths(self, store: FeatureCache, indices: Sequence[int]) -> list[int] | None:
        """How long the rows of these images are, relative to each other: their pixels. None where all are alike.

        Not the number of visual tokens, which is only known where these are kept: the order must not depend on that.
        """
        side = self.config.data.longest_side
        areas = [image_area(store.paths[index], side, self.rounding) for index in indices]
        return areas if len(set(areas)) > 1 else None

    def backbone_record(self) -> BackboneRecord:
        """The backbone as an adapter names it."""
        return BackboneRecord.of(self.backbone)

    def data_record(self, indices: Mapping[str, Sequence[object]]) -> DataRecord:
        """The data set as an adapter names it."""
        images = {name: len(used) for name, used in indices.items()}
        return DataRecord(name=self.dataset.name, fingerprint=self.dataset.fingerprint(), images=images)

    def first_questions(self, questions: Questions) -> dict[str, str]:
        """The texts that are asked at evaluation."""
        return {name: texts[0] for name, texts in questions.aspects.items()} | {EMOTION: questions.emotion[0]}


def run_stage(
    config: RunConfig,
    settings: TrainConfig,
    stage: str,
    dataset: Dataset,
    backbone: Backbone,
    out: Path,
    prepare: Callable[[Run], Outcome],
    extra: Mapping[str, Any] | None = None,
    include_aspects: bool = True,
    memory: VisualMemory | None = None,
) -> TrainResult:
    """One run from an opened data set to a finished adapter; `extra` joins what has to be equal to go on with it."""
    processes = launched(backbone.device)
    with processes.guarded(), processes.stopping() as stop, ExitStack() as stack:
        folder = RunFolder(out)
        identity = identity_of(config, settings, stage, dataset, backbone) | dict(extra or {})
        accelerator = make_accelerator(settings, backbone, out, stage)
        finished, before = processes.on_main(lambda: _opened(folder, stack, identity, config, dataset))
        if finished is not None:
            log.info("this run is finished already: %s", finished.adapter)
            return finished
        disk_cache = None  # where the run keeps things beyond its end
        if settings.store_dir is not None and (before or settings.store) != "none":
            disk_cache = DiskCache(settings.store_dir, int(settings.store_disk_gb * GIGA))
        outcome = prepare(Run(config, settings, dataset, backbone, folder, stop, memory, processes, before, disk_cache))
        checkpoints = CheckpointStore(folder.checkpoints, settings.keep_checkpoints)
        loop = loop_settings(settings, outcome.order, hash_of(identity), outcome.scale.rate)
        loop = replace(loop, left_out=tuple(sorted(map(dataset.relative_path, outcome.store.left_out()))))
        tell_reach(settings, TrainingLength(loop.learning_rate, loop.steps, loop.validate_every), outcome.scale)
        with tracked(accelerator, f"masp-{stage}", identity):
            fit = Trainer(outcome.stage, loop, checkpoints, accelerator, processes).fit(folder.metrics, stop)
        pace = fit.examples / fit.seconds if fit.seconds else 0.0
        result = TrainResult(folder.adapter, fit.metrics, fit.steps, fit.seconds, pace)
        record = training_record(settings, backbone, fit.steps, loop.learning_rate, outcome.prompt_start)
        info = _measured(outcome.info, stage, fit.metrics, record)

        def save() -> None:
            parts = (outcome.aspects, outcome.prompt, include_aspects)
            save_adapter(folder.adapter, info, *parts, routing=outcome.routing)
            folder.finish(result)

        processes.on_main(save)
        return result


def _opened(
    folder: RunFolder, stack: ExitStack, identity: Mapping[str, Any], config: RunConfig, dataset: Dataset
) -> tuple[TrainResult | None, str | None]:
    """Hold the folder of a run until `stack` is left; its result, if it has finished, and what it kept before."""
    finished = stack.enter_context(folder.opened(identity, config.model_dump(mode="json")))
    if finished is None:
        write_split(folder.splits, dataset)
    return finished, folder.kept()


def _measured(before: AdapterInfo, stage: str, metrics: Mapping[str, float], record: TrainingRecord) -> AdapterInfo:
    """The description of an adapter with what a stage measured and how it was trained."""
    named = {f"{stage}/{name}": value for name, value in metrics.items()}
    now = {"metrics": {**before.metrics, **named}, "training": {**before.training, stage: record}}
    return before.model_copy(update=now | {"temperature": metrics.get("temperature")})


@contextmanager
def tracked(accelerator: Accelerator, project: str, identity: Mapping[str, Any]) -> Iterator[None]:
    """Trackers that are told what the run is, and closed however it ends.

    (`Accelerator.end_training` would also take the processes apart, and a second stage may follow.)
    """
    if accelerator.log_with:
        plain = {key: value for key, value in identity.items() if isinstance(value, str | int | float | bool)}
        accelerator.init_trackers(project, config=plain)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def identity_of(
    config: RunConfig, settings: TrainConfig, stage: str, dataset: Dataset, backbone: Backbone
) -> dict[str, Any]:
    """Everything that decides a run's result, as a flat table of JSON values."""
    resolved = config.method.resolved()
    table = {
        "stage": stage,
        "backbone": backbone.fingerprint(),
        "backbone.dtype": backbone.weight_dtype,
        "backbone.image_transform": backbone.image_transform,
        **reading(backbone),
        "data": dataset.fingerprint(),
        "questions": load_questions(config.questions).fingerprint(),
        **flat("method", resolved),
        **flat("data", config.data),
        **flat(stage, settings),
        "data.splits.file": None,  # a place; what it divides is in the fingerprint of the data
    }
    return json.loads(json.dumps(table))


def flat(prefix: str, settings: Settings) -> dict[str, Any]:
    """Settings that decide the result, each under its dotted name."""
    table, added = dict[str, Any](), settings.added_at_default()
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.json_schema_extra == FREE or name in added:
            continue
        table |= flat(f"{prefix}.{name}", value) if isinstance(value, Settings) else {f"{prefix}.{name}": value}
    return table


def training_record(
    settings: TrainConfig, backbone: Backbone, steps: int, rate: float, start: PromptInit | None
) -> TrainingRecord:
    """The conditions of a stage, as its adapter names them."""
    return TrainingRecord(
        learning_rate=rate,
        schedule=settings.schedule,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        steps=steps,
        batch_size=settings.batch_size,
        class_weights=settings.class_weights,
        max_grad_norm=settings.max_grad_norm,
        dtype=backbone.weight_dtype,
        prompt_start=start,
        loss="labels" if isinstance(settings, PromptTraining) and settings.loss == "labels" else None,
        attention_rate=settings.attention_rate if isinstance(settings, AspectTraining) else None,
    )


def tell_reach(settings: TrainConfig, budget: TrainingLength, scale: RateScale) -> None:
    """Say how far the run can go, beside what it has to be held against; warn where that is next to nothing."""
    furthest = reach(budget, settings.warmup, settings.schedule)
    text = (
        f"learning rate {budget.learning_rate:.2g}, {budget.steps:,} steps: no trained number can move further than "
        f"about {furthest:.2g}, {furthest / scale.spread:.2g} times the spread of {scale.name} ({scale.spread:.2g})"
    )
    if furthest >= NEGLIGIBLE * scale.spread:
        log.info("%s", text)
        return
    log.warning("%s; what is trained stays about where it began. Raise learning_rate or the steps", text)


def measured_at_once(settings: TrainConfig, width: int) -> int:
    """Images that are measured at once on the split val: what was asked for, or what a step of training fits.

    Args:
        settings: how it is trained.
        width: of the language model.
    """
    if settings.eval_batch_size is not None:
        return settings.eval_batch_size
    step = min(settings.batch_size, settings.micro_batch_size or settings.batch_size)
    return images_at_once(width, step)


def checkpointing(settings: TrainConfig) -> Again | None:
    """How layers without anything trained are computed again, if they are."""
    return nullcontext if settings.gradient_checkpointing else None


def loop_settings(settings: TrainConfig, order: Order, identity: str, scale: float = 1.0) -> LoopSettings:
    """What the loop needs to know, with everything counted in steps.

    Args:
        settings: of the run.
        order: of its examples.
        identity: hash of all that decides its result; rate and steps join it here.
        scale: what `learning_rate_scale` is multiplied with (see `RateScale`).
    """
    budget = training_length(settings, order.per_epoch, scale)
    return LoopSettings(
        steps=budget.steps,
        steps_per_epoch=order.per_epoch,
        batches=order.batches,
        learning_rate=budget.learning_rate,
        warmup=settings.warmup,
        schedule=settings.schedule,
        weight_decay=settings.weight_decay,
        clip=settings.max_grad_norm,
        log_every=settings.log_every,
        validate_every=budget.validate_every,
        patience=None if settings.patience is None else -(-settings.patience // max(1, settings.evaluate_every)),
        checkpoint_every=settings.checkpoint_every,
        identity=hash_of({"settings": identity, **asdict(budget)}),
        keep=settings.keep,
        checkpoint_seconds=60 * settings.checkpoint_minutes,
        micro_batch=settings.micro_batch_size,
    )


def make_accelerator(settings: TrainConfig, backbone: Backbone, out: Path, stage: str) -> Accelerator:
    """Device, precision and trackers as accelerate handles them.

    The backbone brings its own dtype and the trained modules are fp32, so autocast stays off; only a float16 backbone
    on a GPU needs accelerate's loss scaling.

    Raises:
        ConfigError: a tracker whose package is not installed.
    """
    installed = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in settings.trackers if name not in installed]
    if missing:
        raise ConfigError(
            f"{stage}.trackers names {', '.join(missing)}, which is not installed",
            f"one of {', '.join(sorted(installed)) or 'none (no tracker is installed)'}",
            f"Install it: pip install {missing[0].replace('_', '-')}",
        )
    scaled = backbone.dtype == torch.float16 and backbone.device.type == "cuda"
    return Accelerator(
        cpu=backbone.device.type == "cpu",
        mixed_precision="fp16" if scaled else "no",
        log_with=list(settings.trackers) or None,
        project_dir=out,
    )
