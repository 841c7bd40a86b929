"""Converting checkpoints of the authors' released code to an adapter, once (variant `released` of the method).

What they hold: `aspect.pth` is {"q_view": {aspect: (n, d)}, "cross_attn": {aspect: {in_proj_weight (3d, d),
in_proj_bias (3d), out_proj.weight (d, d), out_proj.bias (d)}}, "fuser": None}; a soft prompt is
{"<|reserved_special_token_0|>": (d), …}. Tensors are found by name, never by their order.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from masp.adapters.info import AdapterInfo, BackboneRecord, portable
from masp.adapters.pickled import load_tensors
from masp.adapters.store import save_adapter
from masp.backbones.loading import find_supported
from masp.core.aspects import ASPECTS
from masp.core.atomic_io import digest
from masp.core.config import MethodConfig
from masp.core.errors import AdapterError, UsageError, did_you_mean, shown
from masp.core.labels import RELEASED_LABELS, validate_labels
from masp.core.prompts import EMOTION, load_questions
from masp.model.aspect_attention import AspectModules
from masp.model.soft_prompt import SoftPrompt

LONGEST_SIDE = 1024  # the authors' code shrinks larger images to it before anything else
DEFAULT_LABELS = "emotion6"  # of the one soft prompt that the authors give out
MOST_QUERIES = 1024

_PLACE = re.compile(r"<\|reserved_special_token_(0|[1-9]\d{0,5})\|>")
_KINDS = (torch.float32, torch.bfloat16, torch.float16)
_CHECK = "Check that it is the file of the authors' code."


def import_released(
    out: Path,
    backbone: str,
    aspects: Path | None = None,
    soft_prompt: Path | None = None,
    labels: Sequence[str] = RELEASED_LABELS[DEFAULT_LABELS],
    questions: Path | None = None,
    revision: str | None = None,
) -> AdapterInfo:
    """Write the adapter that holds what the files hold; no weights of the backbone are loaded.

    Args:
        out: folder of the adapter, new or empty.
        backbone: hub id or folder of the model that the files were trained on.
        aspects: the file of stage 1; without it the prompt stands with the image alone (V+S).
        soft_prompt: the file of stage 2; without it the adapter reads aspects only.
        labels: what the prompt was trained to choose from, in the order of the question at evaluation.
        questions: the texts to ask; None for the package's own.
        revision: commit of the backbone on the hub.

    Raises:
        UsageError: no file is named, or `out` holds something.
        AdapterError: a file with anything but the expected tensors in it.
        BackboneError: the backbone is not there, or of no family that masp serves.
        DataError: labels that cannot be told apart, or unreadable questions.
    """
    given = [path for path in (aspects, soft_prompt) if path is not None]
    if not given:
        raise UsageError("there is nothing to import", "aspects, a soft prompt, or both", "Name at least one file.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already", "a folder that is new or empty", "Name another one, or remove it.")
    files, asked = find_supported(backbone, revision), load_questions(questions)
    modules = None if aspects is None else read_aspects(aspects, files.width)
    prompt = None if soft_prompt is None else read_soft_prompt(soft_prompt, files.width)
    sizes = {} if modules is None else {"queries": modules.queries}
    sizes |= {} if prompt is None else {"prompt_length": prompt.length}
    info = AdapterInfo(
        backbone=BackboneRecord(
            name=portable(files.name),
            revision=files.revision,
            family=files.model_type,
            fingerprint=files.fingerprint,
            dim=files.width,
            hashes=dict(files.hashes),
        ),
        method=MethodConfig.model_validate({"variant": "released", **sizes}).resolved(),
        aspects=() if modules is None else modules.aspects,
        labels=() if prompt is None else validate_labels(labels),
        longest_side=LONGEST_SIDE,
        questions={name: asked.aspect(name)[0] for name in ASPECTS} | {EMOTION: asked.emotion[0]},
        data={},
        imported={path.name: digest(path) for path in given},
    )
    return save_adapter(out, info, modules, prompt)


def read_aspects(path: Path, dim: int) -> AspectModules:
    """The six aspect modules of an `aspect.pth`, in fp32.

    Raises:
        AdapterError: other names, shapes or values than those of aspect modules of width `dim`.
    """
    content = load_tensors(path)
    if isinstance(content, Mapping) and content.get("fuser", 0) is None:
        content = {name: value for name, value in content.items() if name != "fuser"}
    parts = _table(content, ("q_view", "cross_attn"), f"{path}")
    queries = _table(parts["q_view"], ASPECTS, f"{path}: q_view")
    attention = _table(parts["cross_attn"], ASPECTS, f"{path}: cross_attn")
    count = _count(queries[ASPECTS[0]], f"{path}: q_view.{ASPECTS[0]}")
    with torch.device("meta"):
        modules = AspectModules(dim, ASPECTS, count, "multihead")
    for aspect in ASPECTS:
        module = modules.module(aspect)
        wanted = dict(module.named_parameters())
        own = [name for name in wanted if name != "queries"]
        released = {"queries": queries[aspect], **_table(attention[aspect], own, f"{path}: cross_attn.{aspect}")}
        values = {
            name: _values(released[name], tuple(like.shape), f"{path}: {name} of {aspect}")
            for name, like in wanted.items()
        }
        module.load_state_dict(values, assign=True)
    return modules


def read_soft_prompt(path: Path, dim: int) -> SoftPrompt:
    """The vectors of a soft prompt in the order of their numbers, in fp32.

    Raises:
        AdapterError: other names than those of reserved tokens, a gap in their numbers, or no vectors of width `dim`.
    """
    content = load_tensors(path)
    if not isinstance(content, Mapping) or not content:
        todo = "Name aspect modules with --aspects."
        raise AdapterError(f"{path} holds {_named(content)}", "a table of numbered vectors", todo)
    numbers: dict[int, object] = {}
    for name, value in content.items():
        place = _PLACE.fullmatch(name) if isinstance(name, str) else None
        if place is None:
            expected = "<|reserved_special_token_0|>, <|reserved_special_token_1|> …"
            raise AdapterError(f"{path} has the key {shown(name)}", expected, _CHECK)
        numbers[int(place[1])] = value
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None:
        got = f"{path} has {len(numbers)} vectors, but none with the number {missing}"
        raise AdapterError(got, "numbers from 0 on without a gap", _CHECK)
    rows = [_values(numbers[number], (dim,), f"{path}: vector {number}") for number in range(len(numbers))]
    return SoftPrompt(len(rows), dim, torch.stack(rows))


def labels_of(text: str | None, soft_prompt: Path) -> tuple[str, ...]:
    """The labels of a soft prompt: a data set of the authors' code by name, or a list with commas.

    Without a text they are those of Emotion6, unless the file's name says that they are others.

    Raises:
        UsageError: an unknown name, or none where the file is named after another data set.
    """
    if text is None:
        named = next(
            (name for name in RELEASED_LABELS if name in re.split(r"[^a-z0-9]+", soft_prompt.stem.lower())), None
        )
        if named not in (None, DEFAULT_LABELS):
            got = f"{soft_prompt.name} is named after {named}, and its labels are not given"
            raise UsageError(got, f"--labels where they are not those of {DEFAULT_LABELS}", f"Add --labels {named}.")
        text = DEFAULT_LABELS
    if "," in text:
        return validate_labels(label.strip() for label in text.split(","))
    if text.lower() not in RELEASED_LABELS:
        expected = f"one of {', '.join(RELEASED_LABELS)}, or the labels themselves with commas"
        raise UsageError(f"the label set '{text}' is unknown", expected, did_you_mean(text, RELEASED_LABELS))
    return RELEASED_LABELS[text.lower()]


def _table(value: object, names: Iterable[str], where: str) -> Mapping[str, object]:
    """A table of exactly these names."""
    wanted = list(names)
    if not isinstance(value, Mapping):
        raise AdapterError(f"{where} holds {_named(value)}", f"a table of {', '.join(wanted)}", _CHECK)
    for what, others in (
        ("lacks", [name for name in wanted if name not in value]),
        ("has the unknown", [key for key in value if key not in wanted]),
    ):
        if others:
            raise AdapterError(f"{where} {what} {shown(others[0])}", f"exactly {', '.join(wanted)}", _CHECK)
    return value


def _count(value: object, where: str) -> int:
    """The number of queries of an aspect."""
    if not isinstance(value, Tensor) or value.dim() != 2 or not 1 <= len(value) <= MOST_QUERIES:
        raise AdapterError(f"{where} holds {_named(value)}", "queries of the shape (n, d)", _CHECK)
    return len(value)


def _values(value: object, shape: tuple[int, ...], where: str) -> Tensor:
    """A tensor of this shape as fp32 numbers of its own; its memory is only touched once everything else fits."""
    plain = type(value) in (Tensor, nn.Parameter)
    if not isinstance(value, Tensor) or not plain or value.layout != torch.strided or value.dtype not in _KINDS:
        raise AdapterError(f"{where} is {_named(value)}", "a dense tensor of float32, float16 or bfloat16", _CHECK)
    if tuple(value.shape) != shape:
        todo = "Name the backbone that it was trained on (--backbone); the authors' files fit Qwen2-VL-7B-Instruct."
        raise AdapterError(f"{where} has the shape {tuple(value.shape)}", f"{shape} for this backbone", todo)
    numbers = value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(numbers).all()):
        raise AdapterError(f"{where} holds values that are not finite", "numbers", "Download or train it again.")
    return numbers


def _named(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} with the shape {tuple(value.shape)}"
    return f"{type(value).__name__}" + (f" with {len(value)} keys" if isinstance(value, Mapping) else "")
