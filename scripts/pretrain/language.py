"""Pre-train the embedded backbone's language model on the frozen vision tower's visual tokens.

python scripts/pretrain/language.py PICTURES --vision FOLDER --out FOLDER --minutes 40
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from muon import optimizers, set_rates
from packing import Packed, Packer
from safetensors.torch import load_file, save_file
from texts import corpus, full_turns, part_turns
from tokenizer import build
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax
from transformers import Qwen2VLForConditionalGeneration
from vision import DenseReader, patches

from architecture import VOCABULARY, backbone_config
from masp.data.emoji.label_model import Cues

TOKEN_SCALE = 0.3  # root mean square of the visual tokens; embeddings start at EMBEDDING_SCALE
EMBEDDING_SCALE = 0.1
HELD = 512
PART_SHARE = 0.25


@torch.no_grad()
def whiten_merger(model: DenseReader, pixels: np.ndarray) -> None:
    """Shift and scale the merger's last layer, so that visual tokens have mean 0 and the scale of embeddings."""
    tokens = model.visual_tokens(patches(torch.from_numpy(pixels))).flatten(0, 1)
    last, mean = model.tower.merger.mlp[2], tokens.mean(dim=0)
    scale = TOKEN_SCALE / (tokens - mean).pow(2).mean().sqrt()
    last.bias.sub_(mean).mul_(scale)
    last.weight.mul_(scale)


@torch.no_grad()
def read_tokens(model: DenseReader, pixels: np.ndarray) -> Tensor:
    """Visual tokens of all images: (images, 36, 256) bfloat16, the dtype that ships."""
    batches = (pixels[i : i + 64] for i in range(0, len(pixels), 64))
    return torch.cat([model.visual_tokens(patches(torch.from_numpy(batch))).bfloat16() for batch in batches])


class Lessons:
    """Draws batches: whole images with six turns each, or parts of images with cue questions only."""

    def __init__(self, tokens: Tensor, cells: np.ndarray, cues: list[Cues], packer: Packer, seed: int) -> None:
        self.tokens, self.cells, self.cues, self.packer = tokens, cells, cues, packer
        self.rng = np.random.default_rng(seed)

    def draw(self, index: np.ndarray) -> tuple[Packed, Tensor]:
        """A packed batch about the images `index`, and its visual tokens (batch, rows x columns, 256)."""
        tokens = self.tokens[index].float()
        if self.rng.random() >= PART_SHARE:
            return self.packer.pack([full_turns(self.rng, self.cues[i]) for i in index], (6, 6)), tokens
        grid, tokens, cells, whole = self._part(tokens.unflatten(1, (6, 6)), self.cells[index])
        turns = [part_turns(self.rng, self.cues[i], cells[n], whole) for n, i in enumerate(index)]
        return self.packer.pack(turns, grid), tokens

    def _part(self, tokens: Tensor, cells: np.ndarray) -> tuple[tuple[int, int], Tensor, np.ndarray, bool]:
        """A window of one to three cells a side, or the whole image with cells averaged in squares."""
        if self.rng.random() < 0.4:
            side = int(self.rng.choice([1, 2, 3]))
            pooled = tokens.unflatten(2, (side, -1)).unflatten(1, (side, -1)).mean(dim=(2, 4))
            return (side, side), pooled.flatten(1, 2), cells, True
        rows, columns = (int(n) for n in self.rng.integers(1, 4, 2))
        top, left = int(self.rng.integers(0, 7 - rows)), int(self.rng.integers(0, 7 - columns))
        window = (slice(None), slice(top, top + rows), slice(left, left + columns))
        return (rows, columns), tokens[window].flatten(1, 2), cells[window], False


def loss_of(model: Qwen2VLForConditionalGeneration, packed: Packed, tokens: Tensor) -> Tensor:
    """Cross-entropy against the probabilities of the supervised places; only those reach the output head."""
    embedding = model.model.language_model.embed_tokens
    vectors = embedding(packed.ids)
    vectors = torch.cat([vectors[:, : packed.visual.start], tokens, vectors[:, packed.visual.stop :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=vectors, position_ids=packed.positions, attention_mask=packed.allowed, use_cache=False
    ).last_hidden_state
    logits = linear(hidden[packed.rows, packed.columns], embedding.weight)
    return -(packed.targets * log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def load_cues(file: Path) -> list[Cues]:
    """The cues of the drawn images."""
    rows = [json.loads(line) for line in file.open() if line.endswith("\n")]
    return [Cues(row[0], tuple(row[1]), *row[2:]) for row in rows]


def start_model(vision: Path) -> tuple[Qwen2VLForConditionalGeneration, DenseReader]:
    """A language model with random weights beside the trained vision tower."""
    reader = DenseReader()
    reader.load_state_dict(load_file(vision / "vision.safetensors"))
    model = Qwen2VLForConditionalGeneration(backbone_config()).float()
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=EMBEDDING_SCALE)
    return model, reader


def train(pictures: Path, vision: Path, out: Path, minutes: float, rate: float, batch: int, seed: int) -> None:
    """Train for a stretch of wall-clock time; the schedule follows the clock."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    model, reader = start_model(vision)
    cues = load_cues(pictures / "pretrain.cues.jsonl")
    pixels = np.load(pictures / "pretrain.pixels.npy", mmap_mode="r")[: len(cues)]
    cells = np.load(pictures / "pretrain.cells.npy", mmap_mode="r")[: len(cues)]
    whiten_merger(reader, pixels[:HELD])
    model.model.visual.load_state_dict(reader.tower.state_dict())
    lessons = Lessons(read_tokens(reader, pixels), cells, cues, Packer(build(corpus(), VOCABULARY), VOCABULARY), seed)
    inner = [p for p in model.model.language_model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.model.language_model.parameters() if all(p is not q for q in inner)]
    both = optimizers(inner, rest, rate)
    out.mkdir(parents=True, exist_ok=True)
    log = (out / "language-log.jsonl").open("w")
    start, step, losses = time.monotonic(), 0, []
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        set_rates(both, min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02))
        loss = loss_of(model, *lessons.draw(lessons.rng.integers(HELD, len(cues), batch)))
        loss.backward()
        nn.utils.clip_grad_norm_([*inner, *rest], 1.0)
        for one in both:
            one.step()
            one.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            line = {"step": step, "seconds": round(time.monotonic() - start, 1), "pictures": step * batch}
            log.write(json.dumps(line | {"loss": round(float(np.mean(losses[-50:])), 4)}) + "\n")
            log.flush()
        if step % 500 == 0:
            save(model, out)
    save(model, out)


def save(model: Qwen2VLForConditionalGeneration, out: Path) -> None:
    """The weights so far, the tied output head left out."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "language.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.pictures, args.vision, args.out, args.minutes, args.rate, args.batch, args.seed)
