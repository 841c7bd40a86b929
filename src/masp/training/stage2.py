"""Stage 2: the soft prompt learns the emotion, with frozen aspect modules or without (paper, section 3.3)."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from masp.adapters import Adapter, AdapterInfo, load_adapter, resolve
from masp.backbones.base import Backbone
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import write_file
from masp.core.config import RunConfig
from masp.core.errors import AdapterError
from masp.core.labels import LabelStyle, render_labels
from masp.core.prompts import Questions, load_questions
from masp.core.settings import LabelOrder, PromptLoss
from masp.core.types import ImageInput
from masp.data.records import Dataset, Record, class_balance
from masp.data.splits import Batches, division_in
from masp.evaluation import metrics
from masp.model.aspect_attention import AspectRouting
from masp.model.masp_model import ActiveParts, MaspModel, init_soft_prompt
from masp.model.scoring import label_loss, score
from masp.training.checkpoints import writing
from masp.training.feature_cache import FeatureCache, VisualMemory
from masp.training.prefix_cache import PrefixCache
from masp.training.run_dir import TrainResult
from masp.training.run_stage import Outcome, Run, checkpointing, measured_at_once, run_stage
from masp.training.signals import StopRequest
from masp.training.trainer import RateScale, StepBatch, groups_of

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class QuestionSettings:
    """How the emotion is asked for.

    Attributes:
        questions: several texts; training takes them in turn, validation the first.
        labels: what to choose from, in the order of the question at evaluation.
        style: how the list of labels is printed.
        order: of the list in training: "fixed", "once" (drawn once for each text) or "shuffled" (for each example).
        seed: decides what is drawn.
    """

    questions: Questions
    labels: tuple[str, ...]
    style: LabelStyle
    order: LabelOrder
    seed: int

    def evaluation(self) -> str:
        """The question of every evaluation."""
        return self.questions.ask_emotion(render_labels(self.labels, self.style))

    def all(self) -> list[str]:
        """Every text that is asked; those with a list that is shuffled for each example are not among them."""
        texts = [self._asked(self.labels, turn) for turn in range(len(self.questions.emotion))]
        if self.order == "once":
            texts += [self._asked(self._drawn(f"{turn}"), turn) for turn in range(len(texts))]
        return list(dict.fromkeys(texts))

    def training(self, example: int, epoch: int) -> str:
        """The question for one example in one epoch."""
        turn = (example + epoch) % len(self.questions.emotion)
        if self.order == "fixed":
            return self._asked(self.labels, turn)
        return self._asked(self._drawn(f"{epoch}:{example}" if self.order == "shuffled" else f"{turn}"), turn)

    def _drawn(self, name: str) -> tuple[str, ...]:
        """The labels in an order that depends on the seed and this name alone."""
        return tuple(sorted(self.labels, key=lambda label: _digest(f"{self.seed}:{name}:{label}")))

    def _asked(self, labels: Sequence[str], turn: int) -> str:
        return self.questions.ask_emotion(render_labels(labels, self.style), turn)


class PromptStage:
    """What stage 2 trains and measures.

    Args:
        model: with the soft prompt to train, and with aspect modules if `use` has aspects.
        store: visual tokens of all images.
        examples: image numbers and labels to learn.
        validation: image numbers and labels to measure on.
        asking: how the emotion is asked for.
        use: what stands in the sequence.
        weights: what each example's loss is multiplied with.
        prefixes: what stands before the soft prompt, where it is kept; it then takes the place of visual tokens.
        at_once: images scored at once in validation.
        loss: over the tokens of the right label, or over the probabilities of all labels (`prompt.loss`).
    """

    name: str = "prompt"
    unit: str = "images"
    score: tuple[str, ...] = ("accuracy", "log_likelihood")

    def __init__(
        self,
        model: MaspModel,
        store: FeatureCache,
        examples: Sequence[tuple[int, str]],
        validation: Sequence[tuple[int, str]],
        asking: QuestionSettings,
        use: ActiveParts,
        weights: Float[Tensor, " examples"] | None = None,
        prefixes: PrefixCache | None = None,
        at_once: int = 1,
        loss: PromptLoss = "answer",
    ) -> None:
        self.model, self.store, self.examples, self.validation = model, store, examples, validation
        self.asking, self.use, self.weights, self.prefixes = asking, use, weights, prefixes
        self.at_once, self.loss, self.lr_scales = at_once, loss, dict[str, float]()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The soft prompt, and the gates of `method.routing`."""
        assert self.model.prompt is not None
        gates = {} if self.model.routing is None else dict(self.model.routing.named_parameters(prefix="routing"))
        return {"vectors": self.model.prompt.vectors, **gates}

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Adds the visual tokens of each image, or what is kept of all that stands before the soft prompt."""
        return (replace(share, loaded=seen) for share, seen in self._given(shares, self._images, self._asked))

    def _images(self, share: StepBatch) -> list[int]:
        return [self.examples[index][0] for index in share.examples]

    def _asked(self, share: StepBatch) -> list[str]:
        return [self.asking.training(index, share.epoch) for index in share.examples]

    def _given(
        self, items: Iterable[T], images: Callable[[T], Sequence[int]], asked: Callable[[T], Sequence[str]]
    ) -> Iterator[tuple[T, ImageInput | None]]:
        """What the model is given of one batch after the other, read ahead; None for none, as one may be empty."""
        if self.prefixes is None:
            yield from self.store.stream(items, images)
            return
        for item in items:
            indexed = images(item)
            yield item, self.prefixes.seen(indexed, asked(item)) if indexed else None

    def losses(self, share: StepBatch) -> Float[Tensor, " batch"]:
        """Cross-entropy of each image's label."""
        labels = [self.examples[index][1] for index in share.examples]
        if self.loss == "labels":
            return label_loss(self.model, share.loaded, self._asked(share), labels, self.asking.labels, self.use)
        return self.model.prompt_loss(share.loaded, self._asked(share), labels, self.use)

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Accuracy by label scores, and the mean log-likelihood of the right label, which decides between equals.

        On at least `metrics.CALIBRATION_IMAGES` images also the temperature that makes the right labels likeliest.
        """
        question, labels = self.asking.evaluation(), self.asking.labels
        groups, processes = groups_of(self.validation, self.at_once), self.store.processes
        given = self._given(
            processes.shard(groups),
            lambda group: [image for image, _ in group],
            lambda group: [question] * len(group),
        )

        def measure(group: Sequence[tuple[int, str]]) -> list[list[float]]:
            _, seen = next(given)
            assert seen is not None
            return score(self.model, seen, question, labels, self.use).tolist()

        scores = [row for rows in processes.share(groups, measure, stop) for row in rows]
        if not scores:
            return {}
        logs, targets = np.array(scores), np.array([labels.index(label) for _, label in self.validation])
        result = {
            "accuracy": float((logs.argmax(1) == targets).mean()),
            "log_likelihood": float(logs[np.arange(len(logs)), targets].mean()),
        }
        if len(logs) >= metrics.CALIBRATION_IMAGES:
            result["temperature"] = metrics.fit_temperature(logs, targets)
        return result


def train_prompt(
    config: RunConfig,
    dataset: Dataset,
    backbone: Backbone,
    aspects: Path | None,
    out: Path,
    include_aspects: bool = True,
    memory: VisualMemory | None = None,
) -> TrainResult:
    """Train a soft prompt on a labelled data set, or go on with an interrupted run.

    Args:
        config: `config.prompt` is this stage's part.
        dataset: with labelled images in its split "train"; "val", if there is one, decides which state is kept.
        backbone: stays frozen.
        aspects: an aspects adapter, or the run that made it; None trains without aspects (V+S).
        out: folder of the run.
        include_aspects: whether the adapter holds a copy of the aspects, or only names them by their hashes.
        memory: visual tokens to share with other runs on this backbone.

    Raises:
        AdapterError: the aspects do not fit the backbone, or lack one that `config.prompt.aspects` names.
        DataError: no image has a label, or too many images are bad.
        UsageError: `out` belongs to another run.
        CheckpointError: the disk refuses to be written.
        Interrupted: a signal arrived; the checkpoint is written.
    """
    config = config.ready_for("prompt") if config.method.prompt_length == 0 else config
    adapter = None if aspects is None or not config.prompt.aspects else load_adapter(aspects, backbone)
    if adapter is None:
        log.info("training without aspects (V+S): the model sees the image and the soft prompt only")
    else:
        config = _with_method_of(adapter, config, str(aspects))
        log.info("training with the aspects %s", ", ".join(_used(adapter, config)))
    hashes = {} if adapter is None else {name: adapter.info.aspects_sha256[name] for name in _used(adapter, config)}
    extra = {"aspects_sha256": hashes, "include_aspects": include_aspects}
    prepare = partial(_prepare, adapter=adapter, home=None if adapter is None else aspects)
    return run_stage(config, config.prompt, "prompt", dataset, backbone, out, prepare, extra, include_aspects, memory)


def _with_method_of(adapter: Adapter, config: RunConfig, where: str) -> RunConfig:
    """The settings with queries and attention as the aspect modules have them.

    Raises:
        AdapterError: a wanted aspect is not in the adapter.
    """
    if adapter.aspects is None:
        raise AdapterError(f"{where} holds no aspect modules", "an aspects adapter", "Name one, or --aspects none.")
    wanted = config.prompt.aspects
    missing = [name for name in wanted if name not in adapter.aspects.aspects]
    if missing and wanted != ASPECTS:  # by default all that are there take part
        raise AdapterError(
            f"{where} has no module for {', '.join(missing)}",
            f"some of {', '.join(adapter.aspects.aspects)}",
            "Correct prompt.aspects, or train these aspects.",
        )
    own = {"queries": adapter.aspects.queries, "attention": adapter.aspects.attention}
    return config.model_copy(update={"method": config.method.resolved().model_copy(update=own)})


def _used(adapter: Adapter, config: RunConfig) -> tuple[str, ...]:
    """The aspects that take part, in the order of the adapter."""
    assert adapter.aspects is not None
    return tuple(name for name in adapter.aspects.aspects if name in config.prompt.aspects)


def _keep_division(run: Run, adapter: Adapter, home: Path) -> None:
    """Keep what the aspects were trained on beside the prompt's own division, so that an evaluation knows both.

    Raises:
        CheckpointError: the disk refuses to be written.
    """
    record = adapter.info.data.get("aspects")
    if record is None or record.fingerprint == run.dataset.fingerprint():
        return
    division = division_in(resolve(home).parent, record.fingerprint)
    if division is None:  # the aspects were taken out of their run
        return
    with writing(run.folder.aspects_splits):
        write_file(run.folder.aspects_splits, division.file.read_bytes())


def _prepare(run: Run, adapter: Adapter | None, home: Path | None) -> Outcome:
    if adapter is not None and home is not None:
        run.processes.on_main(partial(_keep_division, run, adapter, home))
    settings, method, labels = run.config.prompt, run.method, run.dataset.labels
    used = () if adapter is None else _used(adapter, run.config)
    train = [record for record in run.dataset.split("train") if record.label is not None]
    held = [record for record in run.dataset.splits.get("val", ()) if record.label is not None]
    store, indexed = run.store({"train": train, "val": held})
    balance = class_balance([record for _, record in indexed["train"]], labels)
    log.info("labels of the training images:\n%s", balance.text())
    weights = None
    if settings.class_weights == "balanced":
        weights = torch.tensor([balance.weights[record.label or ""] for _, record in indexed["train"]])
    questions = load_questions(run.config.questions)
    assert method.label_list is not None
    assert method.label_order is not None
    asking = QuestionSettings(questions, labels, method.label_list, method.label_order, settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    prompt = init_soft_prompt(settings.init, method.prompt_length, run.backbone, generator)
    modules = None if adapter is None else adapter.aspects
    if modules is not None:
        modules.requires_grad_(False)
    routing = AspectRouting(used, generator) if method.routing and used else None
    model = MaspModel(run.backbone, method, modules, prompt, questions, checkpointing(settings), routing)
    learned, measured = _labelled(indexed["train"]), _labelled(indexed["val"])
    prefixes = run.kept(store, model, ActiveParts(used), asking.all(), len(learned), asking.order == "shuffled")
    stage = PromptStage(
        model,
        store,
        learned,
        measured,
        asking,
        ActiveParts(used),
        weights,
        prefixes,
        measured_at_once(settings, run.backbone.dim),
        settings.loss,
    )
    before = adapter.info if adapter is not None else None
    info = AdapterInfo(
        backbone=run.backbone_record(),
        method=method,
        aspects=used,
        labels=labels,
        image_transform=run.backbone.image_transform,
        longest_side=run.config.data.longest_side,
        questions=run.first_questions(questions),
        data={**(before.data if before else {}), "prompt": run.data_record(indexed)},
        seeds={**(before.seeds if before else {}), "prompt": settings.seed},
        metrics=dict(before.metrics) if before else {},
        training=dict(before.training) if before else {},
    )
    lengths = run.lengths(store, [image for image, _ in learned]) if settings.bucketed else None
    order = Batches(len(learned), settings.batch_size, settings.seed, lengths)
    spread = run.backbone.embedding_std()
    scale = RateScale(spread, spread, "the embeddings")
    return Outcome(stage, store, order, info, modules, model.prompt, scale, settings.init, model.routing)


def _labelled(indexed: Sequence[tuple[int, Record]]) -> list[tuple[int, str]]:
    return [(index, record.label or "") for index, record in indexed]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
