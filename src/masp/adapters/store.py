"""Saving and loading adapters; everything that does not fit is refused before it can do harm."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from masp.adapters.card import card
from masp.adapters.info import (
    AGAIN,
    CARD,
    FORMAT,
    INFO,
    WEIGHTS,
    AdapterInfo,
    ConceptRecord,
    portable,
    read_info,
    resolve,
)
from masp.backbones.base import Backbone
from masp.backbones.files import READING, check_accepted, read_otherwise
from masp.core.atomic_io import with_usual_rights, write_folder
from masp.core.errors import AdapterError
from masp.model.aspect_attention import AspectModules, AspectRouting
from masp.model.concepts import IMAGE, RESIDUAL, ConceptHead
from masp.model.soft_prompt import SoftPrompt

PROMPT = "prompt.vectors"
CONCEPTS, ROUTING = "concepts.", "routing."
PART_OF_PROMPTS = ("prompt.", "prompts.")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter, on the backbone's device: its description and its trained modules.

    Attributes:
        info: its description.
        aspects: the aspect modules, which all tasks share.
        prompt: the soft prompt of an adapter with one task.
        prompts: those of an adapter with several, by name.
        concepts: the concept bottleneck that names the label, where there is one.
        routing: the gates that the soft prompt was trained with, where there are any.
        bottlenecks: the concept bottlenecks of an adapter with several tasks, by name.
    """

    info: AdapterInfo
    aspects: AspectModules | None
    prompt: SoftPrompt | None
    prompts: Mapping[str, SoftPrompt] = field(default_factory=dict)
    concepts: ConceptHead | None = None
    routing: AspectRouting | None = None
    bottlenecks: Mapping[str, ConceptHead] = field(default_factory=dict)

    def for_task(self, task: str | None) -> "Adapter":
        """The adapter as if it held this task alone; itself where it has one task.

        Raises:
            UsageError: no such task, or several and none was named.
        """
        name = self.info.chosen(task)
        if name is None:
            return self
        own = self.prompts.get(name), self.bottlenecks.get(name)
        return Adapter(self.info.for_task(name), self.aspects, own[0], concepts=own[1])

    def without_concepts(self) -> "Adapter":
        """Aspects and soft prompts alone.

        Raises:
            UsageError: a concept bottleneck stands without a soft prompt.
        """
        info = self.info.without_concepts()
        return replace(self, info=info, aspects=self.aspects if info.aspects else None, concepts=None, bottlenecks={})


def save_adapter(
    folder: Path,
    info: AdapterInfo,
    aspects: AspectModules | None = None,
    prompt: SoftPrompt | None = None,
    include_aspects: bool = True,
    aspects_dtype: torch.dtype = torch.float32,
    prompts: Mapping[str, SoftPrompt] = MappingProxyType({}),
    concepts: ConceptHead | None = None,
    routing: AspectRouting | None = None,
    bottlenecks: Mapping[str, ConceptHead] = MappingProxyType({}),
) -> AdapterInfo:
    """Write an adapter, whole or not at all, in the place of what was there.

    Args:
        folder: where.
        info: its description; what follows from the modules (parts, hashes, lengths) is filled in here.
        aspects: modules of exactly `info.aspects`; needed for their hashes even where they are not included.
        prompt: the soft prompt of an adapter with one task.
        include_aspects: whether the folder holds the aspects, or only names them by their hashes.
        aspects_dtype: float32, or bfloat16 for half the size.
        prompts: the soft prompts of `info.tasks`.
        concepts: a concept bottleneck on these aspects.
        routing: gates on these aspects, where `info.method` has them.
        bottlenecks: the concept bottlenecks of `info.tasks`.

    Returns:
        The description as written.

    Raises:
        AdapterError: nothing to save, a value that is not finite, or a disk that refuses to be written.
    """
    assert info.tasks.keys() == prompts.keys() | bottlenecks.keys(), "something that answers for each task"
    tensors: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    if aspects is not None:
        modules = _aspect_tensors(aspects, info.aspects, aspects_dtype)
        hashes = {name: tensors_sha256(group) for name, group in modules.items()}
        if include_aspects:
            tensors |= {
                f"aspects.{name}.{key}": value for name, group in modules.items() for key, value in group.items()
            }
    named = {PROMPT: prompt} if prompt is not None else {task_tensor(name): one for name, one in prompts.items()}
    tensors |= {name: one.vectors.detach().float().cpu().contiguous() for name, one in named.items()}
    if routing is not None:
        gates = routing.state_dict().items()
        tensors |= {ROUTING + name: value.detach().float().cpu().contiguous() for name, value in gates}
    about: dict[str, Any] = {"aspects_sha256": hashes, "prompt_length": prompt.length if prompt is not None else 0}
    if concepts is not None:
        about["concepts"] = _record(concepts)
    if bottlenecks:
        heads = {name: _record(bottlenecks[name]) if name in bottlenecks else None for name in info.tasks}
        about["tasks"] = {n: task.model_copy(update={"concepts": heads[n]}) for n, task in info.tasks.items()}
    for place, head in {None: concepts, **bottlenecks}.items():
        if head is not None:
            tensors |= {
                concept_tensor(name, place): one.float().cpu().contiguous() for name, one in head.tensors.items()
            }
    return write_tensors(folder, info.model_copy(update=about), tensors)


def _record(head: ConceptHead) -> ConceptRecord:
    """A concept bottleneck as the description has it."""
    return ConceptRecord(
        words=head.words,
        prompt_aspects=head.prompt_aspects,
        scores=head.scores,
        residual=head.residual,
        image_features=head.image_features,
        prompt_temperature=head.prompt_temperature,
    )


def write_tensors(folder: Path, info: AdapterInfo, tensors: Mapping[str, Tensor]) -> AdapterInfo:
    """Write an adapter's files; which parts it holds follows from the names of the tensors.

    Raises:
        AdapterError: as for `save_adapter`.
    """
    parts = [part for part in ("aspects", "prompt", "concepts") if any(name.startswith(part) for name in tensors)]
    if not parts:
        raise AdapterError("there is nothing to save", "aspect modules, a soft prompt, or both")
    info = without_places(AdapterInfo.model_validate(info.model_dump() | {"parts": tuple(parts)}))
    _check_finite(tensors, folder)

    def fill(partial: Path) -> None:
        with_usual_rights(partial / WEIGHTS, lambda file: save_file(dict(tensors), file))
        (partial / INFO).write_text(as_json(info), encoding="utf-8")
        (partial / CARD).write_text(card(info, tensors), encoding="utf-8")

    try:
        write_folder(folder, fill)
    except (OSError, SafetensorError) as error:
        todo = "Free some space or make the folder writable, then save again."
        raise AdapterError(
            f"writing the adapter {folder} failed: {error}", "a folder that can be written", todo
        ) from error
    return info


def task_tensor(name: str) -> str:
    """The name of a task's soft prompt among the tensors."""
    return f"prompts.{name}.vectors"


def concept_tensor(name: str, task: str | None) -> str:
    """The name among the tensors of one of a concept bottleneck's, by its own name and that of its task."""
    return CONCEPTS + ("" if task is None else f"{task}.") + name


def load_adapter(
    folder: str | Path, backbone: Backbone, aspects: str | Path | None = None, accept: Collection[str] = ()
) -> Adapter:
    """An adapter for this backbone.

    Args:
        folder: the adapter, or the run that made it.
        backbone: what it has to fit.
        aspects: for a prompt that only names its aspects, the adapter that holds them.
        accept: which of the backbone's `processor`, `template` and `tokenizer` may be others than it was trained with,
            beside those that the backbone was loaded with.

    Raises:
        UsageError: something else is to be accepted.
        AdapterError: it is damaged, belongs to another backbone, or needs aspects that were not given or are others.
    """
    path, info = resolve(folder), read_info(folder)
    _check_backbone(info, backbone, path)
    check_reading(info, backbone.hashes(), f"the adapter {path}", backbone.name, backbone.accepted.union(accept))
    tensors = read_tensors(path, info)
    result = {
        name: SoftPrompt(len(tensors[name]), backbone.dim, tensors[name]).to(backbone.device)
        for name in skeleton(info)
        if name.startswith(PART_OF_PROMPTS)
    }
    modules = None
    if "aspects" in info.parts:
        modules = _filled(info, tensors).to(backbone.device)
        _check_hashes(info, modules, f"the adapter {path} itself")
    elif info.aspects:
        modules = _borrowed(info, backbone, path, aspects, accept)
    prompts = {name: result[task_tensor(name)] for name, task in info.tasks.items() if task.prompt_length}
    heads = {
        name: _concepts(one.concepts, tensors, backbone.device, name)
        for name, one in ((None, info), *info.tasks.items())
        if one.concepts is not None
    }
    named = {name: head for name, head in heads.items() if name is not None}
    routing = None
    if _routed(info):
        routing = AspectRouting(info.aspects).to(backbone.device)
        routing.load_state_dict({name: tensors[ROUTING + name] for name in routing.state_dict()})
    return Adapter(info, modules, result.get(PROMPT), prompts, heads.get(None), routing, named)


def _routed(info: AdapterInfo) -> bool:
    """Whether the folder holds gates: a prompt that was trained with them on aspects."""
    return info.method.routing and "prompt" in info.parts and bool(info.aspects) and info.concepts is None


def _concepts(
    record: ConceptRecord, tensors: Mapping[str, Tensor], device: torch.device, task: str | None
) -> ConceptHead:
    """The concept bottleneck of a file, or of a task in it."""
    start = concept_tensor("", task)
    own = {name.removeprefix(start): one.to(device) for name, one in tensors.items() if name.startswith(start)}
    return ConceptHead(record.words, record.prompt_aspects, own, record.scores, record.prompt_temperature)


def read_prompt(folder: str | Path, task: str | None = None) -> tuple[AdapterInfo, Float[Tensor, "prompt dim"]]:
    """The description of a task and its soft prompt, for use without the backbone.

    Raises:
        AdapterError: it is damaged, has no soft prompt, or one that answers only with gates or a concept bottleneck.
        UsageError: no such task, or several and none was named.
    """
    path, whole = resolve(folder), read_info(folder)
    if "prompt" not in whole.parts:
        raise AdapterError(f"the adapter {folder} has no soft prompt", "one that masp train prompt wrote")
    name = whole.chosen(task)
    info = whole.for_task(name)
    if info.concepts is not None or _routed(info):
        more = "a concept bottleneck" if info.concepts is not None else "gates (method.routing)"
        todo = "Save it alone: Masp.from_pretrained(ADAPTER, concepts=False).save_pretrained(DIR)."
        todo = todo if info.concepts is not None else "Train one without method.routing."
        raise AdapterError(f"the adapter {folder} answers with {more} too", "a soft prompt that answers alone", todo)
    return info, read_tensors(path, whole)[PROMPT if name is None else task_tensor(name)]


def read_aspects(folder: str | Path) -> tuple[AdapterInfo, AspectModules]:
    """The description and the aspect modules in fp32 on the CPU, for use without the backbone.

    Raises:
        AdapterError: it is damaged, or holds no aspects itself.
    """
    path, info = resolve(folder), read_info(folder)
    if "aspects" not in info.parts:
        raise AdapterError(f"the adapter {folder} holds no aspect modules", "one with a copy of its aspects")
    modules = _filled(info, read_tensors(path, info))
    _check_hashes(info, modules, f"the adapter {path} itself")
    return info, modules


def without_places(info: AdapterInfo) -> AdapterInfo:
    """The description as it may travel: in the newest format, its backbone named without a path."""
    backbone = info.backbone.model_copy(update={"name": portable(info.backbone.name)})
    return info.model_copy(update={"format_version": FORMAT, "backbone": backbone})


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and fp32 values; the same for a module in fp32 and its exact copy in bf16."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().float().cpu().contiguous()
        state.update(json.dumps([name, list(values.shape)]).encode())
        state.update(values.numpy().tobytes())
    return state.hexdigest()


def as_json(info: AdapterInfo) -> str:
    """The text of adapter.json: keys in alphabetical order, tasks in their own, as the first of them may be in use."""
    content = json.loads(json.dumps(info.model_dump(mode="json"), sort_keys=True))
    content["tasks"] = {name: content["tasks"][name] for name in info.tasks}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _aspect_tensors(
    aspects: AspectModules, names: Sequence[str], dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, Tensor]]:
    """Tensors of each aspect's module by their own names, on the CPU."""
    return {
        name: {
            key: value.detach().to("cpu", dtype).contiguous()
            for key, value in aspects.module(name).state_dict().items()
        }
        for name in names
    }


def skeleton(info: AdapterInfo) -> dict[str, nn.Parameter]:
    """The tensors that the folder should hold, with their shapes but no memory."""
    expected: dict[str, nn.Parameter] = {}
    with torch.device("meta"):
        if "aspects" in info.parts:
            modules = _modules(info)
            for name in info.aspects:
                expected |= {f"aspects.{name}.{key}": value for key, value in modules.module(name).named_parameters()}
        if "prompt" in info.parts:
            lengths = {task_tensor(name): task.prompt_length for name, task in info.tasks.items()}
            lengths = {name: length for name, length in lengths.items() if length}
            for name, length in (lengths or {PROMPT: info.prompt_length}).items():
                expected[name] = SoftPrompt(length, info.backbone.dim).vectors
        if _routed(info):
            expected |= {ROUTING + name: value for name, value in AspectRouting(info.aspects).named_parameters()}
        for task in info.tasks or (None,):
            for name, shape in _concept_shapes(info.for_task(task)).items():
                expected[concept_tensor(name, task)] = nn.Parameter(torch.empty(*shape))
    return expected


def _concept_shapes(info: AdapterInfo) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a concept bottleneck, by their own names; empty where there is none."""
    if (record := info.concepts) is None:
        return {}
    width = (info.method.resolved().queries or 1) * info.backbone.dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, count in Counter(aspect for aspect, _ in record.words).items():
        shapes |= {f"{name}.weight": (count, width), f"{name}.bias": (count,)}
    labels = len(info.labels)
    beside = dict.fromkeys(info.aspects if record.residual else (), width)
    beside |= {IMAGE: record.image_features} if record.image_features else {}
    for name, features in beside.items():
        shapes |= {f"{name}.{RESIDUAL}.weight": (labels, features), f"{name}.{RESIDUAL}.bias": (labels,)}
    inputs = len(record.words) + (labels if record.scores and record.prompt_aspects is not None else 0)
    return shapes | {"labels.weight": (labels, inputs), "labels.bias": (labels,), "labels.mean": (inputs,)}


def _modules(info: AdapterInfo) -> AspectModules:
    method = info.method.resolved()
    assert method.queries is not None
    assert method.attention is not None
    return AspectModules(info.backbone.dim, info.aspects, method.queries, method.attention)


def _filled(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> AspectModules:
    """Aspect modules with the values of a file, in fp32."""
    with torch.device("meta"):
        modules = _modules(info)
    for name in info.aspects:
        module, prefix = modules.module(name), f"aspects.{name}."
        values = {key: tensors[prefix + key].float() for key in module.state_dict()}
        module.load_state_dict(values, assign=True)
    return modules


def read_tensors(path: Path, info: AdapterInfo) -> dict[str, Tensor]:
    """The weights file, once it is certain that it holds exactly the tensors that the description promises.

    Raises:
        AdapterError: it cannot be read; a tensor is missing, left over, or of the wrong shape, dtype or value.
    """
    file, todo, expected = path / WEIGHTS, AGAIN, skeleton(info)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"{file} cannot be read: {error}", "a safetensors file", todo) from None
    for what, names in (("lacks", expected.keys() - tensors), ("has the unknown", tensors.keys() - expected)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise AdapterError(f"{file} {what} tensor {shown}", f"the {len(expected)} tensors of {INFO}", todo)
    for name, tensor in tensors.items():
        shape, wanted = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != wanted:
            raise AdapterError(f"{file}: {name} has the shape {shape}", f"{wanted}", todo)
        kinds = (torch.float32, torch.bfloat16) if name.startswith("aspects.") else (torch.float32,)
        if tensor.dtype not in kinds:
            raise AdapterError(f"{file}: {name} is {tensor.dtype}", " or ".join(map(str, kinds)), todo)
    _check_finite(tensors, file)
    return tensors


def _borrowed(
    info: AdapterInfo, backbone: Backbone, path: Path, aspects: str | Path | None, accept: Collection[str]
) -> AspectModules:
    """The aspects that a prompt names, from another adapter.

    Raises:
        AdapterError: none was given, or it holds others.
    """
    if aspects is None:
        todo = "Name the aspects adapter it was trained with (--aspects DIR)."
        raise AdapterError(f"the prompt {path} does not hold its aspects", "a copy of them, or their folder", todo)
    other = load_adapter(aspects, backbone, accept=accept)
    missing = [name for name in info.aspects if other.aspects is None or name not in other.aspects.aspects]
    if other.aspects is None or missing:
        raise AdapterError(f"{aspects} holds no aspect modules for {', '.join(missing)}", "the aspects of the prompt")
    _check_hashes(info, other.aspects, f"{aspects}")
    tensors = _aspect_tensors(other.aspects, info.aspects)
    return _filled(
        info, {f"aspects.{n}.{key}": value for n, group in tensors.items() for key, value in group.items()}
    ).to(backbone.device)


def _check_hashes(info: AdapterInfo, modules: AspectModules, where: str) -> None:
    for name, tensors in _aspect_tensors(modules, info.aspects).items():
        if tensors_sha256(tensors) != info.aspects_sha256[name]:
            raise AdapterError(
                f"the aspect {name} in {where} is not the one that the prompt was trained with",
                f"SHA-256 {info.aspects_sha256[name][:12]}…",
                "Name the aspects adapter of that run, or train the prompt again.",
            )


def _check_backbone(info: AdapterInfo, backbone: Backbone, path: Path) -> None:
    known = info.backbone
    todo = f"Name that backbone (--backbone {known.name}), or train an adapter for this one."
    if known.dim != backbone.dim:
        raise AdapterError(
            f"the adapter {path} has hidden size {known.dim} (backbone {known.name})",
            f"{backbone.dim}, the hidden size of {backbone.name}",
            todo,
        )
    if known.fingerprint != backbone.fingerprint():
        raise AdapterError(
            f"the adapter {path} was trained on {known.name} ({known.family}, {known.fingerprint[:12]}…)",
            f"{backbone.name} ({backbone.family}, {backbone.fingerprint()[:12]}…)",
            todo,
        )


def check_reading(
    info: AdapterInfo, now: Mapping[str, str], name: str, backbone: str, accepted: Collection[str] = ()
) -> None:
    """Make sure that a backbone reads images and texts as an adapter was trained with; warn if that is unknown.

    Args:
        info: of the adapter.
        now: hashes of the backbone at hand.
        name: of the adapter, for the messages.
        backbone: name of the backbone at hand.
        accepted: which of them may differ.

    Raises:
        AdapterError: processor settings, chat template or tokenizer are others.
        UsageError: something else is to be accepted.
    """
    made, names = info.backbone.hashes, check_accepted(accepted)
    unknown = [words for one, words in READING.items() if one not in made and one not in names]
    if unknown:
        log.warning("%s does not say with which %s it was trained: nothing is checked", name, " and ".join(unknown))
    others = read_otherwise(made, now, names)
    if others:
        listed = ",".join(others)
        raise AdapterError(
            f"{name} was trained with " + " and ".join(f"another {READING[one]} ({made[one][:12]}…)" for one in others),
            f"that of {backbone} (" + ", ".join(f"{now[one][:12]}…" for one in others) + ")",
            "Take the files of the checkpoint it was trained on; or accept the difference: "
            f"--accept {listed}, the setting backbone.accept=[{listed}], or accept= in Python.",
        )


def _check_finite(tensors: Mapping[str, Tensor], where: Path) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{where}: {name} holds values that are not finite", "numbers", "Train it again.")
