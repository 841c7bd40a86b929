"""`Masp`: a backbone with an adapter, ready to predict. This is the library's front door."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Self, overload

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from masp.adapters import (
    Adapter,
    AdapterInfo,
    backbone_commit,
    backbone_place,
    find_adapter,
    load_adapter,
    push_to_hub,
    read_info,
    save_pretrained,
)
from masp.backbones.base import Backbone
from masp.backbones.loading import find_supported, load_backbone
from masp.core.config import MethodConfig
from masp.core.errors import AdapterError, ImageError, UsageError, counted, did_you_mean
from masp.core.label_mapping import label_set
from masp.core.types import Domain, Pixels, VisualTokens
from masp.data.images import open_image, shrink, to_rgb
from masp.data.prefetch import prefetch, prepared
from masp.model.concepts import ConceptBottleneck
from masp.model.explain import Attribution
from masp.model.masp_model import MaspModel
from masp.model.prediction import Failure, Prediction, Task, explained, explained_by_words, task_of, zero_shot_task
from masp.model.scoring import score

EMBEDDED = "embedded"
"""Name of the shipped backbone and of the adapter that is shipped with it."""

ZERO_SHOT = "zero-shot"
"""What stands in results for the adapter where there is none."""

Picture = str | Path | Image.Image
OnError = Literal["raise", "return"]
Explain = bool | Attribution


@dataclass(frozen=True)
class Served:
    """One task with what answers it; read as one, so that no call pairs a task with the prompt of another."""

    model: MaspModel
    task: Task
    info: AdapterInfo | None
    concepts: ConceptBottleneck | None = None


class Masp:
    """A backbone with an adapter, ready to predict.

    An adapter may hold several tasks, each with a soft prompt of its own over the same backbone and aspects. Then one
    is chosen with `use`, or with `task=` for single calls; before that, whatever depends on the task is refused.

    Any number of threads may predict with one object at once; each gets what it would get alone. Threads that want
    different tasks name them with `task=`: `use` changes the object for all of them.

    Args:
        model: Backbone, aspects and soft prompt.
        task: What is asked.
        adapter: Name of the adapter in results.
        info: The adapter's description, where there is one.
    """

    def __init__(self, model: MaspModel, task: Task, adapter: str, info: AdapterInfo | None = None) -> None:
        self.adapter = adapter
        self._served: dict[str | None, Served] = {None: Served(model, task, info)}
        self._name: str | None = None
        self._whole: Adapter | None = None

    @classmethod
    def from_pretrained(
        cls,
        adapter: str | Path | None = None,
        backbone: str | Backbone | None = None,
        *,
        aspects: str | Path | None = None,
        labels: str | Sequence[str] | None = None,
        task: str | None = None,
        revision: str | None = None,
        backbone_revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto",
        device: str = "auto",
        accept: Collection[str] = (),
        raw: bool = False,
    ) -> Self:
        """Loads an adapter and the backbone it was trained on, or a backbone alone.

        Args:
            adapter: Its folder, that of its run, or its id on a hub. None: the one shipped for the embedded backbone;
                with any other `backbone` that one alone, without aspects and soft prompt (zero-shot, row V of Table 2).
            backbone: Hub id, folder, or one that is loaded already; None: the one that the adapter names.
            aspects: For a prompt that only names its aspects, the adapter that holds them.
            labels: Replaces the label set of the adapter, of every task if it holds several: a list, "joy, fear, awe",
                or a set by its name (`mikels8`, `ekman6`, `polarity`). Zero-shot: what to choose from; None: `mikels8`.
            task: Which of several tasks to use; `use` changes it later.
            revision: Commit, tag or branch of an adapter on a hub; None: the newest.
            backbone_revision: Commit of the backbone on the hub; None: the one the adapter was trained on.
            dtype: Number format of the backbone; `nf4`: its linear layers in 4 bits, with `masp[4bit]`.
            device: Where it runs; `auto`: the GPU if there is one; `spread`: over all GPUs, then main memory,
                then the disk.
            accept: Which of the backbone's `processor` settings, chat `template` and `tokenizer` may be others than
                those that the adapter was trained with.
            raw: Whether probabilities are the model's own, without the adapter's temperature.

        Raises:
            AdapterError: No adapter there, a damaged one, or one for another backbone.
            BackboneError: The backbone cannot be loaded.
            DataError: Fewer than two labels, or labels that cannot be told apart.
            UsageError: No such task or label set, a revision of a folder, or a part of an adapter that is not used.
        """
        chosen = None if labels is None else label_set(labels)
        if adapter is None and backbone is not None and not _has_shipped(backbone, backbone_revision):
            _refuse_parts(aspects=aspects, task=task, revision=revision)
            if isinstance(backbone, str):
                backbone = load_backbone(backbone, backbone_revision, dtype, device)
            return cls(MaspModel(backbone, MethodConfig()), zero_shot_task(chosen), ZERO_SHOT)
        folder = shipped_adapter() if adapter is None else find_adapter(adapter, revision)
        info = read_info(folder)
        name = info.chosen(task) if task is not None or len(info.tasks) == 1 else None
        asked = {key: task_of(info.for_task(key), chosen, raw) for key in info.tasks or (None,)}
        if backbone is None or isinstance(backbone, str):
            place = backbone or backbone_place(folder, info)
            backbone = load_backbone(place, backbone_revision or backbone_commit(place, info), dtype, device)
            _bound_as_trained(backbone, info)
        parts = load_adapter(folder, backbone, None if aspects is None else find_adapter(aspects), accept)
        served = {key: _served(backbone, parts, key, question) for key, question in asked.items()}
        first = next(iter(served.values()))
        made = cls(first.model, first.task, EMBEDDED if adapter is None else str(adapter), first.info)
        made._served, made._name, made._whole = served, name, parts
        return made

    @property
    def zero_shot(self) -> bool:
        """Whether the backbone answers alone: nothing that was trained takes part."""
        return all(one.model.aspects is None and one.model.prompt is None for one in self._served.values())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks; empty for an adapter with one task, which has no name."""
        return tuple(name for name in self._served if name is not None)

    @property
    def task_name(self) -> str | None:
        """The task in use; None where it has no name, or none was chosen yet."""
        return self._name

    def use(self, task: str) -> Self:
        """Switches to another task of the adapter, for all calls that name none; nothing is loaded anew.

        Not for threads that share this object: the switch is for all of them. A call that has begun keeps its task.

        Returns:
            This object.

        Raises:
            UsageError: No such task.
        """
        self._name = self._known(task)
        return self

    @property
    def model(self) -> MaspModel:
        """Backbone, aspects and the soft prompt of the task in use."""
        return self._in_use().model

    @property
    def concepts(self) -> ConceptBottleneck | None:
        """The concept bottleneck that answers in the language model's place, if there is one."""
        return self._in_use().concepts

    @property
    def task(self) -> Task:
        """What is asked in the task in use."""
        return self._in_use().task

    @property
    def info(self) -> AdapterInfo | None:
        """The adapter's description, as if it held the task in use alone."""
        return self._in_use().info

    def _in_use(self) -> Served:
        return self._chosen(self._name)

    def _chosen(self, name: str | None) -> Served:
        if name is None and None not in self._served:
            raise UsageError(
                f"this adapter holds several tasks ({', '.join(self.tasks)}), and none was named",
                "one of them",
                "Name one: --task NAME on the command line, task=NAME or Masp.use(NAME) in Python.",
            )
        return self._served[name]

    def _known(self, task: str) -> str:
        if task not in self.tasks:
            known = f"one of {', '.join(self.tasks)}" if self.tasks else "no name, as this adapter has one task"
            raise UsageError(f"this adapter has no task '{task}'", known, did_you_mean(task, self.tasks))
        return task

    def _only(self, task: str | None) -> "Masp":
        """This object with one task, or with the one in use now, sharing everything; no `use` reaches it."""
        name = self._name if task is None else self._known(task)
        chosen = self._chosen(name)
        view = Masp(chosen.model, chosen.task, self.adapter, chosen.info)
        view._served, view._name = {name: chosen}, name
        return view

    @property
    def parts(self) -> Adapter:
        """The adapter: its description and its trained modules.

        Raises:
            UsageError: this object was built from a model without a description.
        """
        if self._whole is not None:
            return self._whole
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
        """The frozen model, which all tasks share."""
        return next(iter(self._served.values())).model.backbone

    @overload
    def predict(
        self, images: Picture, explain: Explain = True, batch_size: int = 16, task: str | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Sequence[Picture],
        explain: Explain = True,
        batch_size: int = 16,
        task: str | Sequence[str] | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: Picture,
        explain: Explain = True,
        batch_size: int = 16,
        task: str | None = None,
        *,
        on_error: OnError,
    ) -> Prediction | Failure: ...

    @overload
    def predict(
        self,
        images: Sequence[Picture],
        explain: Explain = True,
        batch_size: int = 16,
        task: str | Sequence[str] | None = None,
        *,
        on_error: OnError,
    ) -> list[Prediction | Failure]: ...

    def predict(
        self,
        images: Picture | Sequence[Picture],
        explain: Explain = True,
        batch_size: int = 16,
        task: str | Sequence[str] | None = None,
        *,
        on_error: OnError = "raise",
    ) -> Prediction | Failure | Sequence[Prediction | Failure]:
        """Predicts one image or several, each a path or a PIL image.

        Args:
            images: What to predict; a list gives a list in the same order.
            explain: Whether to say why, or by which attribution: `leave_one_out` or `shapley` (64 passes for six
                aspects); a concept bottleneck has its own. Without, only the labels are scored, which is several
                times faster.
            batch_size: Images that go through the model together.
            task: Which task of an adapter with several, for all images or, as a list, for each of them. Images of one
                task go through the model together, so each prediction is the one that a call for its task alone gives.
            on_error: `raise` an error that names the first image that cannot be used, or `return` a `Failure` in the
                place of each of them; the others are predicted.

        Raises:
            ImageError: An image cannot be read, or has a shape that the backbone refuses.
            UsageError: No such task, several and none named, or another number of tasks than of images.
        """
        if task is not None and not isinstance(task, str):
            return self._mixed(images, explain, batch_size, task, on_error)
        view = self._only(task)
        if isinstance(images, str | Path | Image.Image):
            return view._batch([images], explain, on_error)[0]
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", "1 or more", "Correct batch_size.")
        starts = range(0, len(images), batch_size)
        return [one for start in starts for one in view._batch(images[start : start + batch_size], explain, on_error)]

    def _mixed(
        self,
        images: Picture | Sequence[Picture],
        explain: Explain,
        batch_size: int,
        tasks: Sequence[str],
        on_error: OnError,
    ) -> list[Prediction | Failure]:
        """Predictions with a task for each image, in the order of the images."""
        if isinstance(images, str | Path | Image.Image) or len(images) != len(tasks):
            count = "one image" if isinstance(images, str | Path | Image.Image) else counted(len(images), "image")
            raise UsageError(f"a list of {counted(len(tasks), 'task')} for {count}", "a task for each image of a list")
        by_task = {name: self._only(name) for name in tasks}  # a wrong name is refused before anything is computed
        found: dict[int, Prediction | Failure] = {}
        for name, view in by_task.items():
            rows = [row for row, task in enumerate(tasks) if task == name]
            own = view.predict([images[row] for row in rows], explain, batch_size, on_error=on_error)
            found |= dict(zip(rows, own, strict=True))
        return [found[row] for row in range(len(tasks))]

    def predict_stream(
        self,
        paths: Iterable[str | Path],
        batch_size: int = 16,
        explain: Explain = True,
        workers: int = 2,
        task: str | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Predicts any number of image files in their order, a few batches in memory at a time.

        Args:
            paths: Files; may be endless.
            batch_size: Images that go through the model together.
            explain: Whether to say why, or by which attribution.
            workers: Threads that read images ahead.
            task: Which task of an adapter with several.

        Yields:
            A prediction for each image, or a failure in the place of one that cannot be read.
        """
        view = self._only(task)
        asked, prepare = view.task, self.backbone.preprocess
        read = prefetch(paths, prepare, batch_size, workers, asked.longest_side, rounding=asked.rounding)
        for batch in read:
            results: dict[int, Prediction | Failure] = {
                failed.index: Failure(str(failed.path), failed.reason) for failed in batch.failures
            }
            if batch.indices:
                found = view._predicted(batch.pixels, [str(path) for path in batch.paths], explain)
                results |= dict(zip(batch.indices, found, strict=True))
            for index in sorted(results):
                yield results[index]

    def log_probabilities(self, visual: VisualTokens) -> Float[Tensor, "batch labels"]:
        """Of the labels, normalised and without the temperature: by the backbone, or by the concept bottleneck."""
        task = self.task
        if self.concepts is None:
            return score(self.model, visual, task.question, task.labels, task.use)
        return self.concepts.log_probabilities(self.concepts.read(self.model, visual, task.question, task.labels))

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens of preprocessed images, on the backbone's device."""
        return self.backbone.visual_tokens(pixels.to(self.backbone.device))

    def _batch(self, images: Sequence[Picture], explain: Explain, on_error: OnError) -> list[Prediction | Failure]:
        """What is said of each image that goes through the model in one batch, and of each that cannot."""
        opened, failed = dict[int, Image.Image](), dict[int, ImageError]()
        for place, image in enumerate(images):
            try:
                opened[place] = self._open(image)
            except ImageError as error:
                failed[place] = error
        places = list(opened)
        pixels, unfit = prepared(list(opened.values()), self.backbone.preprocess) if opened else (None, {})
        failed |= {places[row]: ImageError(_name(images[places[row]]), why) for row, why in unfit.items()}
        if failed and on_error != "return":
            raise failed[min(failed)]
        fit = [place for place in places if place not in failed]
        found = [] if pixels is None else self._predicted(pixels, [_name(images[place]) for place in fit], explain)
        said = {place: Failure(_name(images[place]), error.reason) for place, error in failed.items()}
        said |= dict(zip(fit, found, strict=True))
        return [said[place] for place in range(len(images))]

    def _open(self, image: Picture) -> Image.Image:
        if not isinstance(image, Image.Image):
            return open_image(image, self.task.longest_side, self.task.rounding)
        try:
            return shrink(to_rgb(image), self.task.longest_side, self.task.rounding)
        except OSError as error:  # of a file that Pillow opened and had not read yet
            raise ImageError(_name(image), f"damaged ({error})") from None

    def _predicted(self, pixels: Pixels, names: Sequence[str], explain: Explain) -> list[Prediction]:
        """Predictions of one batch of preprocessed images."""
        visual, task = self.visual_tokens(pixels), self.task
        log_p = self.log_probabilities(visual)
        shares = task.calibrated(log_p).exp().tolist()
        domains = self.backbone.domain(visual) or [None] * len(visual)
        rows = zip(names, shares, domains, strict=True)
        found = [self._scored(name, row, domain) for name, row, domain in rows]
        if explain and self.concepts is not None:
            return explained_by_words(self.model, self.concepts, visual, task, found, log_p)
        return explained(self.model, visual, task, found, log_p, explain) if explain else found

    def _scored(self, name: str, shares: Sequence[float], domain: Domain | None) -> Prediction:
        probabilities = dict(zip(self.task.labels, shares, strict=True))
        label = self.task.labels[max(range(len(shares)), key=shares.__getitem__)]
        by = (self.adapter, self.backbone.name, self._name)
        return Prediction(name, label, probabilities, None, {}, None, *by, domain, self.task.temperature)


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


def _bound_as_trained(backbone: Backbone, info: AdapterInfo) -> None:
    """Size images by area as they were in training, where the family does."""
    before, now = (
        [transform.get(name) for name in ("min_pixels", "max_pixels")]
        for transform in (info.image_transform, backbone.image_transform)
    )
    if None not in (*before, *now) and before != now:
        backbone.bound_pixels(*before)


def _served(backbone: Backbone, parts: Adapter, name: str | None, task: Task) -> Served:
    """One task of an adapter with what answers it."""
    one = parts.for_task(name)
    modules = (parts.aspects, one.prompt, one.info.asked())
    model = MaspModel(backbone, one.info.method, *modules, routing=parts.routing)
    return Served(model, task, one.info, parts.concepts)


def _has_shipped(backbone: str | Backbone, revision: str | None) -> bool:
    """Whether the shipped adapter is for this backbone: the embedded one, by its name or a copy of it."""
    if backbone == EMBEDDED:
        return True
    try:
        known = read_info(shipped_adapter()).backbone.fingerprint
    except AdapterError:
        return False
    if isinstance(backbone, str):
        return find_supported(backbone, revision).fingerprint == known
    return backbone.fingerprint() == known


def _refuse_parts(**given: object) -> None:
    """Make sure that no part of an adapter is named where there is none."""
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise UsageError(
            f"{', '.join(named)} without an adapter", "an adapter", "Name one, or leave it out: zero-shot."
        )


def _name(image: Picture) -> str:
    return "(image in memory)" if isinstance(image, Image.Image) else str(image)
