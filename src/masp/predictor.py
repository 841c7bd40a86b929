"""`Masp`: a backbone with an adapter, ready to predict. The library's main class."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self, overload

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from masp.adapters import (
    Adapter,
    AdapterInfo,
    find_adapter,
    load_adapter,
    push_to_hub,
    read_info,
    save_pretrained,
)
from masp.adapters.shipped import asked_of_shipped, shipped_adapter, shipped_for, task_in_use, trained_backbone
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.core.config import MethodConfig
from masp.core.errors import UsageError, counted, did_you_mean
from masp.core.labels import label_set
from masp.core.types import CachedPrefix, Pixels, VisualTokens
from masp.data.prefetch import ImageLike, image_name, prefetch, prepare_images
from masp.model.masp_model import MaspModel
from masp.model.prediction import (
    Explain,
    Failure,
    Prediction,
    Task,
    TaskHandle,
    label_scores,
    predict_visual,
    task_of,
    tasks_of,
    zero_shot_task,
)

ZERO_SHOT = "zero-shot"
"""What stands in results for the adapter where there is none."""

OnError = Literal["raise", "return"]
Tasks = str | Sequence[str] | None


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
        self._served: dict[str | None, TaskHandle] = {None: TaskHandle(model, task, info, adapter)}
        self._name: str | None = None
        self._whole: Adapter | None = None
        self._bare = False  # whether its concept bottlenecks are left out

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
        concepts: bool = True,
    ) -> Self:
        """Loads an adapter and the backbone it was trained on, or a backbone alone.

        Args:
            adapter: Its folder, that of its run, or its id on a hub. None: the one shipped for `backbone`, where there
                is one; otherwise the backbone alone, without aspects and soft prompt (zero-shot, row V of Table 2).
            backbone: Hub id, folder, or one loaded already; None: the one that the adapter names, or a packaged one.
            aspects: For a prompt that only names its aspects, the adapter that holds them.
            labels: Replaces the label set of the adapter, of every task if it holds several: a list, "joy, fear, awe",
                or a set by its name (`mikels8`, `ekman6`, `polarity`). Zero-shot: what to choose from; None: `mikels8`.
            task: Which of several tasks to use; `use` changes it later.
            revision: Commit, tag or branch of an adapter on a hub; None: the newest.
            backbone_revision: Commit of the backbone on the hub; None: the one the adapter was trained on.
            dtype: Number format of the backbone; `nf4`: its linear layers in 4 bits, with `masp[4bit]`.
            device: Where it runs; `auto`: the GPU if there is one; `spread`: over all GPUs, then memory, then disk.
            accept: Which of the backbone's `processor`, `template` and `tokenizer` may be others than in training.
            raw: Whether probabilities are the model's own, without the adapter's temperature.
            concepts: Whether the adapter's concept bottleneck answers, where it has one and is asked about its own
                labels. Otherwise the soft prompt alone does, as in the paper.

        Raises:
            AdapterError: No adapter there, a damaged one, or one for another backbone.
            BackboneError: The backbone cannot be loaded.
            DataError: Fewer than two labels, or labels that cannot be told apart.
            UsageError: No such task or label set, a revision of a folder, or a part of an adapter that is not used.
        """
        chosen = None if labels is None else label_set(labels)
        shipped = None if adapter is not None else shipped_for(backbone, backbone_revision)
        packaged = shipped
        if packaged is not None and chosen is not None:
            shipped, task, chosen = asked_of_shipped(packaged, task, chosen)
        if adapter is None and shipped is None:
            _refuse_parts(aspects=aspects, task=task, revision=revision)
            place = str(packaged) if backbone is None else backbone
            alone = load_backbone(place, backbone_revision, dtype, device) if isinstance(place, str) else place
            return cls(MaspModel(alone, MethodConfig()), zero_shot_task(chosen), ZERO_SHOT)
        folder = find_adapter(adapter, revision) if adapter is not None else shipped_adapter(str(shipped))
        info = read_info(folder)
        name = task_in_use(info, task, ships=adapter is None)
        asked = tasks_of(info, chosen, raw, concepts, name)
        if backbone is None or isinstance(backbone, str):
            backbone = trained_backbone(folder, info, backbone, backbone_revision, dtype, device)
        whole = load_adapter(folder, backbone, None if aspects is None else find_adapter(aspects), accept)
        served = {key: _served(backbone, whole, shipped or str(adapter), key, *one) for key, one in asked.items()}
        return cls._of(served, name, whole, bare=not any(own for _, own in asked.values()))

    @classmethod
    def _of(
        cls, served: dict[str | None, TaskHandle], name: str | None, whole: Adapter | None = None, bare: bool = False
    ) -> Self:
        first = next(iter(served.values()))
        made = cls(first.model, first.task, first.adapter, first.info)
        made._served, made._name, made._whole, made._bare = served, name, whole, bare
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
    def task(self) -> Task:
        """What is asked in the task in use."""
        return self._in_use().task

    @property
    def info(self) -> AdapterInfo | None:
        """The adapter's description, as if it held the task in use alone."""
        return self._in_use().info

    def _in_use(self) -> TaskHandle:
        name = self._name
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

    def handle(self, task: str | None = None) -> TaskHandle:
        """A task, or the one in use now; no later `use` reaches it."""
        return self._in_use() if task is None else self._served[self._known(task)]

    def for_task(self, task: str | None = None, labels: str | Sequence[str] | None = None) -> "Masp":
        """This object with one task, or with the one in use now, sharing everything; no `use` reaches it.

        Args:
            task: Which; None: the one in use.
            labels: Replaces the task's label set; see `from_pretrained`.

        Raises:
            DataError: Labels that cannot be told apart, or fewer than two.
            UsageError: No such task or label set, or several tasks and none named.
        """
        chosen = self.handle(task)
        if labels is not None:
            given, info, concepts = label_set(labels), chosen.info, chosen.concepts
            if info is not None and not info.answers(given):
                info, concepts = info.without_concepts(), None
            asked = zero_shot_task(given) if info is None else task_of(info, given, chosen.task.raw)
            chosen = replace(chosen, task=asked, info=info, concepts=concepts)
        return Masp._of({chosen.name: chosen}, chosen.name)

    @property
    def parts(self) -> Adapter:
        """The adapter: its description and its trained modules.

        Raises:
            UsageError: this object was built from a model without a description.
        """
        if self._whole is not None:
            return self._whole.without_concepts() if self._bare else self._whole
        if self.info is None:
            raise UsageError("this model has no description", "one that was loaded with from_pretrained")
        routing, concepts = self.model.routing, self.handle().concepts
        return Adapter(self.info, self.model.aspects, self.model.prompt, concepts=concepts, routing=routing)

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
        """Pushes the adapter, never the backbone, and returns the commit's address; see `masp.adapters.hub`."""
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
        self, images: ImageLike, explain: Explain = True, batch_size: int = 16, task: str | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], explain: Explain = True, batch_size: int = 16, task: Tasks = None
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: ImageLike,
        explain: Explain = True,
        batch_size: int = 16,
        task: str | None = None,
        *,
        on_error: OnError,
    ) -> Prediction | Failure: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        explain: Explain = True,
        batch_size: int = 16,
        task: Tasks = None,
        *,
        on_error: OnError,
    ) -> list[Prediction | Failure]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        explain: Explain = True,
        batch_size: int = 16,
        task: Tasks = None,
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
        handle = self.handle(task)
        alone = isinstance(images, str | Path | Image.Image)
        result = self._each([handle], [images] if alone else images, explain, batch_size, on_error)
        one = [prediction if isinstance(prediction, Failure) else prediction[0] for prediction in result]
        return one[0] if alone else one

    def predict_tasks(
        self,
        images: Sequence[ImageLike],
        tasks: Sequence[str] | None = None,
        explain: Explain = True,
        batch_size: int = 16,
        *,
        on_error: OnError = "raise",
    ) -> list[dict[str, Prediction] | Failure]:
        """Predicts several tasks of the adapter for each image.

        An image is read once, and what stands before the soft prompts is computed once for all tasks that agree in it;
        so probabilities may differ in the last digits from those of a call for one task.

        Args:
            images: What to predict.
            tasks: Which tasks; None: all of them.
            explain: Whether to say why.
            batch_size: Images that go through the model together.
            on_error: See `predict`.

        Returns:
            For each image the prediction of each task by its name, or a failure.

        Raises:
            ImageError: An image cannot be read, or has a shape that the backbone refuses.
            UsageError: No such task, an adapter whose one task has no name, or tasks that shrink images differently.
        """
        handles = self._handles(self.tasks if tasks is None else tasks)
        result = self._each(handles, images, explain, batch_size, on_error)
        names = [handle.name or "" for handle in handles]
        return [
            prediction if isinstance(prediction, Failure) else dict(zip(names, prediction, strict=True))
            for prediction in result
        ]

    def _handles(self, tasks: Sequence[str]) -> list[TaskHandle]:
        """Several tasks for the same images, which all of them see at one size."""
        if not tasks:
            raise UsageError("no tasks", "at least one", "An adapter with one task has no names: leave them out.")
        handles = [self.handle(task) for task in tasks]
        if len({(one.task.longest_side, one.task.rounding) for one in handles}) > 1:
            raise UsageError("tasks that shrink images to different sizes", "one size", "Predict them one by one.")
        return handles

    def _mixed(
        self,
        images: ImageLike | Sequence[ImageLike],
        explain: Explain,
        batch_size: int,
        tasks: Sequence[str],
        on_error: OnError,
    ) -> list[Prediction | Failure]:
        """Predictions with a task for each image, in the order of the images."""
        if isinstance(images, str | Path | Image.Image) or len(images) != len(tasks):
            count = "one image" if isinstance(images, str | Path | Image.Image) else counted(len(images), "image")
            raise UsageError(f"a list of {counted(len(tasks), 'task')} for {count}", "a task for each image of a list")
        for name in tasks:  # a wrong name is refused before anything is computed
            self._known(name)
        result: dict[int, Prediction | Failure] = {}
        for name in dict.fromkeys(tasks):
            rows = [row for row, task in enumerate(tasks) if task == name]
            own = self.predict([images[row] for row in rows], explain, batch_size, name, on_error=on_error)
            result |= dict(zip(rows, own, strict=True))
        return [result[row] for row in range(len(tasks))]

    def predict_stream(
        self,
        paths: Iterable[str | Path],
        batch_size: int = 16,
        explain: Explain = True,
        workers: int = 2,
        task: Tasks = None,
    ) -> Iterator[Prediction | Failure]:
        """Predicts any number of image files in their order, a few batches in memory at a time.

        Args:
            paths: Files; may be endless.
            batch_size: Images that go through the model together.
            explain: Whether to say why, or by which attribution.
            workers: Threads that read images ahead.
            task: Which task of an adapter with several, or several for each image, see `predict_tasks`.

        Yields:
            A prediction for each image and task, or a failure in the place of an image that cannot be read.
        """
        handles = [self.handle(task)] if task is None or isinstance(task, str) else self._handles(task)
        asked, prepare = handles[0].task, self.backbone.preprocess
        read = prefetch(paths, prepare, batch_size, workers, asked.longest_side, rounding=asked.rounding)
        for batch in read:
            results: dict[int, Sequence[Prediction | Failure]] = {
                failed.index: [Failure(str(failed.path), failed.reason)] for failed in batch.failures
            }
            if batch.indices:
                visual = self.visual_tokens(batch.pixels)
                result = predict_visual(handles, visual, [str(path) for path in batch.paths], explain)
                results |= dict(zip(batch.indices, result, strict=True))
            for index in sorted(results):
                yield from results[index]

    def log_probabilities(self, visual: VisualTokens) -> Float[Tensor, "batch labels"]:
        """Of the labels, normalised and without the temperature: by the backbone, or by the concept bottleneck."""
        return label_scores([self._in_use()], visual)[0]

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """Visual tokens of preprocessed images, on the backbone's device."""
        return self.backbone.visual_tokens(pixels.to(self.backbone.device))

    def predict_tokens(
        self, visual: VisualTokens, names: Sequence[str], explain: Explain = True, prefix: CachedPrefix | None = None
    ) -> list[Prediction]:
        """Predicts images whose visual tokens are computed already, in the task in use.

        Args:
            visual: Of the images.
            names: What the images are called.
            explain: Whether to say why, or by which attribution.
            prefix: What precedes the soft prompt, computed already and perhaps shared with other tasks.
        """
        return [one for (one,) in predict_visual([self._in_use()], visual, names, explain, prefix)]

    def _each(
        self, handles: Sequence[TaskHandle], images: Sequence[ImageLike], explain: Explain, size: int, on_error: OnError
    ) -> list[list[Prediction] | Failure]:
        """For each image what is said of it in every task, or why nothing is."""
        if size < 1:
            raise UsageError(f"batch_size is {size}", "1 or more", "Correct batch_size.")
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return [one for part in parts for one in self._batch(handles, part, explain, on_error)]

    def _batch(
        self, handles: Sequence[TaskHandle], images: Sequence[ImageLike], explain: Explain, on_error: OnError
    ) -> list[list[Prediction] | Failure]:
        """The same for images that go through the model together."""
        task, names = handles[0].task, [image_name(image) for image in images]
        pixels, failed = prepare_images(images, self.backbone.preprocess, task.longest_side, task.rounding)
        if failed and on_error != "return":
            raise failed[min(failed)]
        predictions: dict[int, list[Prediction] | Failure] = {
            index: Failure(names[index], error.reason) for index, error in failed.items()
        }
        if pixels is not None:
            fit = [index for index in range(len(images)) if index not in failed]
            result = predict_visual(handles, self.visual_tokens(pixels), [names[index] for index in fit], explain)
            predictions |= dict(zip(fit, result, strict=True))
        return [predictions[index] for index in range(len(images))]


def _served(
    backbone: Backbone, parts: Adapter, adapter: str, name: str | None, task: Task, concepts: bool
) -> TaskHandle:
    """One task of an adapter with what answers it: its concept bottleneck, or without it its soft prompt."""
    one = parts.for_task(name) if concepts else parts.for_task(name).without_concepts()
    modules = (one.aspects, one.prompt, one.info.asked())
    model = MaspModel(backbone, one.info.method, *modules, routing=one.routing)
    return TaskHandle(model, task, one.info, adapter, name, one.concepts)


def _refuse_parts(**given: object) -> None:
    """Make sure that no part of an adapter is named where there is none."""
    if named := [name for name, value in given.items() if value is not None]:
        todo = "Name one, or leave it out: zero-shot."
        raise UsageError(f"{', '.join(named)} without an adapter", "an adapter", todo)
