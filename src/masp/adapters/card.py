"""The model card of an adapter, written from its description: front matter for the hub, then text for people."""

import json
from collections.abc import Mapping

from torch import Tensor

from masp.adapters.info import AdapterInfo, DataRecord, ResultRecord, TrainingRecord
from masp.core.errors import counted
from masp.evaluation.metrics import share

TAGS = ("masp", "visual-emotion-recognition", "vision-language-model", "soft-prompt")

USE = """It is meant for research on which emotion a picture evokes, for looking at what a model reads from a picture
and why, and for sorting one's own pictures where a mistake harms nobody."""

MISUSE = (
    "Do not decide about people with it: not about work, school, credit, insurance, health, policing or access to "
    "anything.",
    "It does not tell what a person in a picture, or a person who looks at it, feels. The labels are what annotators "
    "chose: votes of a few people from few places, or the words that a picture was found by.",
    "Whoever looks different from the people in the training pictures, or comes from elsewhere than the annotators, is "
    "served worse. Measure that on pictures of your own before you rely on a figure below.",
    "The law may restrict systems that infer emotions of people, for example the European Union's AI Act "
    "(Regulation (EU) 2024/1689). Whether a use falls under it is a question for a lawyer; nothing here answers it.",
)


def card(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> str:
    """The text of README.md."""
    parts = [_front_matter(info), _head(info, tensors), _use(info), _intended()]
    for name in info.tasks or (None,):
        one = info.for_task(name)
        parts += [_trained(one, name), _results(one, name)]
    return "\n\n".join([*parts, _limits(info)]) + "\n"


def hub_id(info: AdapterInfo) -> str | None:
    """The id of the backbone on the hub; None for a folder and for the embedded one."""
    return info.backbone.name if info.backbone.revision is not None else None


def _front_matter(info: AdapterInfo) -> str:
    """What the hub reads; JSON strings are YAML, whatever is in them."""
    lines = ["---", f"license: {json.dumps(info.license or 'unknown')}", "library_name: masp"]
    base = hub_id(info)
    if base is not None:
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: adapter"]
    if {"prompt", "concepts"} & set(info.parts):
        lines.append("pipeline_tag: image-classification")
    lines += ["tags:", *(f"- {tag}" for tag in TAGS), "---"]
    return "\n".join(lines)


def _head(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> str:
    what = {
        ("aspects",): "Aspect modules",
        ("prompt",): "Soft prompt",
        ("aspects", "prompt"): "Aspect modules and soft prompt",
        ("aspects", "concepts"): "Aspect modules and concept bottleneck",
        ("aspects", "prompt", "concepts"): "Aspect modules, soft prompt and concept bottleneck",
    }[info.parts]
    lines = [f"# {what} for {info.backbone.name}", ""]
    lines.append("An adapter of masp: trained tensors for a frozen vision-language model, which is not part of it.")
    if info.tasks:
        lines += ["", "It names the emotion that a picture evokes. Its tasks, each with a soft prompt of its own:", ""]
        lines += [f"- `{name}`: {', '.join(task.labels)}" for name, task in info.tasks.items()] + [""]
    elif {"prompt", "concepts"} & set(info.parts):
        lines += ["", f"It names the emotion that a picture evokes: {', '.join(info.labels)}."]
    if info.concepts is not None:
        added = "" if info.concepts.prompt_aspects is None else ", and the scores of a soft prompt"
        lines.append(
            f"The label follows from {len(info.concepts.words)} words that are read from aspect tokens{added}."
        )
    if "prompt" in info.parts and info.concepts is None:
        lines.append(
            f"Before the image stand the tokens of the aspects {_words(info.aspects)}."
            if info.aspects
            else "It was trained without aspects (V+S): the model sees the image and the soft prompt only."
        )
        if info.aspects and "aspects" not in info.parts:
            lines.append("The aspect modules are not in this folder; it names them by the hash of their tensors.")
    elif info.concepts is None:
        lines += ["", f"It reads these aspects from a picture: {_words(info.aspects)}."]
    numbers = sum(tensor.numel() for tensor in tensors.values())
    lines += ["", f"{numbers:,} trained numbers in {len(tensors)} tensors."]
    return "\n".join([*lines, "", f"Licence: {info.license or 'none was named; ask whoever made it'}."])


def _use(info: AdapterInfo) -> str:
    known = hub_id(info) is not None or info.backbone.name == "embedded"
    backbone = "" if known else f" --backbone FOLDER/{info.backbone.name}"
    if {"prompt", "concepts"} & set(info.parts):
        task = f" --task {next(iter(info.tasks))}" if info.tasks else ""
        command = f"masp predict photo.jpg --adapter FOLDER_OR_ID{task}{backbone}"
    else:
        backbone = backbone or f" --backbone {info.backbone.name}"
        command = f"masp train prompt --aspects FOLDER_OR_ID{backbone} --data IMAGES --out RUN"
    return f"## Use\n\n```\n{command}\n```"


def _intended() -> str:
    return "## Intended use, and misuse\n\n" + USE + "\n\n" + "\n".join(f"- {line}" for line in MISUSE)


def _trained(info: AdapterInfo, task: str | None) -> str:
    method = info.method
    revision = f", commit {info.backbone.revision}" if info.backbone.revision else ""
    rows = {
        "backbone": f"{info.backbone.name}{revision} ({info.backbone.family}, width {info.backbone.dim})",
        "backbone fingerprint": info.backbone.fingerprint,
        "variant": method.variant,
        "queries per aspect": method.queries if info.aspects else None,
        "aspect attention": method.attention if info.aspects else None,
        "soft prompt": f"{info.prompt_length} vectors, {method.prompt_places}" if info.prompt_length else None,
        "routing": "a gate per image on each aspect's tokens" if method.routing and info.aspects else None,
        "positions": method.positions,
        "supervised": method.supervised,
        "temperature": None if info.temperature is None else f"{info.temperature:.3f}, fitted on the split val",
        **{f"data of stage {stage}": _data(record) for stage, record in sorted(info.data.items())},
        **{f"conditions of stage {stage}": _conditions(record) for stage, record in sorted(info.training.items())},
        "seeds": ", ".join(f"{stage} {seed}" for stage, seed in sorted(info.seeds.items())) or None,
        **{f"converted from {name}": f"SHA-256 {digest}" for name, digest in sorted(info.imported.items())},
        "versions": ", ".join(f"{name} {number}" for name, number in sorted(info.versions.items())),
    }
    return f"{_heading('Training', task)}\n\n| | |\n|---|---|\n" + _rows(rows)


def _heading(text: str, task: str | None) -> str:
    return f"## {text}" if task is None else f"## {text} of the task {task}"


def _results(info: AdapterInfo, task: str | None) -> str:
    parts = [_heading("Results", task)]
    if info.results:
        head = "| data | split | read by | accuracy, 95 % interval | macro F1 | images |\n|---|---|---|---|---|---|\n"
        parts.append(head + "\n".join(map(_result, info.results)))
    if info.metrics:
        rows = {name: _metric(info, name, value) for name, value in sorted(info.metrics.items())}
        parts.append("On the validation split, which chose the state that was kept:")
        parts.append("| measure | value |\n|---|---|\n" + _rows(rows))
    if len(parts) == 1 and info.imported:
        parts.append("None: it was trained by the authors' code and converted; masp has not measured it.")
    elif len(parts) == 1:
        parts.append("None: there was no validation split, or it was not used.")
    return "\n\n".join(parts)


def _limits(info: AdapterInfo) -> str:
    lines = [
        "It fits the backbone named above and no other; loading it with another one is refused.",
        "It knows what its training pictures showed.",
        "Probabilities are over these labels only, divided by the temperature where one was fitted; they are "
        "calibrated only where that was measured.",
        "Attention shows where a module looked, not what caused the answer.",
    ]
    methods = [task.method for task in info.tasks.values()] or [info.method]
    if "prompt" in info.parts and any(method.supervised == "newline_answer" for method in methods):
        lines.append("The end of the answer was not trained (variant `released`), so label scores rank it untrained.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _data(record: DataRecord) -> str:
    splits = ", ".join(f"{count:,} {name}" for name, count in sorted(record.images.items()))
    return f"{record.name}, {splits} images, fingerprint {record.fingerprint}"


def _conditions(record: TrainingRecord) -> str:
    text = (
        f"{record.steps:,} steps of {record.batch_size}, learning rate {record.learning_rate:g} ({record.schedule}, "
        f"warm-up {record.warmup:g}), weight decay {record.weight_decay:g}, class weights {record.class_weights}, "
        f"backbone in {record.dtype}"
    )
    if record.max_grad_norm is not None:
        text += f", gradients scaled down to a norm of {record.max_grad_norm:g}"
    start = record.prompt_start
    if start is None:
        return text
    return f"{text}, prompt started from {start.kind}" + (f' "{start.text}"' if start.text else "")


def _result(record: ResultRecord) -> str:
    interval = f"{100 * record.accuracy:.1f} % [{100 * record.low:.1f}, {100 * record.high:.1f}]"
    cells = (
        record.dataset,
        record.split,
        record.mode,
        interval,
        f"{100 * record.macro_f1:.1f} %",
        f"{record.images:,}",
    )
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _metric(info: AdapterInfo, name: str, value: float) -> str:
    """A measure; the accuracy of labels with its interval, since only there is the number of images known."""
    images = info.data["prompt"].images.get("val", 0) if "prompt" in info.data else 0
    if name != "prompt/accuracy" or not images:
        return f"{value:.4f}"
    interval = share(round(value * images), images)
    return f"{value:.4f}, 95 % interval [{interval.low:.4f}, {interval.high:.4f}] on {counted(images, 'image')}"


def _rows(rows: Mapping[str, object]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "/").split())


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)
