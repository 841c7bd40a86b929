"""What an adapter says of itself: `adapter.json` as a record, and how it is found and read."""

import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from masp import __version__
from masp.backbones.base import Backbone
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import AdapterError, UsageError, did_you_mean
from masp.core.prompts import EMOTION, Questions
from masp.core.settings import PromptLoss

FORMAT = 4
READ = (1, 2, 3, 4)
"""Versions that are read. 3 lacks `temperature`, 2 `backbone.hashes`, 1 `training`, `results`, `license` and `tasks` as
well; all are written as 4 again."""

WEIGHTS, INFO, CARD = "weights.safetensors", "adapter.json", "README.md"
RUN = "run.json"  # of the run, in the folder that an adapter lies in
PACKAGED = ("embedded", "photo")  # backbones that are called by one word, and found by it everywhere
AGAIN = "Copy the adapter again, or train it again."
TASK_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}")
_HOMES = ("", "adapter", "prompt/adapter", "training/adapter")  # an adapter, a run, one of both stages, a baseline's


def library_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("torch", "transformers", "accelerate", "safetensors", "pillow")
    return {"python": platform.python_version(), "masp": __version__, **{name: version(name) for name in names}}


def portable(name: str) -> str:
    """A name that means the same on every machine: a hub id as it is, a folder by its base name."""
    path = Path(name)
    return Path(os.path.abspath(path)).name if path.is_absolute() or path.is_dir() else name  # noqa: PTH100


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneRecord(_Record):
    """The backbone that an adapter was trained on."""

    name: str = Field(description="Hub id, `embedded`, or the base name of a folder; never a path.")
    revision: str | None = Field(description="Commit on the hub; null for a folder.")
    family: str = Field(description="The family that served it.")
    fingerprint: str = Field(description="Hash of its configuration and weights: what has to fit.")
    dim: int = Field(ge=1, description="Width of the language model.")
    hashes: dict[str, str] = Field(
        default={},
        description="Hashes of its processor settings (`processor`), chat template (`template`) and tokenizer "
        "(`tokenizer`), which have to fit too unless they are accepted by name; empty where nobody knows them.",
    )

    @staticmethod
    def of(backbone: Backbone) -> "BackboneRecord":
        """A loaded backbone as an adapter names it."""
        return BackboneRecord(
            name=portable(backbone.name),
            revision=backbone.revision,
            family=backbone.family,
            fingerprint=backbone.fingerprint(),
            dim=backbone.dim,
            hashes=dict(backbone.hashes()),
        )


class DataRecord(_Record):
    """The data set that a stage was trained on."""

    name: str = Field(description="Its name.")
    fingerprint: str = Field(description="Hash of its images, labels and division.")
    images: dict[str, int] = Field(description="Usable images of each split.")


class TrainingRecord(_Record):
    """The conditions under which a stage was trained."""

    learning_rate: float = Field(description="Its peak.")
    schedule: str = Field(description="How it falls.")
    warmup: float = Field(description="Share of the steps during which it rises.")
    weight_decay: float = Field(description="Decay of the trained tensors.")
    steps: int = Field(ge=0, description="Steps that were taken.")
    batch_size: int = Field(ge=1, description="Examples per step.")
    class_weights: str = Field(description="Whether examples of rare labels counted more.")
    max_grad_norm: float | None = Field(
        default=None, description="Norm that gradients were scaled down to; null: none."
    )
    dtype: str = Field(description="Number format of the frozen backbone; what is trained is float32.")
    prompt_start: PromptInit | None = Field(default=None, description="How the soft prompt started; stage 2 only.")
    loss: PromptLoss | None = Field(
        default=None,
        exclude_if=lambda loss: loss is None,  # descriptions from before it existed keep their hashes
        description="`labels` where stage 2 learned by the probabilities of all labels; absent: by the right answer.",
    )
    attention_rate: float | None = Field(
        default=None,
        description="Share of the learning rate for the queries and W_K (`multihead`: the queries); stage 1 only.",
    )


class ResultRecord(_Record):
    """A measured accuracy."""

    dataset: str = Field(description="Name of the data set.")
    fingerprint: str = Field(description="Hash of the data set in the division that was measured.")
    split: str = Field(description="The split.")
    mode: str = Field(description="How the answer was read: score or generate.")
    images: int = Field(ge=1, description="Images that were measured.")
    accuracy: float = Field(ge=0, le=1, description="Share of right labels.")
    low: float = Field(ge=0, le=1, description="Lower end of its 95 % interval.")
    high: float = Field(ge=0, le=1, description="Upper end.")
    macro_f1: float = Field(ge=0, le=1, description="Mean F1 over the labels.")


class ConceptRecord(_Record):
    """The words of a concept bottleneck, and what it adds to them."""

    words: tuple[tuple[str, str], ...] = Field(
        min_length=1, description="Aspect and word, those of an aspect together."
    )
    prompt_aspects: tuple[str, ...] | None = Field(
        default=None,
        description="Aspects before the image where the soft prompt is asked; null: the adapter has none.",
    )
    scores: bool = Field(default=True, description="Whether the scores of the soft prompt are added, if it has one.")
    residual: bool = Field(default=False, description="Whether the labels are read from the aspect tokens too.")
    image_features: int = Field(
        default=0, ge=0, description="Features of the whole image that the labels are read from too; 0: none."
    )
    prompt_temperature: float | None = Field(
        default=None, gt=0, description="Temperature of the soft prompt where it answers alone; null: none was fitted."
    )

    @model_validator(mode="after")
    def _the_image_is_read_beside_the_tokens(self) -> Self:
        if self.image_features and not self.residual:
            raise ValueError("image_features is not 0, but residual is false: the image is read beside aspect tokens")
        return self


class TaskRecord(_Record):
    """One of several tasks of an adapter: what `AdapterInfo` says of the one task of another, in the same fields."""

    method: MethodConfig = Field(description="The variant; queries and attention are those of the shared aspects.")
    prompt_length: int = Field(ge=0, description="Soft-prompt vectors; 0: a concept bottleneck alone answers.")
    labels: tuple[str, ...] = Field(description="What it chooses from, in the order of the question.")
    longest_side: int | None = Field(description="Images with a longer side were shrunk to it; null: never.")
    questions: dict[str, str] = Field(description="What is asked, for each aspect and for the emotion.")
    data: dict[str, DataRecord] = Field(description="The data set of each stage.")
    seeds: dict[str, int] = Field(description="Seed of each stage.")
    versions: dict[str, str] = Field(description="Versions of the libraries it was trained with.")
    metrics: dict[str, float] = Field(description='On the split val, as "stage/measure".')
    training: dict[str, TrainingRecord] = Field(description="Conditions of each stage.")
    results: tuple[ResultRecord, ...] = Field(description="What `masp evaluate --record` measured.")
    imported: dict[str, str] = Field(default={}, description="Files of the authors' code it was converted from.")
    temperature: float | None = Field(default=None, gt=0, description="Of its label scores, as above.")
    concepts: ConceptRecord | None = Field(default=None, description="Its concept bottleneck, as above.")


class AdapterInfo(_Record):
    """Everything about an adapter but its numbers."""

    format_version: Literal[1, 2, 3, 4] = Field(default=FORMAT, description="4; versions 1 to 3 are still read.")
    parts: tuple[Literal["aspects", "prompt", "concepts"], ...] = Field(
        default=(), description="What the folder holds."
    )
    backbone: BackboneRecord = Field(description="What it fits.")
    method: MethodConfig = Field(description="The variant, with every choice filled in.")
    aspects: tuple[str, ...] = Field(
        description="Aspects whose tokens stand before the image, in that order; empty for a prompt trained without."
    )
    aspects_sha256: dict[str, str] = Field(
        default={}, description="Hash of each of these modules, whether the folder holds them or not."
    )
    prompt_length: int = Field(default=0, ge=0, description="Soft-prompt vectors; 0 without a prompt.")
    labels: tuple[str, ...] = Field(
        default=(), description="What the prompt chooses from, in the order of the question; empty without a prompt."
    )
    image_transform: dict[str, Any] = Field(
        default={}, description="What the backbone does to an image before its vision tower."
    )
    longest_side: int | None = Field(
        default=None, description="Images with a longer side were shrunk to it before anything else; null: never."
    )
    questions: dict[str, str] = Field(description="What is asked at evaluation, for each aspect and for the emotion.")
    data: dict[str, DataRecord] = Field(description="The data set of each stage.")
    seeds: dict[str, int] = Field(default={}, description="Seed of each stage.")
    versions: dict[str, str] = Field(default_factory=library_versions, description="Versions of the libraries.")
    metrics: dict[str, float] = Field(default={}, description='On the split val, as "stage/measure".')
    training: dict[str, TrainingRecord] = Field(default={}, description="Conditions of each stage.")
    results: tuple[ResultRecord, ...] = Field(default=(), description="What `masp evaluate --record` measured.")
    imported: dict[str, str] = Field(
        default={}, description="SHA-256 of the files of the authors' code that this was converted from, by name."
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="What the log-probabilities of its labels are divided by, fitted on the split val; null: none was.",
    )
    concepts: ConceptRecord | None = Field(
        default=None,
        description="The concept bottleneck that names the label in the language model's place; null: none.",
    )
    license: str | None = Field(default=None, description="Licence of the adapter, as a hub identifier.")
    tasks: dict[str, TaskRecord] = Field(
        default={},
        description="Several tasks over the same aspects, by name. Labels, prompt_length, results, temperature and "
        "concepts are then here and not above, where method and questions are those of the first task.",
    )

    def asked(self) -> Questions:
        """The recorded questions in the form in which they are asked."""
        return Questions({name: (self.questions[name],) for name in ASPECTS}, (self.questions[EMOTION],))

    def chosen(self, task: str | None) -> str | None:
        """The name of the task that is meant; None where there is one task, which has no name.

        Raises:
            UsageError: no such task, or several and none was named.
        """
        names = ", ".join(self.tasks)
        if not self.tasks and task is not None:
            raise UsageError(f"the task '{task}': this adapter has one task, without a name", "", "Leave it out.")
        if task is None and len(self.tasks) > 1:
            todo = "Name one: --task NAME on the command line, task=NAME or Masp.use(NAME) in Python."
            raise UsageError(f"this adapter holds several tasks ({names}), and none was named", "one of them", todo)
        if task is not None and task not in self.tasks:
            raise UsageError(f"this adapter has no task '{task}'", f"one of {names}", did_you_mean(task, self.tasks))
        return task or next(iter(self.tasks), None)

    def for_task(self, task: str | None) -> "AdapterInfo":
        """The description as it would be if the adapter held this task alone; itself where it has one task.

        Raises:
            UsageError: no such task, or several and none was named.
        """
        name = self.chosen(task)
        if name is None:
            return self
        one = self.tasks[name]
        own = {field: getattr(one, field) for field in TaskRecord.model_fields}
        held = {"aspects": True, "prompt": one.prompt_length > 0, "concepts": one.concepts is not None}
        parts = tuple(part for part in self.parts if held[part])
        return self.model_copy(update={**own, "parts": parts, "tasks": {}})

    def answers(self, labels: Sequence[str] | None) -> bool:
        """Whether all of it answers about these labels; a concept bottleneck beside a prompt does about its own."""
        alone = self.concepts is None or self.concepts.prompt_aspects is None
        return alone or labels is None or tuple(labels) == self.labels

    def without_concepts(self) -> "AdapterInfo":
        """The description of the soft prompts alone, which answer where the concept bottlenecks are left out.

        Raises:
            UsageError: a bottleneck stands without a soft prompt.
        """
        if self.tasks:
            alone = {name: self.for_task(name).without_concepts() for name in self.tasks}
            if len({one.aspects for one in alone.values()}) > 1:
                todo = "Name one task at a time."
                raise UsageError("the soft prompts of the tasks were trained with different aspects", "the same", todo)
            first = next(iter(alone.values()))
            parts = tuple(part for part in self.parts if part != "concepts" and (part != "aspects" or first.aspects))
            own = {"aspects": first.aspects, "aspects_sha256": first.aspects_sha256, "parts": parts}
            return self.model_copy(update={**own, "tasks": {name: one.as_task() for name, one in alone.items()}})
        if self.concepts is None:
            return self
        if "prompt" not in self.parts or self.concepts.prompt_aspects is None:
            todo = "Ask it about its own labels and without --no-concepts (concepts=False), or name another adapter."
            raise UsageError("the concept bottleneck is left out, and the adapter has no soft prompt", "one", todo)
        aspects = self.concepts.prompt_aspects
        parts = tuple(part for part in self.parts if part != "concepts" and (part != "aspects" or aspects))
        own = {"aspects": aspects, "aspects_sha256": {name: self.aspects_sha256[name] for name in aspects}}
        own |= {"temperature": self.concepts.prompt_temperature, "parts": parts, "concepts": None}
        return self.model_copy(update=own)

    def as_task(self) -> TaskRecord:
        """What an adapter with one task says of it."""
        return TaskRecord(**{field: getattr(self, field) for field in TaskRecord.model_fields})


def resolve(folder: str | Path) -> Path:
    """The adapter's own folder, where `folder` is it, or the run that made it.

    Raises:
        AdapterError: there is no adapter there.
    """
    homes = [Path(folder) / home for home in _HOMES]
    result = next((home for home in homes if (home / INFO).is_file()), None)
    if result is None:
        what = "is no adapter" if Path(folder).exists() else "does not exist"
        raise AdapterError(f"{folder} {what}", f"a folder with {INFO} and {WEIGHTS}", "Name what masp train wrote.")
    return result


def backbone_place(folder: str | Path, info: AdapterInfo) -> str:
    """Where the adapter's backbone is looked for: a hub id, "embedded" or a folder.

    An adapter names a folder by its base name only. The run that made it, where the adapter still lies in it, knows the
    place.

    Raises:
        AdapterError: the backbone was a folder, and nothing here says which.
    """
    name = info.backbone.name
    if info.backbone.revision is not None or name in PACKAGED or "/" in name:
        return name
    for path in (_place_of_run(resolve(folder).parent / RUN), name):
        if path is not None and Path(path).is_dir():
            return path
    raise AdapterError(
        f"the adapter {folder} was trained on a backbone in a folder called {name}, which is not here",
        "that folder",
        "Name it: --backbone DIR.",
    )


def backbone_commit(backbone: str, info: AdapterInfo) -> str | None:
    """The commit that the adapter was trained on; None for another backbone, and for a folder of the same name."""
    return info.backbone.revision if backbone == info.backbone.name and not Path(backbone).is_dir() else None


def bound_as_trained(backbone: Backbone, info: AdapterInfo) -> None:
    """Lets a backbone size images by area as it did when the adapter was trained, where its family does."""
    before, now = (
        [transform.get(name) for name in ("min_pixels", "max_pixels")]
        for transform in (info.image_transform, backbone.image_transform)
    )
    if None not in (*before, *now) and before != now:
        backbone.bound_pixels(*before)


def _place_of_run(description: Path) -> str | None:
    """The backbone that a run was given; None where there is no run or its description cannot be read."""
    try:
        return str(json.loads(description.read_bytes())["config"]["backbone"]["id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_info(folder: str | Path) -> AdapterInfo:
    """An adapter's description, without its numbers.

    Raises:
        AdapterError: no adapter, or a description that is damaged or of another format version.
    """
    path = resolve(folder) / INFO
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {error}", "JSON", AGAIN) from None
    result = content.get("format_version") if isinstance(content, dict) else None
    if result not in READ or isinstance(result, bool):
        todo = "Install a newer masp." if isinstance(result, int) and result > FORMAT else "Train it again."
        known = f"{READ[0]} to {READ[-1]}"
        raise AdapterError(f"{path} has the format version {result!r:.40}", f"{known}, which this masp reads", todo)
    try:
        info = AdapterInfo.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the table"
        todo = AGAIN
        raise AdapterError(f"{path}: {where}: {first['msg']}", "the description of an adapter", todo) from None
    problem = _inconsistency(info)
    if problem is not None:
        raise AdapterError(f"{path}: {problem}", "a description that masp wrote", AGAIN)
    return info


def _told_apart(record: ConceptRecord, aspects: Sequence[str]) -> bool:
    """Whether every word is there once, beside the others of its aspect, and every aspect is one of the adapter's."""
    names = [aspect for aspect, _ in record.words]
    together = names == [name for one in dict.fromkeys(names) for name in names if name == one]
    known = {*names, *(record.prompt_aspects or ())} <= set(aspects)
    return together and known and len(set(record.words)) == len(record.words)


def _inconsistency(info: AdapterInfo) -> str | None:
    """What is wrong with a description whose types are right."""
    if info.tasks:
        return _inconsistency_of_tasks(info)
    problem = None
    if not info.parts:
        problem = "parts is empty"
    elif len(set(info.aspects)) != len(info.aspects) or not set(info.aspects) <= set(ASPECTS):
        problem = f"aspects is {', '.join(info.aspects)}"
    elif set(info.aspects_sha256) != set(info.aspects):
        problem = "aspects_sha256 does not name the aspects"
    elif {"prompt", "concepts"} & set(info.parts) and not info.labels:
        problem = "the label set is empty"
    elif ("concepts" in info.parts) != (info.concepts is not None):
        problem = "concepts is described without being a part, or the reverse"
    elif info.concepts is not None and not _told_apart(info.concepts, info.aspects):
        problem = "concepts names a word twice, out of order, or of an aspect that is not there"
    elif "prompt" in info.parts and info.prompt_length == 0:
        problem = "prompt_length is 0"
    elif not info.questions.keys() >= {*ASPECTS, EMOTION}:
        problem = "questions is incomplete"
    return problem


def _inconsistency_of_tasks(info: AdapterInfo) -> str | None:
    if not {"prompt", "concepts"} & set(info.parts) or info.labels or info.prompt_length or info.concepts is not None:
        return "there are tasks, but parts, labels and prompt_length do not fit them"
    for name in info.tasks:
        if not TASK_NAME.fullmatch(name):
            return f"'{name}' is no name for a task"
        one = info.for_task(name)
        problem = _inconsistency(one) if {"prompt", "concepts"} & set(one.parts) else "there is nothing that answers"
        if problem is not None:
            return f"tasks.{name}: {problem}"
    return None
