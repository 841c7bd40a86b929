"""Stage 1: aspect modules learn to say what they read, one image–aspect pair per example (paper, section 3.2)."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from masp.adapters import AdapterInfo
from masp.backbones.base import Backbone
from masp.core.config import RunConfig
from masp.core.errors import DataError
from masp.core.flops import VALIDATED
from masp.core.labels import normalise_answer
from masp.core.prompts import Questions, load_questions
from masp.data.records import Dataset, Record
from masp.data.splits import epoch_order
from masp.evaluation.metrics import set_score
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import MaspModel
from masp.model.scoring import describe_aspects
from masp.training.feature_cache import FeatureCache, VisualMemory
from masp.training.run_dir import TrainResult
from masp.training.run_stage import Outcome, Run, checkpointing, measured_at_once, run_stage
from masp.training.signals import StopRequest
from masp.training.trainer import RateScale, StepBatch, groups_of

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class AspectExample:
    """One image–aspect pair: number of the image, number of the aspect, the annotated answer."""

    image: int
    aspect: int
    answer: str


class ImageMajorOrder:
    """The order of stage 1: images are shuffled, and a batch holds all pairs of each of its images.

    So a batch of 60 holds six aspects of ten images, and where visual tokens are computed for every batch, the vision
    tower meets each image once in an epoch instead of once for each aspect. Every batch has the same number of images,
    the one whose pairs are on average nearest to `batch_size`, at least one.

    Args:
        examples: all pairs.
        batch_size: pairs per batch; the last one of an epoch may be smaller.
        seed: another seed is another order.
    """

    def __init__(self, examples: Sequence[AspectExample], batch_size: int, seed: int) -> None:
        pairs: dict[int, list[int]] = {}
        for index, example in enumerate(examples):
            pairs.setdefault(example.image, []).append(index)
        self.pairs, self.seed = list(pairs.values()), seed
        self.images = max(1, (2 * batch_size * len(self.pairs) + len(examples)) // max(1, 2 * len(examples)))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.pairs) // self.images)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[int, ...]]:
        """The batches of an epoch from number `start_batch` on; every pair is in exactly one of them."""
        order = epoch_order(len(self.pairs), self.seed, epoch)
        for start in range(start_batch * self.images, len(order), self.images):
            chosen = order[start : start + self.images]
            yield tuple(index for image in chosen for index in self.pairs[image])


class AspectStage:
    """What stage 1 trains and measures.

    Args:
        model: with the aspect modules to train.
        store: visual tokens of all images.
        examples: the pairs to learn.
        validation: image numbers and annotations to measure on.
        questions: several texts per aspect; training takes them in turn, validation the first.
        at_once: images put into words at once in validation.
        attention_rate: share of the learning rate that the queries and W_K learn at.
    """

    name: str = "aspects"
    unit: str = "pairs"
    score: tuple[str, ...] = ("score",)
    weights: Float[Tensor, " examples"] | None = None

    def __init__(
        self,
        model: MaspModel,
        store: FeatureCache,
        examples: Sequence[AspectExample],
        validation: Sequence[tuple[int, Record]],
        questions: Questions,
        at_once: int = 1,
        attention_rate: float = 1.0,
    ) -> None:
        self.model, self.store, self.examples, self.validation = model, store, examples, validation
        attention = (name for name in self.parameters() if name.endswith((".queries", ".key")))
        self.lr_scales: dict[str, float] = dict.fromkeys(attention, attention_rate)
        self.questions, self.at_once = questions, at_once
        self.aspects = model.aspect_module().aspects
        self.texts = [questions.aspect(name) for name in self.aspects]
        self.aspect_of = torch.tensor([example.aspect for example in examples])

    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors of all aspect modules."""
        return dict(self.model.aspect_module().named_parameters())

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Adds the visual tokens of the images whose pairs these are, each image once."""
        stream = self.store.stream(shares, lambda share: list(self._rows(share)))
        return (replace(share, loaded=visual) for share, visual in stream)

    def _rows(self, share: StepBatch) -> dict[int, int]:
        """The row of each image among the images of a share."""
        images = dict.fromkeys(self.examples[index].image for index in share.examples)
        return {image: row for row, image in enumerate(images)}

    def losses(self, share: StepBatch) -> Float[Tensor, " batch"]:
        """Cross-entropy of each pair's answer; only the module of its aspect gets a gradient from it."""
        chosen = [self.examples[number] for number in share.examples]
        texts = [self.texts[example.aspect] for example in chosen]
        asked = [own[(index + share.epoch) % len(own)] for index, own in zip(share.examples, texts, strict=True)]
        index, row = self.aspect_of[list(share.examples)], self._rows(share)
        images, answers = [row[example.image] for example in chosen], [example.answer for example in chosen]
        return self.model.aspect_loss(share.loaded, index, asked, answers, images)

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Share of exactly right answers per aspect, F1 of the object lists, and `score`, the mean over the aspects.

        The answers are generated from the aspect tokens alone. In `score`, objects count with their F1.
        """
        groups = groups_of(self.validation, self.at_once)
        processes = self.store.processes
        read = self.store.stream(processes.shard(groups), lambda group: [image for image, _ in group])

        def ask(group: Sequence[tuple[int, Record]]) -> list[tuple[str, str, str]]:
            _, visual = next(read)
            assert visual is not None
            wanted = [record.annotations for _, record in group]
            answered = describe_aspects(self.model, visual, self.questions, wanted=wanted)
            return [
                (name, answers[name], record.annotations[name])
                for answers, (_, record) in zip(answered, group, strict=True)
                for name in self.aspects
                if name in record.annotations
            ]

        return measured([pair for share in processes.share(groups, ask, stop) for pair in share])


def measured(pairs: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """Metrics of (aspect, answer, annotation): exact accuracies, F1 of object lists over all images, and their mean."""
    metrics: dict[str, float] = {}
    parts: list[float] = []
    for name in dict.fromkeys(aspect for aspect, _, _ in pairs):
        own = [(answer, wanted) for aspect, answer, wanted in pairs if aspect == name]
        metrics[f"accuracy/{name}"] = sum(normalise_answer(a) == normalise_answer(b) for a, b in own) / len(own)
        if name == "object":
            metrics["f1/object"] = set_score([label for _, label in own], [text for text, _ in own]).f1
        parts.append(metrics["f1/object" if name == "object" else f"accuracy/{name}"])
    return {**metrics, "score": sum(parts) / len(parts)} if parts else {}


def train_aspects(
    config: RunConfig, dataset: Dataset, backbone: Backbone, out: Path, memory: VisualMemory | None = None
) -> TrainResult:
    """Train one module per aspect on the annotations of a data set, or go on with an interrupted run.

    Args:
        config: `config.aspects` is this stage's part.
        dataset: with annotated images in its split "train"; "val", if there is one, decides which state is kept.
        backbone: stays frozen.
        out: folder of the run.
        memory: visual tokens to share with other runs on this backbone.

    Raises:
        DataError: no image is annotated with one of the aspects, or too many images are bad.
        UsageError: `out` belongs to another run.
        CheckpointError: the disk refuses to be written.
        Interrupted: a signal arrived; the checkpoint is written.
    """
    return run_stage(config, config.aspects, "aspects", dataset, backbone, out, _prepare, memory=memory)


def _prepare(run: Run) -> Outcome:
    settings, method = run.config.aspects, run.method
    names, width = settings.aspects, run.backbone.dim
    assert method.queries is not None
    assert method.attention is not None
    generator = torch.Generator().manual_seed(settings.seed)
    modules = AspectModules(width, names, method.queries, method.attention, generator, settings.query_std)
    questions = load_questions(run.config.questions)
    train = annotated_records(run.dataset.split("train"), names, settings.max_per_aspect)
    held = annotated_records(run.dataset.splits.get("val", ()), names)
    _check_annotated(train, names, run.dataset)
    store, indexed = run.store({"train": train, "val": spread(held, VALIDATED)})
    examples = [
        AspectExample(index, aspect, record.annotations[name])
        for index, record in indexed["train"]
        for aspect, name in enumerate(names)
        if name in record.annotations
    ]
    run.kept(store)
    model = MaspModel(run.backbone, method, modules, questions=questions, again=checkpointing(run.settings))
    at_once = measured_at_once(run.settings, run.backbone.dim)
    stage = AspectStage(model, store, examples, indexed["val"], questions, at_once, settings.attention_rate)
    info = AdapterInfo(
        backbone=run.backbone_record(),
        method=method,
        aspects=names,
        image_transform=run.backbone.image_transform,
        longest_side=run.config.data.longest_side,
        questions=run.first_questions(questions),
        data={"aspects": run.data_record(indexed)},
        seeds={"aspects": settings.seed},
    )
    scale = RateScale(1 / width, 1 / math.sqrt(width), "the matrices at their start")
    return Outcome(
        stage, store, ImageMajorOrder(examples, settings.batch_size, settings.seed), info, modules, None, scale
    )


def annotated_records(
    records: Sequence[Record], names: Sequence[str], most: int | Mapping[str, int] | None = None
) -> list[Record]:
    """The records that are annotated with one of these aspects; at most so many keep the answer of each."""
    answers: list[dict[str, str]] = [{} for _ in records]
    for name in names:
        own = [index for index, record in enumerate(records) if name in record.annotations]
        limit = most.get(name) if isinstance(most, Mapping) else most
        for index in own if limit is None else spread(own, limit):
            answers[index][name] = records[index].annotations[name]
    return [replace(record, annotations=own) for record, own in zip(records, answers, strict=True) if own]


def spread(records: Sequence[T], most: int) -> list[T]:
    """At most so many of the records, in their order, taken from everywhere among them; always the same ones.

    Data sets list one label behind the other, so that the first ones would all be of one label.
    """
    chosen = epoch_order(len(records), seed=0, epoch=0)[:most]
    return [records[index] for index in sorted(chosen)]


def _check_annotated(records: Sequence[Record], names: Sequence[str], dataset: Dataset) -> None:
    """Report how many images show each aspect.

    Raises:
        DataError: none shows one of them.
    """
    counts = Counter(name for record in records for name in record.annotations)
    missing = [name for name in names if not counts[name]]
    if missing:
        raise DataError(
            f"no training image of {dataset.name} is annotated with {', '.join(missing)}",
            "annotations to learn each aspect from, as in EmoSet",
            "Use an annotated data set, or name the aspects it has: aspects.aspects=[scene, object].",
        )
    log.info("annotated images: %s", ", ".join(f"{name} {counts[name]:,}" for name in names))
