"""`masp export --as vllm` and `--as vllm-model`: what vLLM needs to serve an adapter with aspects, in one folder.

`vllm`: the adapter, a chat template and a note, without weights of the backbone. vLLM runs unmodified; the client
(`masp.serving.vllm_client`) computes Z and sends it with the image. `vllm-model`: a copy of the backbone whose
embedding matrix holds the soft prompts, beside the aspect modules, for the model class of
`masp.serving.vllm_plugin`, which computes Z inside the engine; a client then sends an image and the name of a task.
"""

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from masp.adapters import (
    AdapterInfo,
    backbone_commit,
    backbone_place,
    find_adapter,
    read_aspects,
    read_info,
    read_prompt,
    resolve,
)
from masp.backbones.export import (
    check_exportable,
    edit_json,
    export_rows,
    exportable,
    new_folder,
    rendered_prompt,
    trained_in_float32,
)
from masp.backbones.files import BackboneFiles, chat_template, find, read_json
from masp.core.atomic_io import write_folder
from masp.core.errors import AdapterError, BackboneError
from masp.core.labels import render_labels

if TYPE_CHECKING:
    from masp.backbones.export import ExportedRows

ADAPTER, NOTE, TEMPLATE, CARD = "masp", "masp_vllm.json", "masp_template.jinja", "README.md"
VERSIONS = ("0.32", "0.33")
"""The versions of vLLM, without their last part, whose interface the model class follows."""
ARCHITECTURES = {"qwen2_vl": "MaspQwen2VL", "qwen2_5_vl": "MaspQwen2_5_VL"}
"""model_type of a backbone → the name of the model class in vLLM."""
ONLY_TASK = "emotion"
"""What the task of an adapter with one task is called here."""
OPENS, CLOSES, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
BEFORE, AFTER = "\ue000", "\ue001"  # private-use characters: no template holds them


@dataclass(frozen=True)
class ServedTask:
    """One task as an engine is asked about it.

    Attributes:
        question: the text behind the soft prompt.
        labels: what there is to choose from.
        first_ids: the first token of each label's answer.
        both_places: whether the soft prompt stands before the image too.
        longest_side: images with a longer side are shrunk to it before they are sent; None: never.
    """

    question: str
    labels: tuple[str, ...]
    first_ids: tuple[int, ...]
    both_places: bool
    longest_side: int | None


@dataclass(frozen=True)
class _Source:
    """An adapter and its backbone, checked."""

    folder: Path
    info: AdapterInfo
    files: BackboneFiles
    tasks: dict[str, ServedTask]
    template: tuple[str, str]  # the turn before and behind what stands in the user's message
    float32: bool  # whether a task was trained in float32, so that its soft prompt should not be rounded


def export_vllm(
    adapter: str | Path,
    out: str | Path,
    backbone: str | None = None,
    revision: str | None = None,
    accept: Collection[str] = (),
    model: bool = False,
) -> Path:
    """Write a folder from which vLLM serves an adapter with aspects.

    Args:
        adapter: its folder, that of its run, or its id on a hub; all its tasks are exported.
        out: a folder that does not exist yet or is empty.
        backbone: hub id or folder; None: the one that the adapter names.
        revision: of an adapter on a hub.
        accept: which of the backbone's `processor`, `template` and `tokenizer` may be others than it was trained with.
        model: a whole model for vLLM with masp's plugin, instead of what an unmodified vLLM and the client need.

    Returns:
        The folder.

    Raises:
        AdapterError: no soft prompt, aspects that the adapter does not hold itself, labels whose first tokens do not
            tell them apart, sequential positions, or another backbone.
        BackboneError: a backbone that cannot be found, or of another family than Qwen2-VL and Qwen2.5-VL.
    """
    target, source = new_folder(out), _source(adapter, backbone, revision, accept)
    if not model:
        write_folder(target, partial(_write_parts, source))
        return target
    names = list(source.tasks)
    vectors = [read_prompt(source.folder, name if source.info.tasks else None)[1] for name in names]
    ends = torch.tensor([len(part) for part in vectors]).cumsum(0).tolist()
    spans = dict(zip(names, zip([0, *ends], ends, strict=False), strict=True))
    first = next(iter(source.tasks.values()))
    finish = partial(_finish_model, source, spans)
    export_rows(source.files, torch.cat(vectors), first.both_places, first.question, target, finish, source.float32)
    return target


def _source(adapter: str | Path, backbone: str | None, revision: str | None, accept: Collection[str]) -> _Source:
    from masp.backbones.chat import Chat
    from masp.backbones.checkpoint import load_tokenizer
    from masp.backbones.qwen2_vl import SYSTEM_TURN, turn

    folder = resolve(find_adapter(adapter, revision))
    info = read_info(folder)
    if info.aspects:
        read_aspects(folder)  # they have to be here, and whole
    name = backbone or backbone_place(folder, info)
    files = find(name, backbone_commit(name, info))
    if files.model_type not in exportable():
        raise BackboneError(
            f"the backbone '{files.name}' is of the family '{files.model_type}'",
            f"one of {', '.join(exportable())}, whose place for aspects and soft prompt in vLLM is known",
            "Serve it with masp instead.",
        )
    tokenizer = load_tokenizer(files)
    chat, tasks, float32 = Chat(files.name, tokenizer, turn(tokenizer, SYSTEM_TURN)), {}, False
    for key in info.tasks or (None,):
        one = read_prompt(folder, key)[0]
        check_exportable(one, files, accept)
        float32 = float32 or trained_in_float32(one)
        method = one.method.resolved()
        ids = tuple(chat.answer_ids(label, end=True)[0] for label in one.labels)
        _check_first(one.labels, ids)
        question = one.asked().ask_emotion(render_labels(one.labels, method.label_list or "comma"))
        both = method.prompt_places == "both"
        tasks[key or ONLY_TASK] = ServedTask(question, one.labels, ids, both, one.longest_side)
    whole = rendered_prompt(tokenizer, chat_template(files, tokenizer.chat_template), BEFORE, AFTER)
    return _Source(folder, info, files, tasks, (whole.partition(BEFORE)[0], whole.partition(AFTER)[2]), float32)


def _check_first(labels: Sequence[str], ids: Sequence[int]) -> None:
    for place, token in enumerate(ids):
        if token in ids[:place]:
            raise AdapterError(
                f"the labels '{labels[ids.index(token)]}' and '{labels[place]}' begin with the same token",
                "labels that their first tokens tell apart, as vLLM gives the probabilities of one token",
                "Serve this adapter with masp instead.",
            )


def _write_parts(source: _Source, folder: Path) -> None:
    """The folder for an unmodified vLLM."""
    head, tail = source.template
    shown = "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}"
    body = "{% for part in messages[-1]['content'] %}" + shown + "{% endfor %}"
    (folder / TEMPLATE).write_text(_literal(head) + body + _literal(tail), encoding="utf-8")
    place = source.files.name
    name = place if source.files.revision else source.info.backbone.name  # of a folder only its last part travels
    words = ["--enable-prompt-embeds", "--enable-mm-embeds", "--chat-template", TEMPLATE]
    words += ["--chat-template-content-format", "openai", *_limits(source.info)]
    _write_note(source, folder, ["vllm", "serve", name, *words], "image, with Z and P computed by masp's client")


def _finish_model(source: _Source, spans: dict[str, tuple[int, int]], folder: Path, made: "ExportedRows") -> None:
    """What makes a copy of the backbone with the soft prompts in it a model of the plugin."""
    prompts = {name: "".join(made.tokens[begin:end]) for name, (begin, end) in spans.items()}
    before = {name: prompts[name] if task.both_places else "" for name, task in source.tasks.items()}
    after = {name: prompts[name] + task.question for name, task in source.tasks.items()}
    head, tail = source.template
    chosen = (
        "{% set ns = namespace(task='') %}{% for part in messages[-1]['content'] %}"
        "{% if part['type'] != 'image' %}{% set ns.task = part['text'] %}{% endif %}{% endfor %}"
        f"{{% set before = {json.dumps(before)} %}}{{% set after = {json.dumps(after)} %}}"
    )
    body = "{{ before[ns.task] }}" + OPENS + IMAGE + CLOSES + "{{ after[ns.task] }}"
    (folder / TEMPLATE).write_text(chosen + _literal(head) + body + _literal(tail), encoding="utf-8")
    if source.info.aspects:  # without them vLLM's own class answers
        architecture = ARCHITECTURES[source.files.model_type]
        edit_json(folder / "config.json", lambda config: {**config, "architectures": [architecture]})
    words = ["--chat-template", f"DIR/{TEMPLATE}", "--chat-template-content-format", "openai", *_limits(source.info)]
    _write_note(source, folder, ["vllm", "serve", "DIR", *words], "image, and the name of a task as text")


def _limits(info: AdapterInfo) -> list[str]:
    """What every server is started with: one image, any log-probabilities, and images as large as in training."""
    words = ["--served-model-name", "masp", "--limit-mm-per-prompt", '{"image": 1, "video": 0}', "--max-logprobs", "-1"]
    bounds = pixel_bounds(info)
    return [*words, "--mm-processor-kwargs", json.dumps(bounds)] if bounds else words


def pixel_bounds(info: AdapterInfo) -> dict[str, int]:
    """The bounds of an image's area in training, in pixels; empty where nobody knows them."""
    return {key: info.image_transform[key] for key in ("min_pixels", "max_pixels") if key in info.image_transform}


def _write_note(source: _Source, folder: Path, command: Sequence[str], message: str) -> None:
    """The adapter, and how to serve it: the same for machines and for people."""
    home = folder / ADAPTER
    shutil.copytree(source.folder, home, ignore=lambda _, names: [n for n in names if n.startswith(".")])
    config: dict[str, Any] = read_json(source.files.folder / "config.json")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if source.float32 and dtype != "float32":
        dtype, command = "float32", [*command, "--dtype", "float32"]  # as the soft prompt was trained
    note = {
        "vllm": " or ".join(f"{version}.*" for version in VERSIONS),
        "command": list(command),
        "dtype": dtype,
        "backbone": {"fingerprint": source.files.fingerprint, "family": source.files.model_type},
        "message": message,
        "tasks": {name: vars(task) for name, task in source.tasks.items()},
    }
    (folder / NOTE).write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_readme(source, note), encoding="utf-8")


def _readme(source: _Source, note: dict[str, Any]) -> str:
    quoted = " ".join(f"'{word}'" if " " in word else word for word in note["command"])
    asked = "\n".join(_about(name, task) for name, task in source.tasks.items())
    parts = "the aspects and the soft prompt" if source.info.aspects else "the soft prompt"
    return f"""# {source.info.backbone.name} with {parts} of an adapter, for vLLM

Exported by masp for vLLM {note["vllm"]}.

```
{quoted}
```

The user's message holds: {note["message"]}. Tasks and their labels:

{asked}

Ask for the log-probabilities of the labels' first tokens (`logprob_token_ids`, `first_ids` in `{NOTE}`). They are those
of one token each; `masp predict` multiplies the probabilities of all tokens of a label.

Trusted clients only: vectors of a wrong shape can stop the engine, and text of users must not hold special tokens.
The probabilities are a reading of what an image evokes in general. Do not use them to judge people.
"""


def _about(name: str, task: ServedTask) -> str:
    side = (
        "" if task.longest_side is None else f" (send images with a longer side of at most {task.longest_side} pixels)"
    )
    return f"- `{name}`: {', '.join(task.labels)}{side}"


def _literal(text: str) -> str:
    """Text as it stands in a template of jinja, whatever it holds."""
    return "{{ " + json.dumps(text) + " }}"


def read_note(folder: str | Path) -> dict[str, Any]:
    """The note of an exported folder.

    Raises:
        AdapterError: the folder has none, or a damaged one.
    """
    file = Path(folder) / NOTE
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        todo = "Write it with masp export --as vllm."
        raise AdapterError(f"{file} cannot be read: {error}", "a folder that masp exported", todo) from None
