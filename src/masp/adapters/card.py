"""The model card of an adapter, written from its description."""

from collections.abc import Mapping

from torch import Tensor

from masp.adapters.info import AdapterInfo, DataRecord


def card(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> str:
    """The text of README.md."""
    return "\n\n".join([_head(info, tensors), _use(info), _trained(info), _results(info), _limits(info)]) + "\n"


def _head(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> str:
    what = {
        ("aspects",): "Aspect modules",
        ("prompt",): "Soft prompt",
        ("aspects", "prompt"): "Aspect modules and soft prompt",
    }[info.parts]
    lines = [f"# {what} for {info.backbone.name}", ""]
    lines.append("An adapter of masp: trained tensors for a frozen vision-language model, which is not part of it.")
    if "prompt" in info.parts:
        lines += ["", f"It names the emotion that a picture evokes: {', '.join(info.labels)}."]
        lines.append(
            f"Before the image stand the tokens of the aspects {_words(info.aspects)}."
            if info.aspects
            else "It was trained without aspects (V+S): the model sees the image and the soft prompt only."
        )
        if info.aspects and "aspects" not in info.parts:
            lines.append("The aspect modules are not in this folder; it names them by the hash of their tensors.")
    else:
        lines += ["", f"It reads these aspects from a picture: {_words(info.aspects)}."]
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return "\n".join([*lines, "", f"{numbers:,} trained numbers in {len(tensors)} tensors."])


def _use(info: AdapterInfo) -> str:
    if "prompt" in info.parts:
        command = f"masp predict photo.jpg --adapter FOLDER --backbone {info.backbone.name}"
    else:
        command = f"masp train prompt --aspects FOLDER --backbone {info.backbone.name} --data IMAGES --out RUN"
    return f"## Use\n\n```\n{command}\n```"


def _trained(info: AdapterInfo) -> str:
    method = info.method
    rows = {
        "backbone": f"{info.backbone.name} ({info.backbone.family}, width {info.backbone.dim})",
        "backbone fingerprint": info.backbone.fingerprint,
        "variant": method.variant,
        "queries per aspect": method.queries if info.aspects else None,
        "aspect attention": method.attention if info.aspects else None,
        "soft prompt": f"{info.prompt_length} vectors, {method.prompt_places}" if info.prompt_length else None,
        "positions": method.positions,
        "supervised": method.supervised,
        **{f"data of stage {stage}": _data(record) for stage, record in sorted(info.data.items())},
        "seeds": ", ".join(f"{stage} {seed}" for stage, seed in sorted(info.seeds.items())) or None,
        **{f"converted from {name}": f"SHA-256 {digest}" for name, digest in sorted(info.imported.items())},
        "versions": ", ".join(f"{name} {number}" for name, number in sorted(info.versions.items())),
    }
    return "## Training\n\n| | |\n|---|---|\n" + _rows(rows)


def _results(info: AdapterInfo) -> str:
    if info.imported:
        return "## Results\n\nNone: it was trained by the authors' code and converted; masp has not measured it."
    if not info.metrics:
        return "## Results\n\nNone: there was no validation split, or it was not used."
    rows = {name: f"{value:.4f}" for name, value in sorted(info.metrics.items())}
    return "## Results on the validation split\n\n| measure | value |\n|---|---|\n" + _rows(rows)


def _limits(info: AdapterInfo) -> str:
    lines = [
        "It fits the backbone named above and no other; loading it with another one is refused.",
        "It knows what its training pictures showed. The labels are what annotators chose, not what anyone feels.",
    ]
    if "prompt" in info.parts and info.method.supervised == "newline_answer":
        lines.append("The end of the answer was not trained (variant `released`), so label scores rank it untrained.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _data(record: DataRecord) -> str:
    splits = ", ".join(f"{count:,} {name}" for name, count in sorted(record.images.items()))
    return f"{record.name}, {splits} images, fingerprint {record.fingerprint}"


def _rows(rows: Mapping[str, object]) -> str:
    return "\n".join(
        f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items() if value is not None
    )


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)
