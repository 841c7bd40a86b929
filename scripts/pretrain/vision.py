"""Pre-train the embedded backbone's vision tower: which glyph covers each visual token, and the image's tone.

Dense labels (one class for each 28-pixel cell) teach a transformer from scratch in minutes on two cores, where question
answering alone does not (docs/log.md). All images have one size, so the whole batch goes through the blocks at once;
the parameters are those of transformers' own Qwen2-VL vision model and are saved as such.

    python scripts/pretrain/vision.py PICTURES --out FOLDER --minutes 30
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from muon import optimizers, set_rates
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from architecture import backbone_config
from masp.data.emoji.render import GLYPHS

BACKGROUND = len(GLYPHS)
TONES = 11  # brightness and colorfulness on EmoSet's grid of 0.1
BACKGROUND_WEIGHT = 0.2
TONE_WEIGHT = 0.15


def patches(pixels: Tensor) -> Tensor:
    """RGB uint8 (batch, 168, 168, 3) to Qwen2-VL's patch vectors in its merge order: (batch, 144, 588), in [-1, 1].

    The two identical frames of the temporal patch are left out here and summed in the weight instead.
    """
    batch, side = pixels.shape[0], pixels.shape[1] // 28
    cut = pixels.view(batch, side, 2, 14, side, 2, 14, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return cut.reshape(batch, side * side * 4, 588).float() / 127.5 - 1


class DenseReader(nn.Module):
    """The vision tower with throw-away heads for the glyph of each token and the tone of the image."""

    def __init__(self) -> None:
        super().__init__()
        config = backbone_config().vision_config
        self.tower = Qwen2VisionTransformerPretrainedModel(config)
        self.glyph = nn.Linear(config.hidden_size, BACKGROUND + 1)
        self.tone = nn.Linear(config.hidden_size, 2 * TONES)
        cell, inner = torch.arange(144) // 4, torch.arange(144) % 4
        rows, columns = (cell // 6) * 2 + inner // 2, (cell % 6) * 2 + inner % 2
        cos, sin = self.tower.rotary_pos_emb(torch.zeros(1), torch.stack([rows, columns], dim=-1))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * self.cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * self.sin

    def visual_tokens(self, cut: Tensor) -> Tensor:
        """Patch vectors (batch, 144, 588) to visual tokens (batch, 36, 256)."""
        tower = self.tower
        kernel = tower.patch_embed.proj.weight.sum(dim=2).flatten(1)
        x = cut @ kernel.T
        for block in tower.blocks:
            batch, length, width = x.shape
            qkv = block.attn.qkv(block.norm1(x)).view(batch, length, 3, block.attn.num_heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            query, key = self._rotate(query).to(value.dtype), self._rotate(key).to(value.dtype)
            seen = scaled_dot_product_attention(query, key, value)
            x = x + block.attn.proj(seen.transpose(1, 2).reshape(batch, length, width))
            inner = block.mlp.fc1(block.norm2(x))
            x = x + block.mlp.fc2(inner * torch.sigmoid(1.702 * inner))  # QuickGELU
        merged = tower.merger.ln_q(x).reshape(x.shape[0], 36, -1)
        return tower.merger.mlp(merged)

    def forward(self, cut: Tensor) -> tuple[Tensor, Tensor]:
        """Glyph scores (batch, 36, classes) and tone scores (batch, 36, 2, 11)."""
        tokens = self.visual_tokens(cut)
        return self.glyph(tokens), self.tone(tokens).unflatten(-1, (2, TONES))


def losses(model: DenseReader, cut: Tensor, cells: Tensor, tones: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Training loss, and the share of covered cells whose glyph is named."""
    glyphs, tone = model(cut)
    glyphs = glyphs.flatten(0, 1)
    loss = cross_entropy(glyphs, cells.flatten(), weight, label_smoothing=0.02)
    loss = loss + TONE_WEIGHT * cross_entropy(tone.flatten(0, 2), tones[:, None].expand(-1, 36, -1).flatten())
    covered = cells.flatten() != BACKGROUND
    return loss, (glyphs.argmax(-1) == cells.flatten())[covered].float().mean()


def load(folder: Path, split: str) -> tuple[np.ndarray, Tensor, Tensor]:
    """Pixels, dense labels and tones (brightness, colorfulness on the grid) of a drawn split."""
    pixels = np.load(folder / f"{split}.pixels.npy", mmap_mode="r")
    cues = [json.loads(line) for line in (folder / f"{split}.cues.jsonl").open() if line.endswith("\n")]
    cells = torch.from_numpy(
        np.load(folder / f"{split}.cells.npy", mmap_mode="r")[: len(cues)].astype(np.int64)
    ).flatten(1)
    tones = torch.tensor([[round(10 * cue[4]), round(10 * cue[5])] for cue in cues])
    return pixels[: len(cues)], torch.where(cells < 0, BACKGROUND, cells), tones


def train(folder: Path, out: Path, minutes: float, rate: float, batch: int, seed: int) -> None:
    """Train for a stretch of wall-clock time; the schedule follows the clock."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # denormal numbers are slow on a CPU and mean nothing here
    rng = np.random.default_rng(seed)
    model = DenseReader()
    parts = [load(folder, "collage"), load(folder, "pretrain")]
    held = 512  # the first images are for watching only
    weight = torch.ones(BACKGROUND + 1)
    weight[BACKGROUND] = BACKGROUND_WEIGHT
    inner = [p for p in model.tower.blocks.parameters() if p.ndim == 2]
    optimizer = optimizers(inner, [p for p in model.parameters() if all(p is not q for q in inner)], rate)
    out.mkdir(parents=True, exist_ok=True)
    log = (out / "vision-log.jsonl").open("w")
    start, step, seen = time.monotonic(), 0, 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        pixels, cells, tones = parts[int(rng.random() < (0.3 if progress < 0.4 else 0.75))]
        index = np.sort(rng.integers(held, len(cells), batch))
        factor = min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02)
        for one in optimizer:
            one.zero_grad(set_to_none=True)
        set_rates(optimizer, factor)
        loss, accuracy = losses(model, patches(torch.from_numpy(pixels[index])), cells[index], tones[index], weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in optimizer:
            one.step()
        step, seen = step + 1, seen + batch
        if step % 500 == 0:
            parts = [load(folder, "collage"), load(folder, "pretrain")]  # more may have been drawn meanwhile
        if step % 100 == 0:
            line = {
                "step": step,
                "seconds": round(time.monotonic() - start, 1),
                "pictures": seen,
                "loss": round(loss.item(), 4),
                "glyph_accuracy": round(accuracy.item(), 4),
            }
            if step % 500 == 0:
                line |= watch(model, *(part[:held] for part in parts[1]), weight)
                save_file(model.state_dict(), out / "vision.safetensors")
            log.write(json.dumps(line) + "\n")
            log.flush()
    save_file(model.state_dict(), out / "vision.safetensors")


@torch.no_grad()
def watch(model: DenseReader, pixels: np.ndarray, cells: Tensor, tones: Tensor, weight: Tensor) -> dict[str, float]:
    """Loss and glyph accuracy on held-out pre-training images."""
    results = [
        losses(model, patches(torch.from_numpy(pixels[i : i + 64])), cells[i : i + 64], tones[i : i + 64], weight)
        for i in range(0, len(pixels), 64)
    ]
    loss, accuracy = (torch.stack(column).mean().item() for column in zip(*results, strict=True))
    return {"held_out_loss": round(loss, 4), "held_out_glyph_accuracy": round(accuracy, 4)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.pictures, args.out, args.minutes, args.rate, args.batch, args.seed)
