"""Write what ships of a bridge, fp16, and check it: merged into transformers' own SmolLM2 it gives the same states.

python scripts/photo/export.py --smollm FOLDER --bridge FILE --out FILE

The file holds the projector, and for each linear layer of the language model two factors: its weight becomes
weight + up @ down. Query, key and value have one `down` together, and so have gate and up.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from bridge import load_bridge
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

FUSED = {
    "qkv": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "out": ("self_attn", ("o_proj",)),
    "gate_up": ("mlp", ("gate_proj", "up_proj")),
    "down": ("mlp", ("down_proj",)),
}


def merge(model: Any, weights: dict[str, Tensor]) -> None:
    """Add the low-rank products to a model's own weights."""
    for number, layer in enumerate(model.model.layers):
        for name, (group, parts) in FUSED.items():
            key = f"language.layers.{number}.{name}"
            change = weights[f"{key}.up"].float() @ weights[f"{key}.down"].float()
            layers = [getattr(getattr(layer, group), part) for part in parts]
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kept = {name: one.half() for name, one in load_file(args.bridge).items() if not name.startswith("keeper.")}
    save_file(kept, args.out)
    print(f"{args.out.stat().st_size / 1e6:.1f} MB; difference when merged {check(args.smollm, kept):.1e}")
