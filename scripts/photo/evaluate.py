"""What a bridge sees: names of Caltech's validation images, and what a linear probe reads from the last hidden states.

python scripts/photo/evaluate.py PHOTOGRAPHS --features FOLDER --smollm FOLDER --bridge FILE --out FILE
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from bridge import NAMED, PLAIN, RANK, VISUAL, Bridge, inputs, load_bridge
from lessons import NAME, Packer, Turn
from photographs import Features, catalogue
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from train_bridge import vectors
from transformers import AutoTokenizer

SHORT = "Name the emotion of this image."
STRENGTHS = (0.0003, 0.001, 0.003, 0.01)
BATCH, WORKERS = 32, 2


@torch.inference_mode()
def states(
    bridge: Bridge, packer: Packer, features: Features, rows: list[tuple[str, int]], turns: list[list[Turn]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each batch: last hidden states at the visual and the supervised places, and whether all answers are right."""

    def one(begin: int) -> tuple[Tensor, Tensor, Tensor]:
        packed = packer.pack(turns[begin : begin + BATCH])
        with torch.inference_mode():
            tokens = bridge.projector(*features.read(rows[begin : begin + BATCH]))
            put = vectors(bridge, packed, tokens, packer.start)
            hidden = bridge.language(put, packed.positions, packed.mask)
            read = hidden[packed.rows, packed.columns]
            wrong = torch.zeros(len(hidden)).index_add_(
                0, packed.rows, (bridge.language.logits(read).argmax(dim=-1) != packed.targets).float()
            )
        return hidden[:, packer.start : packer.start + VISUAL].float(), read.float(), wrong == 0

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, range(0, len(rows), BATCH)))


def probe(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of logistic regression, 70/30, three seeds, for the best strength of four."""
    found = []
    for strength in STRENGTHS:
        shares = []
        for train, test in StratifiedShuffleSplit(3, test_size=0.3, random_state=0).split(x, labels):
            mean, scale = x[train].mean(axis=0), x[train].std(axis=0) + 1e-6
            fit = LogisticRegression(C=strength, max_iter=300).fit((x[train] - mean) / scale, labels[train])
            shares.append(fit.score((x[test] - mean) / scale, labels[test]))
        found.append((float(np.mean(shares)), float(np.std(shares, ddof=1)), strength))
    mean, spread, strength = max(found)
    return {"accuracy, %": round(100 * mean, 1), "deviation": round(100 * spread, 1), "C": strength}


def probes(bridge: Bridge, packer: Packer, features: Features, part: str) -> dict[str, dict[str, float]]:
    """Probes for the labels of a part (the folders' names) on the tower and on the last hidden states."""
    labels = np.array([Path(name).parent.name for name in features.names[part]])
    rows = [(part, row) for row in range(len(labels))]
    read = states(bridge, packer, features, rows, [[(NAME[1], "a"), (SHORT, "a")]] * len(rows))
    image = torch.cat([one[0] for one in read])
    ends = torch.cat([one[1].unflatten(0, (-1, 4)) for one in read])
    tower = torch.cat([inputs(*features.read(rows[i : i + 256]))[1] for i in range(0, len(rows), 256)])
    kinds = {
        "tower": tower,
        "mean over visual places": image.mean(dim=1),
        "whole-picture places side by side": image[:, -NAMED - PLAIN :].flatten(1),
        "mean over cells, beside the whole-picture places": torch.cat(
            [image[:, : -NAMED - PLAIN].mean(dim=1), image[:, -NAMED - PLAIN :].flatten(1)], dim=1
        ),
        "end of a naming question": ends[:, 0],
        "end of an emotion question": ends[:, 2],
    }
    return {name: probe(one.numpy().astype(np.float64), labels) for name, one in kinds.items()}


def evaluate(args: argparse.Namespace) -> None:
    """Measure and write."""
    features = Features(args.features, ["caltech101", "emotion6", "fi"])
    bridge, packer = load_bridge(args.smollm, None, args.rank), Packer(AutoTokenizer.from_pretrained(args.smollm))
    weights = load_file(args.bridge)
    bridge.load({name: one.float() for name, one in weights.items() if not name.startswith("keeper.")})
    found: dict[str, object] = {"bridge": args.bridge.name}
    _, val = catalogue(args.photographs, features)
    rows = [(one.part, one.row) for one in val]
    read = states(bridge, packer, features, rows, [[(NAME[0], one.name or "")] for one in val])
    right = torch.cat([one[2] for one in read]).float().mean().item()
    found["Caltech val named exactly (greedy), %"] = round(100 * right, 1)
    print(json.dumps(found), flush=True)
    for part in args.parts.split(",") if args.parts else []:
        found[f"probes on {part}, 70/30, three seeds"] = probes(bridge, packer, features, part)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--parts", default="emotion6")
    torch.set_num_threads(1)
    evaluate(parser.parse_args())
