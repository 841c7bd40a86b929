"""LoRA layers that learn answers to questions about images, and answer the emotion question (paper, Table 4).

"Q" is a frozen backbone in 4 bits. The layers run on whatever the backbone was loaded in, and `config` says which:
"qlora" over 4-bit weights, "lora" over all others. Rank 8 on the query and value projections of Qwen2-VL-7B are
2,523,136 trained values, 22 times the 114,688 of a soft prompt of 32 vectors.

Training goes through assembly and the backbone's own pass, as stage 2 does, but with a graph over the whole row: every
block has trained layers, so nothing of a row can be computed beforehand. Loop, checkpoints and run folder are those of
the two stages.
"""

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
from masp.baselines.base import (
    Example,
    Images,
    LabelScore,
    SystemPrediction,
    TrainingData,
    deciding,
    named,
    predictions_of,
)
from masp.baselines.learning import check_training_data
from masp.baselines.lora_layers import LoraLayers, LoraSettings, natural_rate
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import fingerprint
from masp.core.config import MethodConfig
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.labels import render_labels, validate_labels
from masp.core.prompts import Questions, load_questions
from masp.core.settings import TrainConfig
from masp.core.types import VisualTokens
from masp.data.splits import Batches
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import generate, longest_answer, score
from masp.training.checkpoints import Checkpoint, CheckpointStore
from masp.training.run_dir import RunFolder, TrainResult, hash_of, reading
from masp.training.run_stage import loop_settings, make_accelerator, measured_at_once
from masp.training.signals import StopRequest
from masp.training.trainer import StepBatch, Trainer, groups_of

log = logging.getLogger(__name__)

PLAIN = ActiveParts(aspects=(), prompt=False)
LEARNED = "learned"  # folder of what was learned, inside the system's own
CLASSIFICATION = "classification"


@dataclass(frozen=True)
class TrainingTurn:
    """One question about an image, with its answer."""

    image: int  # its number among the images of the training data
    kind: str  # what kind of question it is, for the account
    questions: tuple[str, ...]  # texts that ask the same; epochs take them in turn
    answer: str  # what is to be learned


Teach = Callable[[Questions, tuple[str, ...], Sequence[Example]], list[TrainingTurn]]
"""What examples become, by the texts and the labels: the one thing in which the tuned systems differ."""


def emotion_questions(questions: Questions, labels: Sequence[str]) -> tuple[str, ...]:
    """Every text that asks for the emotion, with the labels in place; the first is that of every evaluation."""
    rendered = render_labels(labels)
    return tuple(questions.ask_emotion(rendered, turn) for turn in range(len(questions.emotion)))


def classifications(questions: Questions, labels: tuple[str, ...], examples: Sequence[Example]) -> list[TrainingTurn]:
    """The emotion question about each image, with the label as its answer."""
    asked = emotion_questions(questions, labels)
    return [TrainingTurn(example.image, CLASSIFICATION, asked, example.label) for example in examples]


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
    weights: Float[Tensor, " examples"] | None = None

    def __init__(
        self,
        model: MaspModel,
        layers: LoraLayers,
        images: Images,
        turns: Sequence[TrainingTurn],
        val: Sequence[Example],
        question: str,
        labels: tuple[str, ...],
        at_once: int,
    ) -> None:
        self.model, self.layers, self.images = model, layers, images
        self.turns, self.val, self.question, self.labels = turns, val, question, labels
        self.at_once, self.lr_scales = at_once, dict[str, float]()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Both matrices of every LoRA layer."""
        return self.layers.parameters()

    def load(self, shares: Iterable[StepBatch]) -> Iterator[StepBatch]:
        """Adds the visual tokens of each question's image."""
        stream = self.images.stream(shares, lambda share: [self.turns[number].image for number in share.examples])
        return (replace(share, loaded=visual) for share, visual in stream)

    def losses(self, share: StepBatch) -> Float[Tensor, " batch"]:
        """Cross-entropy of each answer and its end of turn."""
        turns = [(number, self.turns[number]) for number in share.examples]
        questions = [turn.questions[(number + share.epoch) % len(turn.questions)] for number, turn in turns]
        return tuning_loss(self.model, self.layers, share.loaded, questions, [turn.answer for _, turn in turns])

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """Accuracy by label scores, and the mean log-likelihood of the right label, which decides between equals."""
        result = LabelScore()
        groups = stop.between(groups_of(self.val, self.at_once))
        for group, visual in self.images.stream(groups, lambda group: [example.image for example in group]):
            assert visual is not None
            with self.layers.inside():
                scores = score(self.model, visual, self.question, self.labels, PLAIN)
            result.add(scores, [self.labels.index(example.label) for example in group])
        return result.figures()


def tuning_loss(
    model: MaspModel, layers: LoraLayers, visual: VisualTokens, questions: Sequence[str], answers: Sequence[str]
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of each row over the tokens of its answer; the graph reaches both matrices of every layer."""
    assembled = model.build_inputs(visual, questions, answers, PLAIN)
    with layers.inside(training=True):
        return model.loss(replace(assembled, prefix_end=0, common=0))  # no column comes before what is trained


class LoraFinetuned:
    """A backbone with LoRA layers of its own, which learns answers to questions and then names emotions.

    Args:
        kind: what kind of system learns, for its folder and the log.
        teach: makes the questions of the examples.
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

    def fit(self, examples: TrainingData) -> None:
        """Train on the examples, go on with an interrupted run, or load what a finished one learned.

        Raises:
            DataError: no examples, or a label that this system does not know.
            UsageError: the folder belongs to another run.
            CheckpointError: the disk refuses to be written, or another process is using the folder.
            Interrupted: a signal arrived; the checkpoint is written.
        """
        check_training_data(examples, self.labels)
        turns = self.teach(self.questions, self.labels, examples.train)
        identity = self._identity(examples, turns)
        folder, checkpoints = RunFolder(examples.out), CheckpointStore(examples.out / LEARNED, keep=1)
        with StopRequest() as stop, folder.opened(identity, asdict(self.settings)):
            checkpoints.clean()
            checkpoint = checkpoints.latest()
            if checkpoint is None:
                checkpoint = self._train(examples, turns, hash_of(identity), folder, stop)
                checkpoints.save(checkpoint)
            else:
                log.info("this run is finished already: %d steps", checkpoint.step)
            self.layers.load(checkpoint.tensors)
            self._learned = dict(checkpoint.state)

    def _train(
        self, examples: TrainingData, turns: Sequence[TrainingTurn], identity: str, folder: RunFolder, stop: StopRequest
    ) -> Checkpoint:
        """What the run leaves; random numbers of dropout are its own, and everybody else's go on as they were."""
        config = self._train_config(turns, examples.seed)
        order = Batches(len(turns), config.batch_size, examples.seed)
        at_once = measured_at_once(config, self.backbone.dim)
        given = (examples.images, turns, examples.val, self.question, self.labels, at_once)
        stage = TuningStage(self.model, self.layers, *given)
        log.info("%s trains %d values on %s weights", self.kind, self.layers.count, self.layers.weights)
        device = self.backbone.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(examples.seed)
            self.layers.start(examples.seed)
            accelerator = make_accelerator(config, self.backbone, examples.out, self.kind)
            loop = loop_settings(config, order, identity)
            fit = Trainer(stage, loop, CheckpointStore(folder.checkpoints), accelerator).fit(folder.metrics, stop)
        pace = fit.examples / fit.seconds if fit.seconds else 0.0
        folder.finish(TrainResult(examples.out / LEARNED, fit.metrics, fit.steps, fit.seconds, pace))
        tensors = {name: parameter.detach().cpu() for name, parameter in self.layers.parameters().items()}
        kinds = dict(Counter(turn.kind for turn in turns))
        state = {"steps": fit.steps, "seed": examples.seed, "images": len(examples.train), "questions": kinds}
        return Checkpoint(fit.steps, tensors, {**state, "validation": fit.metrics})

    def _train_config(self, turns: Sequence[TrainingTurn], seed: int) -> TrainConfig:
        """The settings as the loop of the two stages takes them."""
        common = {name: value for name, value in asdict(self.settings).items() if name in TrainConfig.model_fields}
        if self.settings.counted == "emotion" and common["max_steps"] is not None:
            asked = sum(turn.kind == CLASSIFICATION for turn in turns)
            common["max_steps"] = -(-common["max_steps"] * len(turns) // asked)
        return TrainConfig(**common, seed=seed)

    def _identity(self, examples: TrainingData, turns: Sequence[TrainingTurn]) -> dict[str, Any]:
        """Everything that decides the result, as a flat table of JSON values."""
        table = {
            "system": self.kind,
            "backbone": self.backbone.fingerprint(),
            **reading(self.backbone),
            "weights": self.layers.weights,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "image_transform": self.backbone.image_transform,
            "labels": self.labels,
            "data": examples.fingerprint,
            "questions": self.questions.fingerprint(),
            "turns": fingerprint([asdict(turn) for turn in turns], sort_keys=False),
            "val": fingerprint([(example.image, example.label) for example in examples.val]),
            "seed": examples.seed,
            **{name: value for name, value in deciding(self.settings).items() if name != "reading"},
        }
        return json.loads(json.dumps(table))

    @torch.no_grad()
    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """What the emotion question is answered with: log-probabilities of the labels, or the greedy text.

        Raises:
            UsageError: it has learned nothing yet.
        """
        if self._learned is None:
            raise UsageError(f"the system {self.name} has not learned yet", "", "Call fit first.")
        if self.settings.reading == "generate":
            limit = longest_answer(self.backbone, self.labels)
            with self.layers.inside():
                texts = generate(self.model, visual, self.question, PLAIN, limit)
            return [named(text, self.labels) for text in texts]
        with self.layers.inside():
            return predictions_of(self.labels, score(self.model, visual, self.question, self.labels, PLAIN))

    def config(self) -> Mapping[str, Any]:
        """What the answers depend on, ready for JSON; once it has learned, with seed and hash of its tensors."""
        learned = self._learned
        known = {} if learned is None else {"tensors_sha256": tensors_sha256(self.layers.parameters())}
        return {
            "system": self.name,
            "backbone": BackboneRecord.of(self.backbone).model_dump(mode="json"),
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "weights": self.layers.weights,
            "trained": self.layers.count,
            "settings": deciding(self.settings),
            "labels": list(self.labels),
            "question": self.question,
            "seed": None if learned is None else learned["seed"],
            "learned": learned,
            **known,
        }


def lora_system(
    backbone: Backbone,
    labels: Sequence[str],
    settings: LoraSettings | None = None,
    questions: Questions | None = None,
) -> LoraFinetuned:
    """The emotion question, learned by LoRA layers: answer loss on the label, the list of labels in the question.

    Args:
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        questions: texts; None: the package's own.

    Raises:
        UsageError: PEFT is not installed (`pip install 'masp[peft]'`), or the settings do not fit the backbone.
    """
    settings = settings or LoraSettings()
    return LoraFinetuned("lora", classifications, backbone, labels, settings, questions, packed="qlora")


# Instruction tuning on questions built from aspect annotations: the idea of EmoVIT (CVPR 2024), as a baseline.
#
# Each annotated image becomes several questions: the emotion itself (classification), one per annotated aspect
# (conversation), a description from all of them (caption), and which cues lead to which emotion (reasoning). EmoVIT
# lets a large language model write the last three and trains the Q-Former of InstructBLIP; here all texts follow
# from the annotations by rule, and what is trained are LoRA layers, those of `lora_finetune`. At the end the
# emotion question is answered, as by every other system.
#
# EmoVIT trains four epochs with a learning rate of 1e-5. The epochs are the default here; the learning rate is that of
# LoRA, 1e-4, since other tensors are trained. An image with six aspects makes nine questions, so an epoch has up to
# nine times the steps of `lora_finetune`.

SETTINGS = LoraSettings(epochs=4)

CLAUSES: Mapping[str, str] = {
    "facial_expression": "the face looks {}",
    "object": "one sees {}",
    "scene": "the place is {}",
    "human_action": "the action is {}",
    "brightness": "the brightness is {}",
    "colorfulness": "the colorfulness is {}",
}
"""How an aspect's annotation stands in a sentence."""

CAPTION = ("Describe this image.", "What does this image show?")
REASONING = (
    "Which cues in this image lead to which of these emotions: {}?",
    "Name the cues of this image, then the emotion they evoke, one of: {}.",
)


def instruction_system(
    backbone: Backbone,
    labels: Sequence[str],
    settings: LoraSettings | None = None,
    questions: Questions | None = None,
) -> LoraFinetuned:
    """LoRA layers that learn what is annotated about an image along with its emotion.

    Images without annotations teach the emotion alone; the log says how many, and `config` counts the questions.

    Args:
        backbone: stays as it is for everybody else.
        labels: what is chosen from, in the order of the question.
        settings: what is trained, and how.
        questions: texts about aspects and emotion; None: the package's own.

    Raises:
        UsageError: PEFT is not installed (`pip install 'masp[peft]'`), or the settings do not fit the backbone.
    """
    return LoraFinetuned("instruction", instructions, backbone, labels, settings or SETTINGS, questions)


def instructions(questions: Questions, labels: tuple[str, ...], examples: Sequence[Example]) -> list[TrainingTurn]:
    """Every question that the images give, with its answer.

    Raises:
        DataError: an aspect that does not exist.
    """
    bare = sum(not _annotated(example) for example in examples)
    if bare:
        log.warning("%d of %d images have no annotated aspect: they teach their emotion alone", bare, len(examples))
    emotions, listed = classifications(questions, labels, examples), render_labels(labels)
    why = tuple(before + listed + after for before, _, after in (text.partition("{}") for text in REASONING))
    result: list[TrainingTurn] = []
    for example, emotion in zip(examples, emotions, strict=True):
        result += [emotion, *_about_aspects(questions, example, why)]
    return result


def _about_aspects(questions: Questions, example: Example, why: tuple[str, ...]) -> list[TrainingTurn]:
    """Conversation, caption and reasoning about one image; nothing where nothing is annotated."""
    aspects = _annotated(example)
    if not aspects:
        return []
    clauses = _joined([CLAUSES[name].format(answer) for name, answer in aspects.items()])
    return [
        *(
            TrainingTurn(example.image, "conversation", questions.aspect(name), answer)
            for name, answer in aspects.items()
        ),
        TrainingTurn(example.image, "caption", CAPTION, f"{clauses}."),
        TrainingTurn(example.image, "reasoning", why, f"{clauses}. This evokes {example.label}."),
    ]


def _annotated(example: Example) -> dict[str, str]:
    """The aspects with an answer, in the one order of all aspects.

    Raises:
        DataError: an aspect that does not exist.
    """
    for name in example.aspects:
        if name not in ASPECTS:
            raise DataError(f"unknown aspect '{name}'", "", did_you_mean(name, ASPECTS))
    given = ((name, example.aspects.get(name, "").strip()) for name in ASPECTS)
    return {name: answer for name, answer in given if answer}


def _joined(clauses: Sequence[str]) -> str:
    """One sentence without its full stop."""
    text = ", ".join(clauses)
    return text[0].upper() + text[1:]
