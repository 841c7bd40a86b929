"""Stand-ins of the two weight packages of the extra `photo`, and of what masp carries for it: a tiny model.

Everything is written as the real ones are: a GGUF file, a file of `torch.save`, folders `*.dist-info`.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from masp.backbones import photo_weights
from masp.backbones.photo import PhotoTower, PhotoVisionConfig
from tiny.photo import CARRIED, GRID, SIDE, STAGES, VISION, WHOLE

DIM, HEADS, GROUPS, LAYERS, INNER, RANK = 24, 4, 2, 2, 26, 3
HIDDEN = {"cell": 19, "whole": 17}
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<empty_output>",
    *map(chr, range(33, 127)),
    "Ġ",
    "Ċ",
    "jo",
    "joy",
]
MERGES = ["j o", "jo y"]


def write(folder: Path) -> None:
    """Both packages in `site`, what masp carries in `home`; always the same numbers."""
    generator = torch.Generator().manual_seed(11)
    site, home = folder / "site", folder / "home"
    for source in (photo_weights.LANGUAGE, photo_weights.TOWER):
        (site / source.file).parent.mkdir(parents=True)
        about = site / f"{source.package.replace('-', '_')}-{source.version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {source.package}\nVersion: {source.version}\n")
    _gguf(site / photo_weights.LANGUAGE.file, generator)
    torch.save(tower_weights(generator), site / photo_weights.TOWER.file)
    home.mkdir()
    bridge = _bridge(generator)
    save_file(bridge, home / photo_weights.BRIDGE)
    (home / photo_weights.ABOUT).write_text(json.dumps({"sha256": _sha(home / photo_weights.BRIDGE)}))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (home / name).write_bytes((CARRIED / name).read_bytes())
    settings = json.loads((CARRIED / "preprocessor_config.json").read_text()) | {
        "size": {"height": SIDE, "width": SIDE}
    }
    (home / "preprocessor_config.json").write_text(json.dumps(settings))
    frame = json.loads((CARRIED / photo_weights.TOKENIZER).read_text())
    marks = [mark | {"id": index} for index, mark in enumerate(frame["added_tokens"][:4])]
    for mark, text in zip(marks, TOKENS, strict=False):
        mark["content"] = text
    (home / photo_weights.TOKENIZER).write_text(json.dumps(frame | {"added_tokens": marks}))
    (home / "config.json").write_text(json.dumps(_config()))


def use(folder: Path) -> None:
    """Let masp find these and no others; for a process of its own (tests restore with monkeypatch)."""
    sys.path.insert(0, str(folder / "site"))
    photo_weights.HOME = folder / "home"
    for name in ("LANGUAGE", "TOWER"):
        source = getattr(photo_weights, name)
        setattr(photo_weights, name, replace(source, sha256=_sha(folder / "site" / source.file)))
    photo_weights._identity.cache_clear()


def tower_weights(generator: torch.Generator) -> dict[str, Tensor]:
    """Convolutions with batch normalisation by the names of the package efficientnet-lite-pytorch."""
    weights: dict[str, Tensor] = {}

    def conv(name: str, norm: str, outer: int, inner: int, kernel: int) -> None:
        weights[f"{name}.weight"] = torch.randn(outer, inner, kernel, kernel, generator=generator) * 0.5
        for part in ("weight", "running_var"):
            weights[f"{norm}.{part}"] = torch.rand(outer, generator=generator) + 0.5
        for part in ("bias", "running_mean"):
            weights[f"{norm}.{part}"] = torch.randn(outer, generator=generator) * 0.5

    conv("_conv_stem", "_bn0", VISION["stem"], 3, 3)
    number, width = 0, VISION["stem"]
    for blocks, kernel, _, expansion, outer in STAGES:
        for _ in range(blocks):
            name, wide = f"_blocks.{number}", width * expansion
            if expansion > 1:
                conv(f"{name}._expand_conv", f"{name}._bn0", wide, width, 1)
            conv(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel)
            conv(f"{name}._project_conv", f"{name}._bn2", outer, wide, 1)
            number, width = number + 1, outer
    conv("_conv_head", "_bn1", VISION["hidden_size"], width, 1)
    return weights


def _config() -> dict[str, object]:
    text = {"model_type": "llama", "hidden_size": DIM, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    text |= {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "vocab_size": len(TOKENS), "head_dim": 6}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True}
    made = {"model_type": "photo", "image_token_id": 3, "grid": GRID, "whole_tokens": WHOLE, "text_config": text}
    made |= {f"{name}_hidden": size for name, size in HIDDEN.items()}
    return made | {"tie_word_embeddings": True, "vision_config": {"model_type": "photo_vision", **VISION}}


def _bridge(generator: torch.Generator) -> dict[str, Tensor]:
    whole = PhotoTower(PhotoVisionConfig(**VISION), GRID).whole
    found: dict[str, Tensor] = {}
    for name, inner, outer in (("cell", VISION["hidden_size"], DIM), ("whole", whole, WHOLE * DIM)):
        sizes = {"first": (HIDDEN[name], inner), "second": (outer, HIDDEN[name]), "third": (outer, HIDDEN[name])}
        for layer, size in sizes.items():
            found[f"projector.{name}.{layer}.weight"] = torch.randn(*size, generator=generator)
        for layer in ("first", "second"):
            found[f"projector.{name}.{layer}.bias"] = torch.randn(sizes[layer][0], generator=generator)
        for statistic in ("mean", "scale"):
            found[f"projector.{name}_{statistic}"] = torch.rand(inner, generator=generator) + 0.1
    rows = {"qkv": (2 * GROUPS + HEADS) * 6, "out": DIM, "gate_up": 2 * INNER, "down": DIM}
    columns = {"qkv": DIM, "out": HEADS * 6, "gate_up": DIM, "down": INNER}
    for layer in range(LAYERS):
        for name in rows:
            found[f"language.layers.{layer}.{name}.up"] = torch.randn(rows[name], RANK, generator=generator)
            found[f"language.layers.{layer}.{name}.down"] = torch.randn(RANK, columns[name], generator=generator)
    return {name: values.half() for name, values in found.items()}


def _gguf(file: Path, generator: torch.Generator) -> None:
    from gguf import GGUFWriter  # pyright: ignore[reportMissingImports]

    writer = GGUFWriter(file, "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    shapes = {"attn_norm": (DIM,), "ffn_norm": (DIM,), "attn_q": (HEADS * 6, DIM), "attn_k": (GROUPS * 6, DIM)}
    shapes |= {"attn_v": (GROUPS * 6, DIM), "attn_output": (DIM, HEADS * 6), "ffn_gate": (INNER, DIM)}
    shapes |= {"ffn_up": (INNER, DIM), "ffn_down": (DIM, INNER)}
    every: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), DIM), "output_norm": (DIM,)}
    every |= {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}
    for name, shape in every.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
