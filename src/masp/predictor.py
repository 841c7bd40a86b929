"""`Masp`: a backbone with an adapter, ready to predict. This is the library's front door."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from masp.adapters import (
    Adapter,
    AdapterInfo,
    backbone_place,
    find_adapter,
    load_adapter,
    push_to_hub,
    read_info,
    save_pretrained,
)
from masp.answers import generate, score
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.data.images import open_image, shrink, to_rgb
from masp.data.loading import prefetch
from masp.errors import AdapterError, ImageError, UsageError
from masp.explain import (
    AspectReading,
    PromptAttention,
    attention_to_aspects,
    leave_one_out,
    read_aspects,
    taking_part,
)
from masp.labels import render_labels, validate_labels
from masp.model import MaspModel, Use
from masp.questions import Questions
from masp.types import Pixels, VisualTokens

EMBEDDED = "embedded"
"""Name of the shipped backbone and of the adapter that is shipped with it."""

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Prediction:
    """Everything said about one image.

    Attributes:
        image: the file, as it was named.
        label: the most probable label.
        probabilities: of every label; they sum to 1.
        answer: the text that the backbone generates; None without explanations.
        aspects: what each aspect contributed; empty without explanations, and for an adapter without aspects.
        prompt_attention: from the soft prompt to each aspect; None where `aspects` is empty or there is no soft prompt.
        adapter: name of the adapter.
        backbone: name of the backbone.
    """

    image: str
    label: str
    probabilities: Mapping[str, float]
    answer: str | None
    aspects: Mapping[str, AspectReading]
    prompt_attention: PromptAttention | None
    adapter: str
    backbone: str

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and texts, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, in the place of its prediction."""

    image: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """Plain texts, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """What is asked of the model at prediction.

    Attributes:
        labels: what there is to choose from, in the order of the question.
        question: the emotion question with the labels in place.
        questions: texts for the aspects.
        use: the parts of the model that take part.
        longest_side: images with a longer side are shrunk to it first; None: never.
    """

    labels: tuple[str, ...]
    question: str
    questions: Questions
    use: Use
    longest_side: int | None = None


def task_of(info: AdapterInfo, labels: Sequence[str] | None = None) -> Task:
    """What an adapter was trained to be asked; `labels` replaces its own set.

    Raises:
        AdapterError: It holds aspects only, and no labels were given.
        DataError: Labels that cannot be told apart.
    """
    if labels is None and not info.labels:
        todo = "Name an adapter that `masp train prompt` wrote, or give the labels to choose from."
        raise AdapterError("this adapter reads aspects but has no labels", "an adapter with a soft prompt", todo)
    chosen = validate_labels(info.labels if labels is None else labels)
    questions = info.asked()
    style = info.method.resolved().label_list or "comma"
    question = questions.ask_emotion(render_labels(chosen, style))
    return Task(chosen, question, questions, Use(info.aspects), info.longest_side)


class Masp:
    """A backbone with an adapter, ready to predict.

    Args:
        model: Backbone, aspects and soft prompt.
        task: What is asked.
        adapter: Name of the adapter in results.
        info: The adapter's description, where there is one.
    """

    def __init__(self, model: MaspModel, task: Task, adapter: str, info: AdapterInfo | None = None) -> None:
        self.model = model
        self.task = task
        self.adapter = adapter
        self.info = info

    @classmethod
    def from_pretrained(
        cls,
        adapter: str | Path | None = None,
        backbone: str | Backbone | None = None,
        *,
        aspects: str | Path | None = None,
        labels: Sequence[str] | None = None,
        revision: str | None = None,
        backbone_revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "auto",
    ) -> Self:
        """Loads an adapter and the backbone it was trained on.

        Args:
            adapter: Its folder, that of its run, or its id on a hub; None: the one shipped for the embedded backbone.
            backbone: Hub id, folder, or one that is loaded already; None: the one that the adapter names.
            aspects: For a prompt that only names its aspects, the adapter that holds them.
            labels: Replaces the label set of the adapter.
            revision: Commit, tag or branch of an adapter on a hub; None: the newest.
            backbone_revision: Commit of the backbone on the hub; None: the one the adapter was trained on.
            dtype: Number format of the backbone.
            device: Where it runs; `auto`: the GPU if there is one.

        Raises:
            AdapterError: No adapter there, a damaged one, or one for another backbone.
            BackboneError: The backbone cannot be loaded.
        """
        folder = shipped_adapter() if adapter is None else find_adapter(adapter, revision)
        info = read_info(folder)
        task = task_of(info, labels)
        if backbone is None or isinstance(backbone, str):
            name = backbone or backbone_place(folder, info)
            own = backbone_revision is None and name == info.backbone.name
            commit = info.backbone.revision if own else backbone_revision
            backbone = load_backbone(name, commit, dtype, device)
        parts = load_adapter(folder, backbone, None if aspects is None else find_adapter(aspects))
        model = MaspModel(backbone, info.method, parts.aspects, parts.prompt, info.asked())
        return cls(model, task, EMBEDDED if adapter is None else str(adapter), info)

    @property
    def parts(self) -> Adapter:
        """The adapter: its description and its trained modules.

        Raises:
            UsageError: this object was built from a model without a description.
        """
        if self.info is None:
            raise UsageError("this model has no description", "one that was loaded with from_pretrained")
        return Adapter(self.info, self.model.aspects, self.model.prompt)

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> Path:
        """Writes the adapter, never the backbone; see `masp.adapters.save_pretrained`."""
        return save_pretrained(self.parts, folder, license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Pushes the adapter, never the backbone, and returns the commit's address; see `masp.adapters.publish`."""
        return push_to_hub(self.parts, repo_id, private=private, revision=revision, message=message, license=license)

    @property
    def labels(self) -> tuple[str, ...]:
        """What there is to choose from."""
        return self.task.labels

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.model.backbone

    @overload
    def predict(self, images: Picture, explain: bool = True, batch_size: int = 16) -> Prediction: ...

    @overload
    def predict(self, images: Sequence[Picture], explain: bool = True, batch_size: int = 16) -> list[Prediction]: ...

    def predict(
        self, images: Picture | Sequence[Picture], explain: bool = True, batch_size: int = 16
    ) -> Prediction | list[Prediction]:
        """Predicts one image or several, each a path or a PIL image.

        Args:
            images: What to predict; a list gives a list in the same order.
            explain: Whether to say why. Without, only the labels are scored, which is several times faster.
            batch_size: Images that go through the model together.

        Raises:
            ImageError: An image cannot be read.
        """
        if isinstance(images, str | Path | Image.Image):
            return self._batch([images], explain)[0]
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", "1 or more", "Correct batch_size.")
        starts = range(0, len(images), batch_size)
        return [one for start in starts for one in self._batch(images[start : start + batch_size], explain)]

    def predict_stream(
        self, paths: Iterable[str | Path], batch_size: int = 16, explain: bool = True, workers: int = 2
    ) -> Iterator[Prediction | Failure]:
        """Predicts any number of image files in their order, a few batches in memory at a time.

        Args:
            paths: Files; may be endless.
            batch_size: Images that go through the model together.
            explain: Whether to say why.
            workers: Threads that read images ahead.

        Yields:
            A prediction for each image, or a failure in the place of one that cannot be read.
        """
        for batch in prefetch(paths, self.backbone.preprocess, batch_size, workers, self.task.longest_side):
            results: dict[int, Prediction | Failure] = {
                failed.index: Failure(str(failed.path), failed.reason) for failed in batch.failures
            }
            if batch.indices:
                found = self._predicted(batch.pixels, [str(path) for path in batch.paths], explain)
                results |= dict(zip(batch.indices, found, strict=True))
            for index in sorted(results):
                yield results[index]

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens of preprocessed images, on the backbone's device."""
        return self.backbone.visual_tokens(pixels.to(self.backbone.device))

    def _batch(self, images: Sequence[Picture], explain: bool) -> list[Prediction]:
        if not images:
            return []
        opened = [self._open(image) for image in images]
        names = [str(image) if isinstance(image, str | Path) else "(image in memory)" for image in images]
        try:
            pixels = self.backbone.preprocess(opened)
        except ValueError as error:  # a shape that the vision tower refuses, such as 1 × 900 pixels
            raise ImageError(names[0] if len(names) == 1 else ", ".join(names), str(error)) from error
        return self._predicted(pixels, names, explain)

    def _open(self, image: Picture) -> Image.Image:
        if isinstance(image, Image.Image):
            return shrink(to_rgb(image), self.task.longest_side)
        return open_image(image, self.task.longest_side)

    def _predicted(self, pixels: Pixels, names: Sequence[str], explain: bool) -> list[Prediction]:
        """Predictions of one batch of preprocessed images."""
        visual, task = self.visual_tokens(pixels), self.task
        log_p = score(self.model, visual, task.question, task.labels, task.use)
        found = [self._scored(name, row) for name, row in zip(names, log_p.exp().tolist(), strict=True)]
        if not explain:
            return found
        return self._explained(visual, found, log_p)

    def _explained(
        self, visual: VisualTokens, found: Sequence[Prediction], log_p: Float[Tensor, "batch labels"]
    ) -> list[Prediction]:
        """The same predictions with the generated answer and the reasons."""
        model, task = self.model, self.task
        answers = generate(model, visual, task.question, task.use, longest_answer(self.backbone, task.labels))
        found = [replace(one, answer=answer) for one, answer in zip(found, answers, strict=True)]
        if not taking_part(model, task.use):
            return found
        effects = leave_one_out(model, visual, task.question, task.labels, task.use, log_p)
        chosen = effects[torch.arange(len(found)), :, log_p.argmax(dim=1)]
        readings = read_aspects(model, visual, task.questions, task.use, chosen)
        looks = attention_to_aspects(model, visual, task.question, task.use) or [None] * len(found)
        reasons = zip(found, readings, looks, strict=True)
        return [replace(one, aspects=seen, prompt_attention=look) for one, seen, look in reasons]

    def _scored(self, name: str, shares: Sequence[float]) -> Prediction:
        probabilities = dict(zip(self.task.labels, shares, strict=True))
        label = self.task.labels[max(range(len(shares)), key=shares.__getitem__)]
        return Prediction(name, label, probabilities, None, {}, None, self.adapter, self.backbone.name)


def shipped_adapter() -> Path:
    """The folder of the adapter that comes with the embedded backbone.

    Raises:
        AdapterError: This installation has none.
    """
    folder = Path(str(resources.files("masp.backbones").joinpath("embedded_adapter")))
    if not (folder / "adapter.json").is_file():
        raise AdapterError(
            "this installation has no adapter of its own", "--adapter DIR", "Name one, or install masp again."
        )
    return folder


def longest_answer(backbone: Backbone, labels: Sequence[str]) -> int:
    """Tokens that a generated answer may have: those of the longest label, and enough to show a wrong one."""
    return max(12, *(len(backbone.answer_ids(label, end=True)) for label in labels)) + 4
