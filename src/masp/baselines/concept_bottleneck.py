"""A concept bottleneck: the annotated words that the aspects' tokens show, added up beside the scores of a soft prompt.

A variant of MASP under its own name, not in the paper: a bottleneck (Koh et al., ICML 2020) on aspect modules as stage
1 left them. Nothing of the backbone, the aspects or the soft prompt is trained again. It needs what stage 1 needs,
images with annotated aspects.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from masp.adapters import AdapterInfo, DataRecord, find_adapter, load_adapter, save_adapter, tensors_sha256
from masp.backbones.base import Backbone
from masp.baselines.base import System, SystemPrediction, TrainingData, plain, predictions_of
from masp.baselines.learning import (
    SMALLEST,
    Study,
    check_training_data,
    make_annotated_data,
    studying,
    unlearned,
)
from masp.baselines.probe import figures, fitted, logits
from masp.baselines.prompted import Prompted, prompted
from masp.baselines.word_regression import present, read_words, vocabulary, words_of
from masp.core.errors import UsageError
from masp.core.labels import validate_labels
from masp.core.prompts import Questions
from masp.core.setting_types import Positive
from masp.core.types import VisualTokens
from masp.data.readers.open_dataset import open_dataset
from masp.data.records import Dataset
from masp.evaluation.metrics import fit_temperature
from masp.model.concepts import IMAGE, LABELS, RESIDUAL, ConceptHead, folded
from masp.model.masp_model import MaspModel
from masp.predictor import Masp
from masp.training.checkpoints import Checkpoint, CheckpointStore
from masp.training.run_dir import RunFolder, compare, hash_of, reading

log = logging.getLogger(__name__)

NAME = "concepts"
Penalty = Annotated[float, Field(gt=0)]
LEAST_SPREAD = 0.05  # of a word's probability over the images: one that hardly any shows has no large effect
PLACES = ("aspects", "prompt", "task", "words")  # where adapters and data are; what lies there is told by its hash


@dataclass(frozen=True)
class ConceptBottleneckSettings:
    """How the bottleneck is fitted.

    Attributes:
        aspects: an aspects adapter, its run or its id on a hub.
        prompt: a prompt adapter whose scores are added up too where that makes validation likelier; what is written
            holds it either way. None: no language model has a part in the answer.
        task: which task of a prompt adapter with several.
        words: a data set with annotated aspects to learn the words from, in any layout; None: the images with labels,
            which are annotated too.
        fewest: a word that fewer images are annotated with is left out.
        absent: with `words`, aspects whose words an image lacks if it is annotated with other aspects only, such
            as facial expressions on photographs of places; of other aspects nothing is known there.
        penalties: of the words' regressions; the training images decide for each aspect, each left out in turn.
        residual: whether the labels are read from the aspect tokens too, not from words and scores alone, and from the
            vision tower's features of the whole image where the backbone gives them. No bottleneck any more (PCBM-h of
            Yuksekgonul et al., 2023), but what each aspect adds is as exact.
        token_scale: what the standardised aspect tokens are multiplied with before a residual reads them: below 1 their
            weights are penalised more than those of words and image.
        refit: once val has chosen, by the likelihood after temperature scaling, the labels are learned from train and
            val together; the temperature that val gave before is kept.
        strengths: inverse strengths of the L2 penalty of the labels; validation chooses.
        without_val: C of the labels where there is no validation split.
        iterations: most iterations of L-BFGS for the labels.
    """

    aspects: str | None = None
    prompt: str | None = None
    task: str | None = None
    words: str | None = None
    fewest: Positive = 20
    absent: tuple[str, ...] = ()
    residual: bool = False
    token_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    refit: bool = False
    penalties: Annotated[tuple[Penalty, ...], Field(min_length=1)] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    without_val: float = 0.1
    iterations: Positive = 1000


@dataclass(frozen=True)
class ConceptEffect:
    """One word of one aspect in one image, and what it adds to the labels."""

    aspect: str  # which aspect shows it
    word: str  # as annotations have it
    probability: float  # that the image has it
    # what it adds to the logit of every label that occurs in training, measured from the mean of the training images
    effects: Mapping[str, float]


class ConceptBottleneck:
    """Two linear layers: aspect tokens → words, words and another system's scores → labels.

    Args:
        model: with aspect modules; a soft prompt in it has no part.
        labels: what it chooses from.
        over: whose log-probabilities are added up beside the words; None: the words alone.
        settings: how it is fitted; where adapters lie is not read.
        annotated: images with annotated aspects to learn the words from, perhaps read already; None: those that `fit`
            is given.
        info: of the aspects adapter; with it, what was learned becomes an adapter too, in the folder `out`.

    Raises:
        UsageError: the model has no aspects, or `over` chooses from other labels.
    """

    def __init__(
        self,
        model: MaspModel,
        labels: tuple[str, ...],
        over: System | None = None,
        settings: ConceptBottleneckSettings | None = None,
        info: AdapterInfo | None = None,
        annotated: Dataset | TrainingData | None = None,
    ) -> None:
        self.info, self.annotated = info, annotated
        model.aspect_module()
        self.model, self.backbone, self.labels, self.over = model, model.backbone, validate_labels(labels), over
        self.settings = settings or ConceptBottleneckSettings()
        if over is not None and tuple(over.labels) != self.labels:
            raise UsageError(f"the prompt chooses from {', '.join(over.labels)}", ", ".join(self.labels))
        self.learned: Checkpoint | None = None
        self.seed = 0

    def fit(self, examples: TrainingData) -> None:
        """Reads every image once, fits the words of each aspect, then the labels.

        Raises:
            DataError: no word is annotated often enough, or there is nothing to learn from.
        """
        check_training_data(examples, self.labels)
        teachers = examples
        if isinstance(self.annotated, TrainingData):
            teachers = self.annotated
        elif self.annotated is not None:
            teachers = make_annotated_data(self.backbone, self.annotated, examples.out / "words")
        words = vocabulary(teachers.train, self.model.aspect_module().aspects, self.settings.fewest)
        if self.over is not None:
            self.over.fit(replace(examples, out=examples.out / "tuned"))
        content = [[example.image, dict(example.aspects)] for example in (*examples.train, *examples.val)]
        if self.annotated is not None:
            content.append([teachers.fingerprint])
        identity = self._identity() | {"annotations": hash_of({"told": content})}
        with studying(NAME, self.backbone, self.labels, examples, identity) as study:
            self.learned = study.once(lambda: self._fitted(study, words, teachers))
        self.seed = examples.seed
        if self.info is not None:
            self._save(examples, self.info)

    def head(self) -> ConceptHead:
        """What was learned, as an adapter holds it.

        Raises:
            UsageError: it has not learned yet, or a label never occurred.
        """
        learned = self._state()
        if not bool(learned.tensors["labels.known"].all()):
            raise UsageError("a label occurs on no image to learn from", "all of them", "Name only labels that occur.")
        over = self.over
        prompt_aspects = temperature = None
        if over is not None:
            assert isinstance(over, Prompted)
            assert over.handle is not None
            assert over.handle.info is not None
            if over.model.routing is not None:
                raise UsageError("the soft prompt was trained with routing", "one without", "Train it without.")
            info, prompt_aspects = over.handle.info, over.handle.task.use.aspects
            temperature = info.temperature if info.labels == self.labels else None
        words = tuple((aspect, word) for aspect, word in learned.state["words"])
        layer, residuals = _part(learned.tensors, LABELS), {}
        if self.settings.residual:
            layer, residuals = self._divided(layer, len(words), learned.state.get("image_features", 0))
        tensors = {f"{LABELS}.mean": layer["mean"]}
        for name in dict(words):
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = folded(_part(learned.tensors, name))
        for name, one in {LABELS: layer, **residuals}.items():
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = folded(one)
        scores = over is None or bool(learned.state[LABELS]["scores"])
        return ConceptHead(words, prompt_aspects, tensors, scores, temperature)

    def _divided(
        self, layer: Mapping[str, Tensor], words: int, features: int
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The layer of the labels on words and scores alone, and the parts on each aspect's tokens and on the image."""
        module = self.model.aspect_module()
        widths = dict.fromkeys(module.aspects, module.queries * self.backbone.dim)
        widths |= {IMAGE: features} if features else {}
        start, residuals = words, {}
        for name, width in widths.items():
            columns = {key: layer[key][..., start : start + width] for key in ("weight", "mean", "scale")}
            residuals[f"{name}.{RESIDUAL}"] = columns | {"bias": torch.zeros_like(layer["bias"])}
            start += width
        kept = [*range(words), *range(start, len(layer["mean"]))]
        alone = {name: layer[name][..., kept] for name in ("weight", "mean", "scale")} | {"bias": layer["bias"]}
        return alone, residuals

    def _save(self, examples: TrainingData, info: AdapterInfo) -> None:
        """The adapter, for `masp predict`; labels that never occur leave it out."""
        try:
            head = self.head()
        except UsageError as error:
            log.warning("no adapter is written: %s", error)
            return
        prompt, state = None, self._state().state["labels"]
        about: dict[str, Any] = {"labels": self.labels, "aspects": self.model.aspect_module().aspects}
        about["metrics"] = {f"concepts/{name}": state[name] for name in ("accuracy", "log_likelihood") if name in state}
        about["temperature"] = state.get("temperature")
        if head.prompt_aspects is not None:
            assert isinstance(self.over, Prompted)
            assert self.over.handle is not None
            assert self.over.handle.info is not None
            other, prompt = self.over.handle.info, self.over.model.prompt
            same = ("method", "questions", "data", "training", "seeds", "longest_side")
            about |= {name: getattr(other, name) for name in same}
            about["metrics"] |= other.metrics
            queries = {"queries": info.method.queries, "attention": info.method.attention}
            about["method"] = other.method.model_copy(update=queries)
        counts = {"train": len(examples.train), "val": len(examples.val)}
        learned = DataRecord(name=examples.name, fingerprint=examples.fingerprint, images=counts)
        about["data"] = {**about.get("data", info.data), NAME: learned}
        about["seeds"] = {**about.get("seeds", info.seeds), NAME: examples.seed}
        save_adapter(examples.out / "adapter", info.model_copy(update=about), self.model.aspects, prompt, concepts=head)

    def load(self, folder: str | Path) -> Self:
        """What `fit` left in a folder, ready to answer about any image without the training data.

        Args:
            folder: `out` of the training data; of `masp baseline concepts --out DIR` it is DIR/training.

        Raises:
            UsageError: nothing there, or learned with other adapters, labels or settings, or on another backbone.
        """
        run = RunFolder(Path(folder))
        todo = "Name the folder training of masp baseline concepts, once it has finished."
        try:
            before = json.loads(run.description.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{folder} holds no fitted concept bottleneck", "its folder", todo) from None
        own = {"system": NAME, "backbone": self.backbone.fingerprint(), "labels": list(self.labels), **self._identity()}
        own = json.loads(json.dumps(own | reading(self.backbone)))
        compare({key: value for key, value in before.items() if key in own}, own, run.out)
        self.learned = CheckpointStore(run.out / "learned", keep=1).latest()
        if self.learned is None:
            raise UsageError(f"the concept bottleneck in {folder} has not learned to the end", "a finished one", todo)
        self.seed = before["seed"]
        return self

    @torch.no_grad()
    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        """The softmax of the second layer.

        Raises:
            UsageError: it has not learned yet.
        """
        learned = self._state()
        raw = logits(_part(learned.tensors, LABELS), self._inputs(self._read(visual), learned))
        return predictions_of(self.labels, raw / learned.state[LABELS].get("temperature", 1.0))

    @torch.no_grad()
    def concept_effects(self, visual: VisualTokens) -> list[list[ConceptEffect]]:
        """Every known word of every image, with what it adds to each label; the likeliest first.

        For labels that occur in training, the effects of all words, those of tokens and image with a residual, those of
        the other system's scores and the bias make up the logits exactly.

        Raises:
            UsageError: it has not learned yet.
        """
        learned = self._state()
        words, layer = learned.state["words"], _part(learned.tensors, "labels")
        inputs = self._inputs(self._read(visual), learned)[:, : len(words)]
        scaled = (inputs - layer["mean"][: len(words)]) / layer["scale"][: len(words)]
        effects = scaled[:, :, None] * layer["weight"].T[: len(words)]  # (b, words, labels)
        occurs, rows = layer["known"].tolist(), []
        for chances, added in zip(inputs.tolist(), effects.tolist(), strict=True):
            table = zip(words, chances, added, strict=True)
            found = [ConceptEffect(aspect, word, p, self._known(row, occurs)) for (aspect, word), p, row in table]
            rows.append(sorted(found, key=lambda one: -one.probability))
        return rows

    def config(self) -> Mapping[str, Any]:
        """Its settings, the aspects, the system it adds to, and once it has learned its words and figures on val."""
        facts: dict[str, Any] = {"system": NAME, "trained": 0, **self._identity()}
        if self.learned is not None:
            weights = [tensor for name, tensor in self.learned.tensors.items() if name.endswith(("weight", "bias"))]
            facts["trained"] = sum(weight.numel() for weight in weights)
            facts |= {"seed": self.seed, "fitted": self.learned.state}
            facts["tensors_sha256"] = tensors_sha256(self.learned.tensors)
        return facts

    def _identity(self) -> dict[str, Any]:
        """All that decides what it learns, besides backbone, labels and examples."""
        modules, questions = self.model.aspect_module(), self.model.questions
        tuned = None if self.over is None else dict(self.over.config())
        return {
            "settings": {key: value for key, value in plain(self.settings).items() if key not in PLACES},
            "question": None if tuned is None else tuned.get("question"),
            "aspects": list(modules.aspects),
            "aspects_sha256": tensors_sha256(modules.state_dict()),
            "questions": None if questions is None else questions.fingerprint(),
            "tuned": tuned,
        }

    def _known(self, row: Sequence[float], occurs: Sequence[bool]) -> dict[str, float]:
        return {label: added for label, added, there in zip(self.labels, row, occurs, strict=True) if there}

    def _state(self) -> Checkpoint:
        if self.learned is None:
            raise unlearned(NAME)
        return self.learned

    def _read(self, visual: VisualTokens) -> dict[str, Tensor]:
        """Aspect tokens (b, aspects, n·d), image features, the other system's log-probabilities; on the CPU.

        The last two have no columns where there are none.
        """
        image = torch.zeros(len(visual), 0) if visual.pooled is None else visual.pooled.float().cpu()
        return {**self._tokens(visual), IMAGE: image, "scores": self._scores(visual)}

    def _tokens(self, visual: VisualTokens) -> dict[str, Tensor]:
        return {"tokens": self.model.aspect_tokens(visual).tokens.flatten(2).float().cpu()}

    def _scores(self, visual: VisualTokens) -> Float[Tensor, "batch scores"]:
        if self.over is None:
            return torch.zeros(len(visual), 0)
        rows = [one.log_probabilities for one in self.over.predict(visual)]
        if any(row is None for row in rows):
            raise UsageError("the prompt's answers have no probabilities", "a system that gives them")
        return torch.tensor([[row[label] for label in self.labels] for row in rows if row is not None])

    def _inputs(self, read: Mapping[str, Tensor], learned: Checkpoint) -> Float[Tensor, "batch inputs"]:
        """What the second layer reads: every word's probability, what the residual reads, scores if added."""
        chances = [
            logits(_part(learned.tensors, aspect), read["tokens"][:, index]).sigmoid()
            for index, aspect in enumerate(self.model.aspect_module().aspects)
            if f"{aspect}.weight" in learned.tensors
        ]
        scores = read["scores"] if learned.state[LABELS]["scores"] else read["scores"][:, :0]
        return torch.cat([*chances, self._residual_inputs(read), scores], dim=1)

    def _residual_inputs(self, read: Mapping[str, Tensor]) -> Float[Tensor, "batch columns"]:
        """Aspect tokens and features of the whole image as columns; none without a residual."""
        columns = torch.cat([read["tokens"].flatten(1), read[IMAGE]], dim=1)
        return columns if self.settings.residual else columns[:, :0]

    def _fitted(self, study: Study, words: Mapping[str, Sequence[str]], teachers: TrainingData) -> Checkpoint:
        table, row = study.table("aspect tokens and image features", self._read)
        apart = teachers is not study.data
        taught, at = replace(study, data=teachers).table("annotated tokens", self._tokens) if apart else (table, row)
        rows = [[row[example.image] for example in split] for split in (study.data.train, study.data.val)]
        tensors: dict[str, Tensor] = {}
        state: dict[str, Any] = {"words": [[aspect, word] for aspect, known in words.items() for word in known]}
        chances: tuple[list[Tensor], list[Tensor]] = ([], [])
        for index, aspect in enumerate(self.model.aspect_module().aspects):
            if not words[aspect]:
                continue
            study.stop.check()
            every = not apart or aspect in self.settings.absent
            known = [one for one in teachers.train if every or words_of(one, aspect)]
            tokens = taught["tokens"][[at[one.image] for one in known], index]
            wanted = present(known, aspect, words[aspect])
            layer, left_out, state[aspect] = read_words(tokens, wanted, self.settings.penalties)
            log.info("%s: %s", aspect, state[aspect])
            read = [logits(layer, table["tokens"][chosen, index]).sigmoid() for chosen in rows]
            chances[0].append(read[0] if apart else left_out)  # other images: none of them was seen
            chances[1].append(read[1])
            tensors |= {f"{aspect}.{name}": tensor for name, tensor in layer.items()}
        beside = self._residual_inputs(table)
        inputs = [torch.cat([*parts, beside[chosen]], 1) for parts, chosen in zip(chances, rows, strict=True)]
        state["image_features"] = table[IMAGE].shape[1]
        layer, state[LABELS] = self._labelled(study, inputs, [table["scores"][chosen] for chosen in rows], table)
        return Checkpoint(0, tensors | {f"{LABELS}.{name}": tensor for name, tensor in layer.items()}, state)

    def _columns(self, inputs: int, tokens: int, image: int, scores: int) -> tuple[Tensor, Tensor]:
        """Of the columns that the labels are read from the least spread, and the factor that they are scaled with."""
        residual = (tokens, image) if self.settings.residual else (0, 0)
        counts = torch.tensor([inputs - sum(residual), *residual, scores])
        least = torch.tensor([LEAST_SPREAD, SMALLEST, SMALLEST, LEAST_SPREAD])
        return least.repeat_interleave(counts), torch.tensor(
            [1.0, self.settings.token_scale, 1.0, 1.0]
        ).repeat_interleave(counts)

    def _labelled(
        self, study: Study, words: Sequence[Tensor], scores: Sequence[Tensor], table: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The second layer; C, and whether it adds the scores, by the likelihood on val.

        Stage 2 has seen the training images, so their scores may promise more than those of new images hold. Then the
        words alone are likelier on val, and are taken. With `refit` the layer is fitted once more, to val as well.
        """
        targets, held = ([study.target(one) for one in split] for split in (study.data.train, study.data.val))
        least, factor = self._columns(
            words[0].shape[1], table["tokens"][0].numel(), table[IMAGE].shape[1], scores[0].shape[1]
        )

        def learned(inputs: Tensor, wanted: list[int], strength: float) -> dict[str, Tensor]:
            chosen = slice(inputs.shape[1])
            how = (strength, self.settings.iterations, least[chosen], factor[chosen])
            return fitted(inputs, wanted, len(self.labels), *how)

        candidates = []
        for added in (True, False) if scores[0].shape[1] and held else (bool(scores[0].shape[1]),):
            train, val = (torch.cat([one, more], 1) if added else one for one, more in zip(words, scores, strict=True))
            for strength in self.settings.strengths if held else (self.settings.without_val,):
                study.stop.check()
                layer = learned(train, targets, strength)
                raw = logits(layer, val)
                found: dict[str, Any] = {"C": strength, "scores": added}
                if self.settings.refit and held:
                    log_p = raw.cpu().double().log_softmax(1).numpy()
                    found["temperature"] = fit_temperature(log_p, np.asarray(held))
                found |= figures(raw / found.get("temperature", 1.0), held)
                log.info("labels: %s", found)
                candidates.append((found.get("log_likelihood", 0.0), layer, found, (train, val)))
        _, layer, found, inputs = max(candidates, key=lambda one: one[0])
        if self.settings.refit and held:
            layer = learned(torch.cat(inputs), [*targets, *held], found["C"])
        return layer, found


def concept_bottleneck_system(
    backbone: Backbone,
    labels: tuple[str, ...],
    settings: ConceptBottleneckSettings | None = None,
    questions: Questions | None = None,
) -> ConceptBottleneck:
    """A concept bottleneck on adapters that are named by its settings.

    Args:
        backbone: both adapters were trained on.
        labels: what it chooses from.
        settings: name the adapters.
        questions: what the aspects are asked, where visual tokens depend on it; None: as they were trained.

    Raises:
        UsageError: no aspects are named, an adapter lacks what it is named for, or several tasks and none is named.
        AdapterError: no such adapter, or one for another backbone.
    """
    settings = settings or ConceptBottleneckSettings()
    if settings.aspects is None:
        raise UsageError(
            "the concept bottleneck was given no aspects", "aspects=DIR", "Name what masp train aspects wrote."
        )
    folder = find_adapter(settings.aspects)
    adapter = load_adapter(folder, backbone)
    if adapter.aspects is None:
        raise UsageError(f"{settings.aspects} holds no aspect modules", "an aspects adapter", "Name one.")
    model = MaspModel(backbone, adapter.info.method, adapter.aspects, None, questions or adapter.info.asked())
    over = None
    if settings.prompt is not None:
        own = {"labels": labels, "task": settings.task, "raw": True, "concepts": False}  # scores are added undivided
        masp = Masp.from_pretrained(settings.prompt, backbone, aspects=folder, **own)
        over = prompted(masp)
        if masp.model.prompt is None:
            todo = "Name what masp train prompt wrote."
            raise UsageError(f"{settings.prompt} holds no soft prompt", "a prompt adapter", todo)
    annotated = None if settings.words is None else open_dataset(settings.words)
    return ConceptBottleneck(model, labels, over, settings, adapter.info, annotated)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one layer."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
