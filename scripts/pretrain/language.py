"""Pre-train the embedded backbone's language model on the frozen vision tower's visual tokens.

python scripts/pretrain/language.py PICTURES --vision FOLDER --out FOLDER --minutes 40
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captions import Captions, draw_captions, phrase_rows, phrase_texts
from muon import optimizers, set_rates
from packing import Packed, Packer
from safetensors.torch import load_file, save_file
from texts import caption_turns, captioned_turns, close_up_turns, corpus, picture_turns
from tokenizer import build
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax
from transformers import Qwen2VLForConditionalGeneration
from vision import DenseReader, patches

from architecture import VOCABULARY, backbone_config
from masp.data.emoji.world import Cues

TOKEN_SCALE = 0.3  # root mean square of the visual tokens; embeddings start at EMBEDDING_SCALE
EMBEDDING_SCALE = 0.1
HELD = 512
SHARES = (0.35, 0.25, 0.3, 0.1)  # of pictures, captions, captioned pictures, close-ups


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
    """Visual tokens of all pictures: (pictures, 36, 256) bfloat16, the dtype that ships."""
    batches = (pixels[i : i + 64] for i in range(0, len(pixels), 64))
    return torch.cat([model.visual_tokens(patches(torch.from_numpy(batch))).bfloat16() for batch in batches])


@dataclass(frozen=True)
class Lesson:
    """A packed batch, its visual tokens (batch, cells, 256) and the captions in front of them."""

    packed: Packed
    tokens: Tensor
    captions: Captions | None


class Lessons:
    """Draws batches of one kind each: pictures, captions, pictures behind their captions, close-ups."""

    def __init__(self, tokens: Tensor, cells: np.ndarray, cues: list[Cues], packer: Packer, seed: int) -> None:
        self.tokens, self.cells, self.cues, self.packer = tokens, cells, cues, packer
        self.phrases = phrase_rows([packer.ids(text) for text in phrase_texts()], packer.vocabulary)
        self.rng = np.random.default_rng(seed)
        self.kinds = (self._pictures, self._captions, self._captioned, self._close_ups)

    def draw(self, index: np.ndarray) -> Lesson:
        """A batch about the pictures `index`."""
        return self.kinds[self.rng.choice(len(self.kinds), p=SHARES)](index)

    def _pictures(self, index: np.ndarray) -> Lesson:
        turns = [picture_turns(self.rng, self.cues[i]) for i in index]
        return Lesson(self.packer.pack(turns, (6, 6)), self.tokens[index].float(), None)

    def _captions(self, index: np.ndarray) -> Lesson:
        captions = draw_captions(self.rng, [self.cues[i] for i in index])
        turns = [caption_turns(self.rng, told) for told in captions.told]
        packed = self.packer.pack(turns, (0, 0), captions.weights.shape[1])
        return Lesson(packed, self.tokens[index, :0].float(), captions)

    def _captioned(self, index: np.ndarray) -> Lesson:
        scenes = [self.cues[i] for i in index]
        captions = draw_captions(self.rng, scenes)
        turns = [captioned_turns(self.rng, *pair) for pair in zip(scenes, captions.told, strict=True)]
        packed = self.packer.pack(turns, (6, 6), captions.weights.shape[1])
        return Lesson(packed, self.tokens[index].float(), captions)

    def _close_ups(self, index: np.ndarray) -> Lesson:
        """A window of one to three cells a side."""
        rows, columns = (int(n) for n in self.rng.integers(1, 4, 2))
        top, left = int(self.rng.integers(0, 7 - rows)), int(self.rng.integers(0, 7 - columns))
        window = (slice(None), slice(top, top + rows), slice(left, left + columns))
        tokens = self.tokens[index].float().unflatten(1, (6, 6))[window].flatten(1, 2)
        shown = self.cells[index][window]
        turns = [close_up_turns(self.rng, self.cues[i], cells) for i, cells in zip(index, shown, strict=True)]
        return Lesson(self.packer.pack(turns, (rows, columns)), tokens, None)


def loss_of(model: Qwen2VLForConditionalGeneration, lesson: Lesson, phrases: Tensor) -> Tensor:
    """Cross-entropy against the probabilities of the supervised places; only those reach the output head."""
    packed, embedding = lesson.packed, model.model.language_model.embed_tokens
    captions = [] if lesson.captions is None else [lesson.captions.vectors(phrases @ embedding.weight)]
    vectors = embedding(packed.ids)
    before, after = vectors[:, : packed.visual.start], vectors[:, packed.visual.stop :]
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([before, *captions, lesson.tokens, after], dim=1),
        position_ids=packed.positions,
        attention_mask=packed.allowed,
        use_cache=False,
    ).last_hidden_state
    logits = linear(hidden[packed.rows, packed.columns], embedding.weight)
    return -(packed.targets * log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def load_cues(file: Path) -> list[Cues]:
    """The cues of the drawn pictures."""
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
        loss = loss_of(model, lessons.draw(lessons.rng.integers(HELD, len(cues), batch)), lessons.phrases)
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
