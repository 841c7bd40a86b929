"""What the tuned systems share: LoRA layers that learn answers to questions about images, and answer the emotion.

Training goes through assembly and the backbone's own pass, as stage 2 does, but with a graph over the whole row: every
block has trained layers, so nothing of a row can be computed beforehand. Loop, checkpoints and run folder are those of
the two stages.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from masp.adapters import tensors_sha256
from masp.adapters.info import BackboneRecord
from masp.backbones.base import Backbone
from masp.baselines.base import Images, Lesson, Lessons, Said, named
from masp.baselines.lora_layers import LoraLayers, LoraSettings, natural_rate
from masp.baselines.plain import deciding
from masp.core.config import MethodConfig
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.labels import render_labels, validate_labels
from masp.core.prompts import Questions, load_questions
from masp.core.settings import TrainConfig
from masp.core.types import VisualTokens
from masp.data.sampling import Batches
from masp.model.masp_model import MaspModel, Use
from masp.model.scoring import generate, longest_answer, score
from masp.training.checkpoints import Checkpoint, CheckpointStore
from masp.training.run_dir import RunFolder, TrainResult, hash_of, reading
from masp.training.run_stage import loop_settings, make_accelerator, measured_at_once
from masp.training.signals import StopRequest
from masp.training.trainer import Share, Trainer, groups_of

log = logging.getLogger(__name__)

PLAIN = Use(aspects=(), prompt=False)
LEARNED = "learned"  # folder of what was learned, inside the system's own
CLASSIFICATION = "classification"


@dataclass(frozen=True)
class Turn:
    """One question about an image, with its answer.

    Attributes:
        image: its number among the images of the lessons.
        kind: what kind of question it is, for the account.
        questions: texts that ask the same; epochs take them in turn.
        answer: what is to be learned.
    """

    image: int
    kind: str
    questions: tuple[str, ...]
    answer: str


Teach = Callable[[Questions, tuple[str, ...], Sequence[Lesson]], list[Turn]]
"""What lessons become, by the texts and the labels: the one thing in which the tuned systems differ."""


def emotion_questions(questions: Questions, labels: Sequence[str]) -> tuple[str, ...]:
    """Every text that asks for the emotion, with the labels in place; the first is that of every evaluation."""
    rendered = render_labels(labels)
    return tuple(questions.ask_emotion(rendered, turn) for turn in range(len(questions.emotion)))


def classifications(questions: Questions, labels: tuple[str, ...], lessons: Sequence[Lesson]) -> list[Turn]:
    """The emotion question about each image, with the label as its answer."""
    asked = emotion_questions(questions, labels)
    return [Turn(lesson.image, CLASSIFICATION, asked, lesson.label) for lesson in lessons]


class TuningStage:
    """What the training loop sees of the tuned systems.

    Args:
        model: the backbone with nothing spliced in.
        layers: what is trained.
        images: visual tokens.
        turns: what is learned.
        val: what is measured on, by the emotion question.
        question: the emotion question of every evaluation.
        labels: what it chooses from.
        at_once: images scored at once in validation.
    """

    name: str = "tuning"
    unit: str = "questions"
    score: tuple[str, ...] = ("accuracy", "log_likelihood")

    def __init__(
        self,
        model: MaspModel,
        layers: LoraLayers,
        images: Images,
        turns: Sequence[Turn],
        val: Sequence[Lesson],
        question: str,
        labels: tuple[str, ...],
        at_once: int,
    ) -> None:
        self.model, self.layers, self.images = model, layers, images
        self.turns, self.val, self.question, self.labels = turns, val, question, labels
        self.at_once = at_once

    def parameters(self) -> dict[str, nn.Parameter]:
        """Both matrices of every LoRA layer."""
        return self.layers.parameters()

    def weights(self) -> Float[Tensor, " examples"] | None:
        """Every question counts the same."""
        return None

    def load(self, shares: Iterable[Share]) -> Iterator[Share]:
        """Adds the visual tokens of each question's image."""
        stream = self.images.stream(shares, lambda share: [self.turns[number].image for number in share.examples])
        return (replace(share, loaded=visual) for share, visual in stream)

    def losses(self, share: Share) -> Float[Tensor, " batch"]:
        """Cross-entropy of each answer and its end of turn."""
        turns = [(number, self.turns[number]) for number in share.examples]
        questions = [turn.questions[(number + share.epoch) % len(turn.questions)] for number, turn in turns]
        return tuning_loss(self.model, self.layers, share.loaded, questions, [turn.answer for _, turn in turns])

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Accuracy by label scores, and the mean log-likelihood of the right label, which decides between equals."""
        right, likelihood = 0, 0.0
        groups = stop.between(groups_of(self.val, self.at_once))
        for group, visual in self.images.stream(groups, lambda group: [lesson.image for lesson in group]):
            assert visual is not None
            with self.layers.inside():
                scores = score(self.model, visual, self.question, self.labels, PLAIN)
            truth = torch.tensor([self.labels.index(lesson.label) for lesson in group], device=scores.device)
            right += int((scores.argmax(1) == truth).sum())
            likelihood += float(scores.gather(1, truth[:, None]).cpu().double().sum())
        count = len(self.val)
        return {"accuracy": right / count, "log_likelihood": likelihood / count} if count else {}


def tuning_loss(
    model: MaspModel, layers: LoraLayers, visual: VisualTokens, questions: Sequence[str], answers: Sequence[str]
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of each row over the tokens of its answer; the graph reaches both matrices of every layer."""
    assembled = model.assemble(visual, questions, answers, PLAIN)
    with layers.inside(training=True):
        return model.loss(replace(assembled, prefix_end=0, common=0))  # no column comes before what is trained


class TunedSystem:
    """A backbone with LoRA layers of its own, which learns answers to questions and then names emotions.

    Args:
        kind: what kind of system learns, for its folder and the log.
        teach: makes the questions of the lessons.
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        questions: texts; None: the package's own. Training takes the emotion texts in turn, answers use the first.
        packed: what it is called in results over 4-bit weights; over others, and without it, its kind.

    Raises:
        UsageError: PEFT is not installed, or the settings do not fit the backbone.
        DataError: labels that cannot be told apart.
    """

    def __init__(
        self,
        kind: str,
        teach: Teach,
        backbone: Backbone,
        labels: Sequence[str],
        settings: LoraSettings,
        questions: Questions | None = None,
        packed: str = "",
    ) -> None:
        self.kind, self.teach, self.backbone = kind, teach, backbone
        rate = natural_rate(backbone.dim) if settings.learning_rate is None else settings.learning_rate
        self.settings = replace(settings, learning_rate=rate)
        self.labels = validate_labels(labels)
        self.questions = load_questions() if questions is None else questions
        self.layers = LoraLayers(backbone, settings)
        again = partial(self.layers.inside, training=True) if settings.gradient_checkpointing else None
        self.model = MaspModel(backbone, MethodConfig(prompt_length=0), again=again)
        self.question = emotion_questions(self.questions, self.labels)[0]
        self.name = packed if packed and self.layers.quantised else kind
        self._learned: dict[str, Any] | None = None

    def _check(self, lessons: Lessons) -> None:
        """Make sure that there is something to learn, and nothing else than the labels.

        Raises:
            DataError: no lessons, or a label that this system does not know.
        """
        if not lessons.train:
            raise DataError("there is nothing to learn from", "at least one labelled image in the split train")
        for lesson in (*lessons.train, *lessons.val):
            if lesson.label not in self.labels:
                raise DataError(
                    f"the label '{lesson.label}' is none of this system's", "", did_you_mean(lesson.label, self.labels)
                )

    def learn(self, lessons: Lessons) -> None:
        """Train on what the lessons teach, go on with an interrupted run, or load what a finished one learned.

        Raises:
            DataError: no lessons, or a label that this system does not know.
            UsageError: the folder belongs to another run.
            CheckpointError: the disk refuses to be written, or another process is using the folder.
            Interrupted: a signal arrived; the checkpoint is written.
        """
        self._check(lessons)
        turns = self.teach(self.questions, self.labels, lessons.train)
        identity = self._identity(lessons, turns)
        folder, kept = RunFolder(lessons.out), CheckpointStore(lessons.out / LEARNED, keep=1)
        with StopRequest() as stop, folder.opened(identity, asdict(self.settings)):
            kept.clean()
            found = kept.latest()
            if found is None:
                found = self._train(lessons, turns, hash_of(identity), folder, stop)
                kept.save(found)
            else:
                log.info("this run is finished already: %d steps", found.step)
            self.layers.load(found.tensors)
            self._learned = dict(found.state)

    def _train(
        self, lessons: Lessons, turns: Sequence[Turn], identity: str, folder: RunFolder, stop: StopRequest
    ) -> Checkpoint:
        """What the run leaves; random numbers of dropout are its own, and everybody else's go on as they were."""
        config = self._train_config(turns, lessons.seed)
        order = Batches(len(turns), config.batch_size, lessons.seed)
        at_once = measured_at_once(config, self.backbone.dim)
        given = (lessons.images, turns, lessons.val, self.question, self.labels, at_once)
        stage = TuningStage(self.model, self.layers, *given)
        log.info("%s trains %d values on %s weights", self.kind, self.layers.count, self.layers.weights)
        device = self.backbone.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(lessons.seed)
            self.layers.start(lessons.seed)
            accelerator = make_accelerator(config, self.backbone, lessons.out, self.kind)
            loop = loop_settings(config, order, identity)
            fit = Trainer(stage, loop, CheckpointStore(folder.checkpoints), accelerator).fit(folder.metrics, stop)
        pace = fit.examples / fit.seconds if fit.seconds else 0.0
        folder.finish(TrainResult(lessons.out / LEARNED, fit.metrics, fit.steps, fit.seconds, pace))
        tensors = {name: parameter.detach().cpu() for name, parameter in self.layers.parameters().items()}
        kinds = dict(Counter(turn.kind for turn in turns))
        state = {"steps": fit.steps, "seed": lessons.seed, "images": len(lessons.train), "questions": kinds}
        return Checkpoint(fit.steps, tensors, {**state, "validation": fit.metrics})

    def _train_config(self, turns: Sequence[Turn], seed: int) -> TrainConfig:
        """The settings as the loop of the two stages takes them."""
        common = {name: value for name, value in asdict(self.settings).items() if name in TrainConfig.model_fields}
        if self.settings.counted == "emotion" and common["max_steps"] is not None:
            asked = sum(turn.kind == CLASSIFICATION for turn in turns)
            common["max_steps"] = -(-common["max_steps"] * len(turns) // asked)
        return TrainConfig(**common, seed=seed)

    def _identity(self, lessons: Lessons, turns: Sequence[Turn]) -> dict[str, Any]:
        """Everything that decides the result, as a flat table of JSON values."""
        table = {
            "system": self.kind,
            "backbone": self.backbone.fingerprint(),
            **reading(self.backbone),
            "weights": self.layers.weights,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "image_transform": self.backbone.image_transform,
            "labels": self.labels,
            "data": lessons.fingerprint,
            "questions": self.questions.fingerprint(),
            "turns": _digest([asdict(turn) for turn in turns]),
            "val": _digest([(lesson.image, lesson.label) for lesson in lessons.val]),
            "seed": lessons.seed,
            **{name: value for name, value in deciding(self.settings).items() if name != "reading"},
        }
        return json.loads(json.dumps(table))

    @torch.no_grad()
    def answer(self, visual: VisualTokens) -> list[Said]:
        """What the emotion question is answered with: log-probabilities of the labels, or the greedy text.

        Raises:
            UsageError: it has learned nothing yet.
        """
        if self._learned is None:
            raise UsageError(f"the system {self.name} has not learned yet", "", "Call learn first.")
        if self.settings.reading == "generate":
            limit = longest_answer(self.backbone, self.labels)
            with self.layers.inside():
                texts = generate(self.model, visual, self.question, PLAIN, limit)
            return [named(text, self.labels) for text in texts]
        with self.layers.inside():
            rows: list[list[float]] = score(self.model, visual, self.question, self.labels, PLAIN).tolist()
        found = [dict(zip(self.labels, row, strict=True)) for row in rows]
        return [Said(max(self.labels, key=one.__getitem__), one) for one in found]

    def describe(self) -> Mapping[str, Any]:
        """What the answers depend on, ready for JSON; once it has learned, with seed and hash of its tensors."""
        found = self._learned
        known = {} if found is None else {"tensors_sha256": tensors_sha256(self.layers.parameters())}
        return {
            "system": self.name,
            "backbone": BackboneRecord.of(self.backbone).model_dump(mode="json"),
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "weights": self.layers.weights,
            "trained": self.layers.count,
            "settings": deciding(self.settings),
            "labels": list(self.labels),
            "question": self.question,
            "seed": None if found is None else found["seed"],
            "learned": found,
            **known,
        }


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
