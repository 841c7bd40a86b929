"""Pre-train the embedded backbone's language model on the frozen vision tower's visual tokens.

`--vision` is the folder of `vision.py` or an exported backbone. A training that was stopped goes on when the command is
given again; with more steps it goes on longer, at the rate of that schedule.

    python scripts/pretrain/language.py PICTURES --vision FOLDER --out FOLDER --steps 1200
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from muon import optimizers, set_rates
from packing import Packed, Packer, told_words
from safetensors.torch import load_file, save_file
from texts import KINDS, aspect_answers, corpus, lesson_turns
from tokenizer import build
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax
from transformers import Qwen2VLForConditionalGeneration
from vision import DenseReader, patches

from architecture import DIM, VOCABULARY, backbone_config
from masp.data.emoji.label_model import Cues

TOKEN_SCALE = 0.3  # root mean square of the visual tokens; embeddings start at EMBEDDING_SCALE
EMBEDDING_SCALE = 0.1
HELD = 512
SAVE_SECONDS = 300
TOWER = "visual."


@dataclass(frozen=True)
class Told:
    """Words in the image's place: (weights @ embeddings + noise) * sizes.

    Attributes:
        weights: of the embeddings; (batch, columns, vocabulary).
        sizes: (batch, columns, 1).
        noise: (batch, columns, dim).
    """

    weights: Tensor
    sizes: Tensor
    noise: Tensor


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
    """Draws batches of one kind of lesson (`texts.KINDS`) and their vectors in the image's place."""

    def __init__(self, tokens: Tensor, cues: list[Cues], packer: Packer, seed: int) -> None:
        self.tokens, self.cues, self.packer = tokens, cues, packer
        self.rng = np.random.default_rng(seed)

    def draw(self, batch: int) -> tuple[str, Packed, Told, Tensor]:
        """The kind, a packed batch, its words in the image's place, and visual tokens (batch, rows x columns, 256)."""
        rng, kind = self.rng, str(self.rng.choice(list(KINDS), p=list(KINDS.values())))
        index = rng.integers(HELD, len(self.cues), batch)
        scenes, pictured = [self.cues[at] for at in index], kind != "words"
        words = [self._words(cues, kind) for cues in scenes]
        turns = [lesson_turns(rng, *both, pictured) for both in zip(scenes, words, strict=True)]
        told = [
            told_words(rng, self.packer, *both, pictured) if both[1] else np.zeros((0, VOCABULARY), np.float32)
            for both in zip(scenes, words, strict=True)
        ]
        packed = self.packer.pack(turns, [len(one) for one in told], 6 if pictured else 0)
        return kind, packed, self._told(told), self.tokens[index, : 36 * pictured].float()

    def _words(self, cues: Cues, kind: str) -> list[str]:
        """The cues that are told: none of a picture alone; one in a quarter of the lessons; or most."""
        if kind == "picture":
            return []
        present = self.rng.permutation(list(aspect_answers(cues))).tolist()
        if self.rng.random() < 0.25:
            return present[:1]
        share = self.rng.uniform(0.5, 1)
        return [name for name in present if self.rng.random() < share] or present[:1]

    def _told(self, rows: list[np.ndarray]) -> Told:
        """The rows padded to one length; sizes from an embedding's up to eight times that, which aspect tokens have."""
        weights = np.zeros((len(rows), max(map(len, rows)), VOCABULARY), np.float32)
        for row, one in zip(weights, rows, strict=True):
            row[: len(one)] = one
        shape = (*weights.shape[:2], 1)
        sizes = np.exp(self.rng.uniform(0, np.log(8), (len(rows), 1, 1))) * np.exp(self.rng.normal(0, 0.2, shape))
        noise = self.rng.uniform(0, 0.6, (len(rows), 1, 1)) * self.rng.normal(0, EMBEDDING_SCALE, (*shape[:2], DIM))
        return Told(torch.from_numpy(weights), torch.from_numpy(sizes).float(), torch.from_numpy(noise).float())


def loss_of(
    model: Qwen2VLForConditionalGeneration, packed: Packed, told: Told, tokens: Tensor, bfloat16: bool
) -> Tensor:
    """Cross-entropy against the probabilities of the supervised places; only those reach the output head."""
    embedding = model.model.language_model.embed_tokens
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        vectors = embedding(packed.ids)
        words = (told.weights @ embedding.weight + told.noise) * told.sizes
        vectors = torch.cat([vectors[:, : packed.told.start], words, tokens, vectors[:, packed.visual.stop :]], dim=1)
        hidden = model.model.language_model(
            inputs_embeds=vectors, position_ids=packed.positions, attention_mask=packed.allowed, use_cache=False
        ).last_hidden_state
        logits = linear(hidden[packed.rows, packed.columns], embedding.weight).float()
    return -(packed.targets * log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def load_cues(file: Path) -> list[Cues]:
    """The cues of the drawn images."""
    rows = [json.loads(line) for line in file.open() if line.endswith("\n")]
    return [Cues(row[0], tuple(row[1]), *row[2:]) for row in rows]


def start_model(vision: Path, pixels: np.ndarray) -> tuple[Qwen2VLForConditionalGeneration, DenseReader]:
    """A language model with random weights beside the trained vision tower.

    `vision` is the folder of `vision.py`, or an exported backbone, whose tower stays as it is.
    """
    reader, trained = DenseReader(), vision / "vision.safetensors"
    if trained.exists():
        reader.load_state_dict(load_file(trained))
        whiten_merger(reader, pixels[:HELD])
    else:
        weights = load_file(vision / "model.safetensors")
        tower = {name.removeprefix(TOWER): weights[name].float() for name in weights if name.startswith(TOWER)}
        reader.tower.load_state_dict(tower)
    model = Qwen2VLForConditionalGeneration(backbone_config()).float()
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=EMBEDDING_SCALE)
    model.model.visual.load_state_dict(reader.tower.state_dict())
    return model, reader


class Training:
    """The training as it stands: saved every few minutes, and taken up again where the folder holds one."""

    def __init__(self, pictures: Path, vision: Path, out: Path, rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_flush_denormal(True)
        out.mkdir(parents=True, exist_ok=True)
        cues = load_cues(pictures / "pretrain.cues.jsonl")
        pixels = np.load(pictures / "pretrain.pixels.npy", mmap_mode="r")[: len(cues)]
        self.out, self.step, self.seconds = out, 0, 0.0
        self.model, reader = start_model(vision, pixels)
        cached = out / "visual-tokens.pt"
        if not cached.exists():
            torch.save(read_tokens(reader, pixels), cached)
        packer = Packer(build(corpus(), VOCABULARY), VOCABULARY)
        self.lessons = Lessons(torch.load(cached, mmap=True, weights_only=True), cues, packer, seed)
        language = self.model.model.language_model
        inner = [p for p in language.layers.parameters() if p.ndim == 2]
        rest = [p for p in language.parameters() if all(p is not q for q in inner)]
        self.parameters = [*inner, *rest]
        self.optimizers = optimizers(inner, rest, rate)
        if (out / "state.pt").exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for one, saved in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(saved)
        self.lessons.rng.bit_generator.state = state["generator"]
        self.step, self.seconds = state["step"], state["seconds"]
        log = self.out / "language-log.jsonl"
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
        log.write_text("".join(line + "\n" for line in lines))

    def save(self) -> None:
        """Everything needed to go on, and the weights so far, the tied output head left out."""
        state = {"model": self.model.state_dict(), "optimizers": [one.state_dict() for one in self.optimizers]}
        state |= {"generator": self.lessons.rng.bit_generator.state, "step": self.step, "seconds": self.seconds}
        torch.save(state, self.out / "state.partial")
        (self.out / "state.partial").replace(self.out / "state.pt")
        weights = {name: tensor for name, tensor in state["model"].items() if name != "lm_head.weight"}
        save_file(weights, self.out / "language.safetensors")

    def learn(self, batch: int, factor: float, bfloat16: bool) -> tuple[str, float]:
        """One step at `factor` times the highest rate: the kind of the lesson and its loss."""
        set_rates(self.optimizers, factor)
        kind, *lesson = self.lessons.draw(batch)
        loss = loss_of(self.model, *lesson, bfloat16)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for one in self.optimizers:
            one.step()
            one.zero_grad(set_to_none=True)
        self.step += 1
        return kind, loss.item()


def train(training: Training, steps: int, batch: int, bfloat16: bool) -> None:
    """Train until there were `steps`, with those before a resumption; the rate falls with them."""
    begun, saved, losses = time.monotonic() - training.seconds, training.seconds, {kind: [] for kind in KINDS}
    with (training.out / "language-log.jsonl").open("a" if training.step else "w") as log:
        while training.step < steps:
            falling = 0.5 * (1 + math.cos(math.pi * training.step / steps)) * 0.98 + 0.02
            factor = min(1, (training.step + 1) / 100) * falling
            kind, loss = training.learn(batch, factor, bfloat16)
            losses[kind].append(loss)
            training.seconds = time.monotonic() - begun
            if training.step % 50 == 0:
                line = {"step": training.step, "seconds": round(training.seconds, 1), "scenes": training.step * batch}
                line |= {kind: round(float(np.mean(found)), 4) for kind, found in losses.items() if found}
                log.write(json.dumps(line) + "\n")
                log.flush()
                losses = {kind: [] for kind in KINDS}
            if training.seconds - saved > SAVE_SECONDS:
                training.save()
                saved = training.seconds
    training.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16; quicker where there are units")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = Training(args.pictures, args.vision, args.out, args.rate, args.seed)
    train(started, args.steps, args.batch, args.bfloat16)
