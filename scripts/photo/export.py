"""Write what ships of a bridge, fp16, and check it: merged into transformers' own SmolLM2 it gives the same states.

python scripts/photo/export.py --smollm FOLDER --bridge FILE [--figures FILE] [--trained TEXT]

It goes to src/masp/backbones/photo_bridge: the weights, their hash, and the card with the figures that evaluate.py
wrote. The checkpoint in the user's cache is then made anew by itself, and adapters of the old one are refused.

The file holds the projector, and for each linear layer of the language model two factors: its weight becomes
weight + up @ down. Query, key and value have one `down` together, and so have gate and up.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from bridge import load_bridge
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from masp.backbones.photo_weights import FUSED


def merge(model: Any, weights: dict[str, Tensor]) -> None:
    """Add the low-rank products to a model's own weights."""
    for number, layer in enumerate(model.model.layers):
        for name, parts in FUSED.items():
            key = f"language.layers.{number}.{name}"
            change = weights[f"{key}.up"].float() @ weights[f"{key}.down"].float()
            layers = [layer.get_submodule(part) for part in parts]
            for linear, one in zip(layers, change.split([linear.out_features for linear in layers]), strict=True):
                linear.weight.data += one


@torch.inference_mode()
def check(smollm: Path, weights: dict[str, Tensor]) -> float:
    """The largest difference of last hidden states, relative to the largest state."""
    model: Any = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    merge(model, weights)
    bridge = load_bridge(smollm, None, dtype=torch.float32)
    bridge.load({name: one.float() for name, one in weights.items()})
    ids = torch.arange(100, 130)[None]
    own = bridge.language(bridge.language.embedding[ids], torch.arange(30)[None])
    theirs = model.model(ids).last_hidden_state
    return ((own - theirs).abs().max() / theirs.abs().max()).item()


CARD = Path(__file__).with_name("card.md")


def write(args: argparse.Namespace) -> None:
    """Weights, hash and card."""
    kept = {name: one.half() for name, one in load_file(args.bridge).items() if not name.startswith("keeper.")}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "bridge.safetensors"
    save_file(kept, file)
    file.chmod(0o644)
    size = f"{file.stat().st_size / 1e6:.1f}"
    (args.out / "bridge.json").write_text(
        json.dumps({"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}, indent=1) + "\n"
    )
    figures = json.loads(args.figures.read_text()) if args.figures else {}
    (args.out / "README.md").write_text(
        CARD.read_text().format(
            size=size, trained=args.trained, figures="\n".join(lines_of(figures)) or "None were measured."
        )
    )
    print(f"{size} MB; difference when merged {check(args.smollm, kept):.1e}")


def lines_of(figures: dict[str, Any]) -> list[str]:
    """Figures as a list."""
    found = []
    for name, value in figures.items():
        if isinstance(value, dict):
            each = (f"{row}: {one['accuracy, %']} ± {one['deviation']} %" for row, one in value.items())
            found.append(f"- {name}: " + "; ".join(each))
        elif name != "bridge":
            found.append(f"- {name}: {value}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--trained", default="See `docs/log.md` of the repository.", help="what the card says of it")
    home = Path(__file__).parents[2] / "src" / "masp" / "backbones" / "photo_bridge"
    parser.add_argument("--out", type=Path, default=home)
    write(parser.parse_args())
