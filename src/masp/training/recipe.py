"""What both stages have in common from an opened data set to a finished adapter."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from masp.adapters import AdapterInfo, BackboneRecord, DataRecord, save_adapter
from masp.backbones.base import Backbone
from masp.config import MethodConfig, RunConfig
from masp.data.records import Dataset, Record
from masp.data.sampling import Batches
from masp.data.splits import write_split
from masp.errors import ConfigError
from masp.modules.aspect_attention import AspectModules
from masp.modules.soft_prompt import SoftPrompt
from masp.questions import EMOTION, Questions, load_questions
from masp.settings import FREE, Settings, TrainConfig
from masp.storage import write_file
from masp.training.checkpoints import CheckpointStore, unwritable
from masp.training.features import GIGA, Reading, VisualTokenStore, account_lines
from masp.training.interrupts import StopRequest
from masp.training.loop import LoopSettings, Stage, Trainer
from masp.training.runs import RunFolder, TrainResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a stage prepares: what is trained, on how many examples, and how the result is saved."""

    stage: Stage
    examples: int
    info: AdapterInfo
    aspects: AspectModules | None
    prompt: SoftPrompt | None


@dataclass(frozen=True)
class Run:
    """One run of one stage, with what both stages need of it."""

    config: RunConfig
    settings: TrainConfig
    dataset: Dataset
    backbone: Backbone
    folder: RunFolder
    stop: StopRequest

    @property
    def method(self) -> MethodConfig:
        """The variant with every choice filled in."""
        return self.config.method.resolved()

    def store(
        self, splits: Mapping[str, Sequence[Record]]
    ) -> tuple[VisualTokenStore, dict[str, list[tuple[int, Record]]]]:
        """Read all images once.

        Returns:
            The store, and for every split its usable records with their numbers in the store.

        Raises:
            DataError: too many images are bad, or none is left to train on.
        """
        records = [(name, record) for name, chosen in splits.items() for record in chosen]
        store = VisualTokenStore(self.backbone, [record.path for _, record in records], self._reading())
        account = store.fill(self.stop)
        log.info("images: %s", account.summary())
        try:
            write_file(self.folder.quarantine, account_lines(account))
        except OSError as error:
            raise unwritable(error, self.folder.quarantine) from error
        numbers: dict[str, list[tuple[int, Record]]] = {name: [] for name in splits}
        for number, (name, record) in enumerate(records):
            if store.usable[number]:
                numbers[name].append((number, record))
        if not numbers.get("val"):
            log.warning("there is no validation split: the last state is kept, and nothing is measured")
        return store, numbers

    def _reading(self) -> Reading:
        budget = int(self.settings.feature_memory_gb * GIGA)
        return Reading(self.config.data.longest_side, self.config.data.workers, budget, self.settings.strict)

    def backbone_record(self) -> BackboneRecord:
        """The backbone as an adapter names it."""
        b = self.backbone
        return BackboneRecord(name=b.name, revision=b.revision, family=b.family, fingerprint=b.fingerprint(), dim=b.dim)

    def data_record(self, numbers: Mapping[str, Sequence[object]]) -> DataRecord:
        """The data set as an adapter names it."""
        images = {name: len(used) for name, used in numbers.items()}
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
) -> TrainResult:
    """One run from an opened data set to a finished adapter; `extra` joins what has to be equal to go on with it."""
    folder = RunFolder(out)
    identity = identity_of(config, settings, stage, dataset, backbone) | dict(extra or {})
    with StopRequest() as stop, folder.opened(identity, config.model_dump(mode="json")) as finished:
        if finished is not None:
            log.info("this run is finished already: %s", finished.adapter)
            return finished
        write_split(folder.splits, dataset)
        outcome = prepare(Run(config, settings, dataset, backbone, folder, stop))
        accelerator = make_accelerator(settings, backbone, out, stage, identity)
        checkpoints = CheckpointStore(folder.checkpoints, settings.keep_checkpoints)
        checkpoints.clean()
        loop = loop_settings(settings, outcome.examples, hash_of(identity))
        fit = Trainer(outcome.stage, loop, checkpoints, accelerator).fit(folder.metrics, stop)
        accelerator.end_training()
        metrics = {f"{stage}/{name}": value for name, value in fit.metrics.items()}
        info = outcome.info.model_copy(update={"metrics": {**outcome.info.metrics, **metrics}})
        save_adapter(folder.adapter, info, outcome.aspects, outcome.prompt, include_aspects)
        pace = fit.examples / fit.seconds if fit.seconds else 0.0
        result = TrainResult(folder.adapter, fit.metrics, fit.steps, fit.seconds, pace)
        folder.finish(result)
        return result


def identity_of(
    config: RunConfig, settings: TrainConfig, stage: str, dataset: Dataset, backbone: Backbone
) -> dict[str, Any]:
    """Everything that decides a run's result, as a flat table of JSON values."""
    resolved = config.method.resolved()
    table = {
        "stage": stage,
        "backbone": backbone.fingerprint(),
        "backbone.dtype": str(backbone.dtype).removeprefix("torch."),
        "data": dataset.fingerprint(),
        "questions": load_questions(config.questions).fingerprint(),
        **_flat("method", resolved),
        **_flat("data", config.data),
        **_flat(stage, settings),
    }
    return json.loads(json.dumps(table))


def _flat(prefix: str, settings: Settings) -> dict[str, Any]:
    """Settings that decide the result, each under its dotted name."""
    table: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if field.json_schema_extra == FREE:
            continue
        table |= _flat(f"{prefix}.{name}", value) if isinstance(value, Settings) else {f"{prefix}.{name}": value}
    return table


def hash_of(identity: Mapping[str, Any]) -> str:
    """One hash of an identity, for the checkpoints."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def loop_settings(settings: TrainConfig, examples: int, identity: str) -> LoopSettings:
    """What the loop needs to know, with everything counted in steps."""
    order = Batches(examples, settings.batch_size, settings.seed)
    steps = settings.epochs * order.per_epoch
    return LoopSettings(
        steps=min(steps, settings.max_steps or steps),
        steps_per_epoch=order.per_epoch,
        batches=order.batches,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        schedule=settings.schedule,
        weight_decay=settings.weight_decay,
        clip=None,
        log_every=settings.log_every,
        validate_every=settings.evaluate_every * order.per_epoch,
        patience=settings.patience,
        checkpoint_every=settings.checkpoint_every,
        identity=identity,
    )


def make_accelerator(
    settings: TrainConfig, backbone: Backbone, out: Path, stage: str, identity: Mapping[str, Any]
) -> Accelerator:
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
    accelerator = Accelerator(
        cpu=backbone.device.type == "cpu",
        mixed_precision="fp16" if scaled else "no",
        log_with=list(settings.trackers) or None,
        project_dir=out,
    )
    if settings.trackers:
        accelerator.init_trackers(f"masp-{stage}", config={k: v for k, v in identity.items() if _plain(v)})
    return accelerator


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)
