"""The model card of an adapter: `templates/card.md.j2`, filled from its description."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from masp.adapters.info import PACKAGED, AdapterInfo, ConceptRecord, DataRecord, ResultRecord, TrainingRecord
from masp.core.errors import counted
from masp.evaluation.metrics import share

WHAT = {
    ("aspects",): "Aspect modules",
    ("prompt",): "Soft prompt",
    ("aspects", "prompt"): "Aspect modules and soft prompt",
    ("aspects", "concepts"): "Aspect modules and concept bottleneck",
    ("aspects", "prompt", "concepts"): "Aspect modules, soft prompt and concept bottleneck",
}


def card(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> str:
    """The text of README.md: front matter for the hub (JSON strings are YAML, whatever is in them), then for people."""
    import jinja2  # heavy, and for writing only

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("masp"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"json": json.dumps, "cell": _cell}
    methods = [task.method for task in info.tasks.values()] or [info.method]
    return environment.get_template("card.md.j2").render(
        info=info,
        base=hub_id(info),
        what=WHAT[info.parts],
        numbers=sum(tensor.numel() for tensor in tensors.values()),
        tensors=len(tensors),
        command=_use(info),
        bottleneck=_bottleneck,
        tasks=[_task(info.for_task(name), name) for name in info.tasks or (None,)],
        untrained_end="prompt" in info.parts and any(method.supervised == "newline_answer" for method in methods),
    )


def _bottleneck(record: ConceptRecord) -> str:
    """What the label of a concept bottleneck follows from."""
    parts = [f"{len(record.words)} words that are read from aspect tokens"]
    parts += ["the tokens themselves"] * record.residual
    parts += ["the vision tower's features of the whole image"] * bool(record.image_features)
    parts += ["the scores of a soft prompt"] * (record.scores and record.prompt_aspects is not None)
    return ", and ".join(parts)


def hub_id(info: AdapterInfo) -> str | None:
    """The id of the backbone on the hub; None for a folder and for the embedded one."""
    return info.backbone.name if info.backbone.revision is not None else None


def _use(info: AdapterInfo) -> str:
    known = hub_id(info) is not None or info.backbone.name in PACKAGED
    backbone = "" if known else f" --backbone FOLDER/{info.backbone.name}"
    if {"prompt", "concepts"} & set(info.parts):
        task = f" --task {next(iter(info.tasks))}" if info.tasks else ""
        return f"masp predict photo.jpg --adapter FOLDER_OR_ID{task}{backbone}"
    backbone = backbone or f" --backbone {info.backbone.name}"
    return f"masp train prompt --aspects FOLDER_OR_ID{backbone} --data IMAGES --out RUN"


def _task(info: AdapterInfo, name: str | None) -> dict[str, Any]:
    """What the card says of one task: how it was trained, and what was measured."""
    return {
        "heading": "" if name is None else f" of the task {name}",
        "training": _trained(info),
        "results": [_result(record) for record in info.results],
        "metrics": {measure: _metric(info, measure, value) for measure, value in sorted(info.metrics.items())},
        "imported": info.imported,
    }


def _trained(info: AdapterInfo) -> dict[str, object]:
    method = info.method
    revision = f", commit {info.backbone.revision}" if info.backbone.revision else ""
    return {
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
    if record.attention_rate not in (None, 1.0):
        text += f", the aspect queries and what attends with them at {record.attention_rate:g} of the rate"
    if record.loss == "labels":
        text += ", loss over the probabilities of all labels"
    start = record.prompt_start
    if start is None:
        return text
    return f"{text}, prompt started from {start.kind}" + (f' "{start.text}"' if start.text else "")


def _result(record: ResultRecord) -> list[str]:
    interval = f"{100 * record.accuracy:.1f} % [{100 * record.low:.1f}, {100 * record.high:.1f}]"
    figures = (interval, f"{100 * record.macro_f1:.1f} %", f"{record.images:,}")
    return [record.dataset, record.split, record.mode, *figures]


def _metric(info: AdapterInfo, name: str, value: float) -> str:
    """A measure; the accuracy of labels with its interval, since only there is the number of images known."""
    images = info.data["prompt"].images.get("val", 0) if "prompt" in info.data else 0
    if name != "prompt/accuracy" or not images:
        return f"{value:.4f}"
    interval = share(round(value * images), images)
    return f"{value:.4f}, 95 % interval [{interval.low:.4f}, {interval.high:.4f}] on {counted(images, 'image')}"


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "/").split())
