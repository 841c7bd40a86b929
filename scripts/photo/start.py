"""Start the projector solved instead of random: principal directions, then ridge regression to embeddings of names.

python scripts/photo/start.py PHOTOGRAPHS --features FOLDER --smollm FOLDER --out FILE

The first layer whitens the features. The tokens NAMED start as the embeddings of the first tokens of a thing's name,
the cells as the mean embedding of what the tower's head sees there, and PLAIN carry the whitened features themselves.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from bridge import HIDDEN_CELL, HIDDEN_WHOLE, NAMED, PLAIN, Projector, inputs, ridge
from photographs import Features, Shown, catalogue, class_names
from safetensors.torch import load_file, save_file
from torch import Tensor
from tower import Tower
from transformers import AutoTokenizer

from masp.backbones.photo import TwoLayers

PARTS = ("caltech101", "imagenet", "captions", "stanford40", "intel")
PAD = "\n"
STRENGTHS = (10.0, 100.0, 1000.0, 3000.0)
CELLS = 30_000


def read(features: Features, shown: list[Shown]) -> tuple[Tensor, Tensor]:
    """Features of cells (pictures, cells, 1280) and of whole pictures."""
    parts = []
    for begin in range(0, len(shown), 256):
        parts.append(inputs(*features.read([(one.part, one.row) for one in shown[begin : begin + 256]])))
    cells, whole = zip(*parts, strict=True)
    return torch.cat(cells), torch.cat(whole)


def whiten(x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, scale, whitening matrix (size, inner) of standardised features, and its variances."""
    mean, scale = x.mean(dim=0), 1 / x.std(dim=0).clamp(min=1e-3)
    y = (x - mean) * scale
    values, vectors = torch.linalg.eigh(y.T @ y / len(y))
    values, vectors = values.flip(0)[:size], vectors.flip(1)[:, :size]
    return mean, scale, (vectors / values.sqrt()).T.contiguous(), values


class Names:
    """Embeddings of names, and which name a prediction is closest to."""

    def __init__(self, smollm: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(smollm)
        self.table = load_file(smollm / "model.safetensors")["model.embed_tokens.weight"].float()

    def ids(self, name: str) -> list[int]:
        pad = self._tokenizer(PAD, add_special_tokens=False).input_ids
        return [*self._tokenizer(name, add_special_tokens=False).input_ids, *pad * NAMED][:NAMED]

    def rows(self, name: str) -> Tensor:
        """The embeddings of the first NAMED tokens of a name, one behind the other."""
        return self.table[self.ids(name)].flatten()

    def mean(self, name: str) -> Tensor:
        return self.table[self._tokenizer(name, add_special_tokens=False).input_ids].mean(dim=0)


def decoded(predicted: Tensor, truth: list[str], names: Names) -> float:
    """How often the closest of all true names is the right one."""
    known = sorted(set(truth))
    rows = torch.stack([names.rows(name) for name in known])
    centre = rows.mean(dim=0)
    rows, predicted = rows - centre, predicted - centre
    near = torch.nn.functional.normalize(predicted) @ torch.nn.functional.normalize(rows).T
    return float(np.mean([known[i] == name for i, name in zip(near.argmax(dim=1).tolist(), truth, strict=True)]))


def solve_whole(
    layers: TwoLayers, z: Tensor, shown: list[Shown], names: Names, rng: np.random.Generator
) -> dict[str, float]:
    """Second layer of the tokens of the whole picture; the strength is chosen on a fifth of Caltech's training part."""
    target = torch.stack([names.rows(one.name or one.guesses[0]) for one in shown])
    weight = torch.tensor([1.0 if one.name else max(one.chances[0], 0.05) for one in shown])
    kept = torch.tensor([one.part != "caltech101" or rng.random() < 0.8 for one in shown])
    held = [one.name or "" for one, here in zip(shown, kept.tolist(), strict=True) if not here]
    found = {}
    for strength in STRENGTHS:
        matrix, offset = ridge(z[kept], target[kept], weight[kept], strength)
        found[strength] = decoded(z[~kept] @ matrix.T + offset, held, names)
    best = max(found, key=lambda strength: found[strength])
    matrix, offset = ridge(z, target, weight, best)
    predicted = (z @ matrix.T).unflatten(1, (NAMED, -1))
    wanted = (target - target.mean(dim=0)).unflatten(1, (NAMED, -1))
    grow = (wanted.pow(2).mean(dim=(0, 2)) / predicted.pow(2).mean(dim=(0, 2))).sqrt().clamp(max=1.6)
    width = names.table.shape[1]
    matrix = matrix * grow.repeat_interleave(width)[:, None]
    offset = target.mean(dim=0)
    plain = torch.zeros(PLAIN * width, z.shape[1])
    each = -(-z.shape[1] // PLAIN)
    for number in range(PLAIN):
        columns = range(number * each, min((number + 1) * each, z.shape[1]))
        free = torch.linalg.qr(torch.randn(width, len(columns)))[0]
        size = names.table.pow(2).mean().sqrt() * (width / len(columns)) ** 0.5
        plain[number * width : (number + 1) * width, list(columns)] = free * size
    layers.second.weight.data.copy_(torch.cat([plain, matrix]))
    layers.second.bias.data.copy_(torch.cat([torch.zeros(PLAIN * width), offset]))
    return {f"held fifth named by ridge {strength:g}, %": round(100 * share, 1) for strength, share in found.items()}


def start(root: Path, folder: Path, smollm: Path, out: Path, seed: int) -> None:
    """Solve the projector and save it."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features, names, projector = Features(folder, list(PARTS)), Names(smollm), Projector()
    shown, val = catalogue(root, features)
    cells, whole = read(features, shown)
    mean, scale, matrix, values = whiten(whole, HIDDEN_WHOLE)
    projector.whole_mean.copy_(mean)
    projector.whole_scale.copy_(scale)
    projector.whole.first.weight.data.copy_(matrix)
    projector.whole.first.bias.data.zero_()
    figures = solve_whole(projector.whole, ((whole - mean) * scale) @ matrix.T, shown, names, rng)
    flat = cells.flatten(0, 1)
    flat = flat[torch.from_numpy(rng.permutation(len(flat))[:CELLS])]
    mean, scale, matrix, _ = whiten(flat, HIDDEN_CELL)
    projector.cell_mean.copy_(mean)
    projector.cell_scale.copy_(scale)
    projector.cell.first.weight.data.copy_(matrix)
    projector.cell.first.bias.data.zero_()
    chances = Tower().head(flat).softmax(dim=1)
    target = chances @ torch.stack([names.mean(name) for name in class_names(root)])
    solved, offset = ridge(((flat - mean) * scale) @ matrix.T, target, torch.ones(len(flat)), 10.0)
    projector.cell.second.weight.data.copy_(solved)
    projector.cell.second.bias.data.copy_(offset)
    with torch.no_grad():
        tokens = torch.cat([projector(*features.read([(one.part, one.row)])) for one in val])
    figures["Caltech val named by the closest name, %"] = round(
        100 * decoded(tokens[:, -NAMED:].flatten(1), [one.name or "" for one in val], names), 1
    )
    figures["pictures"] = len(shown)
    save_file(projector.state_dict() | {"variances": values}, out)
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start(args.photographs, args.features, args.smollm, args.out, args.seed)
