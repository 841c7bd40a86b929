"""V+S before anything is built on it: a soft prompt for the frozen bridge, trained on a part, measured on the rest.

python scripts/photo/prompt.py PHOTOGRAPHS --features FOLDER --smollm FOLDER --bridge FILE --out FOLDER --steps 300

Keys and values of the pictures are computed once, so that a step costs the prompt and the question only. The answer is
the first token of a label (those of the six labels differ), with the whole vocabulary in the loss, the labels alone in
the accuracy. The text zero-shot is the same without a prompt.
"""

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from bridge import RANK, Bridge, load_bridge
from evaluate import EMOTION, SHORT
from lessons import TURN, Packer
from photographs import Features
from safetensors.torch import load_file, save_file
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

WORKERS, BATCH = 2, 32


class Kept:
    """Pictures as keys and values of their prefix, and a question behind them.

    Attributes:
        labels: the label of each picture, as a number.
        first: the first token of each label.
    """

    def __init__(self, bridge: Bridge, packer: Packer, features: Features, part: str, short: bool) -> None:
        folders = [Path(name).parent.name for name in features.names[part]]
        self.values = sorted(set(folders))
        self.labels = torch.tensor([self.values.index(one) for one in folders])
        self.first = torch.tensor([packer.ids(value)[0] for value in self.values])
        assert len(set(self.first.tolist())) == len(self.values), "labels that begin alike"
        question = SHORT if short else EMOTION.format(", ".join(self.values))
        self.question = bridge.language.embedding[torch.tensor(packer.ids(question + TURN))]
        self.bridge, self.common = bridge, packer.common
        opening = bridge.language.embedding[torch.tensor(packer.ids("<|im_start|>user\n"))]

        def keep(begin: int) -> list[Tensor]:
            rows = [(part, row) for row in range(begin, min(begin + BATCH, len(folders)))]
            with torch.inference_mode():
                tokens = bridge.projector(*features.read(rows)).to(opening.dtype)
                put = torch.cat([opening.expand(len(rows), -1, -1), tokens], dim=1)
                _, past = bridge.language.run(put, torch.arange(self.common).expand(len(rows), -1))
            return [torch.stack(layer) for layer in past if layer is not None]

        with ThreadPoolExecutor(WORKERS) as pool:
            batches = list(pool.map(keep, range(0, len(folders), BATCH)))
        self.past = [torch.cat(layers, dim=1).clone() for layers in zip(*batches, strict=True)]

    def logits(self, prompt: Tensor | None, rows: Tensor) -> Tensor:
        """Scores of all tokens as the answer's first one."""
        behind = self.question if prompt is None else torch.cat([prompt.to(self.question.dtype), self.question])
        put = behind.expand(len(rows), -1, -1)
        places = (self.common + torch.arange(len(behind))).expand(len(rows), -1)
        past = [(layer[0, rows], layer[1, rows]) for layer in self.past]
        hidden, _ = self.bridge.language.run(put, places, past=past)
        return self.bridge.language.logits(hidden[:, -1]).float()

    @torch.no_grad()
    def accuracy(self, prompt: Tensor | None, rows: np.ndarray) -> float:
        """Share of pictures whose label is the likeliest, in percent."""

        def one(some: Tensor) -> float:
            with torch.no_grad():
                said = self.logits(prompt, some)[:, self.first].argmax(dim=1)
            return (said == self.labels[some]).sum().item()

        with ThreadPoolExecutor(WORKERS) as pool:
            return round(100 * sum(pool.map(one, torch.from_numpy(rows).split(BATCH))) / len(rows), 1)


def train(args: argparse.Namespace) -> None:
    """Train a prompt and write its curve."""
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    features, packer = Features(args.features, [args.part]), Packer(AutoTokenizer.from_pretrained(args.smollm))
    bridge = load_bridge(args.smollm, None, args.rank)
    weights = load_file(args.bridge)
    bridge.load({name: one.float() for name, one in weights.items() if not name.startswith("keeper.")})
    for module in (bridge.projector, bridge.language):
        module.requires_grad_(False)
    kept = Kept(bridge, packer, features, args.part, args.short)
    split = StratifiedShuffleSplit(1, test_size=0.3, random_state=args.seed)
    inner, outer = next(split.split(np.zeros(len(kept.labels)), kept.labels.numpy()))
    words = bridge.language.embedding[torch.tensor(packer.ids(EMOTION.format(", ".join(kept.values))))].float()
    prompt = nn.Parameter(words.repeat(-(-args.length // len(words)), 1)[: args.length].clone())
    optimizer = torch.optim.AdamW([prompt], lr=args.rate, weight_decay=0.0)
    log = (args.out / f"{args.name}.jsonl").open("w")

    def note(**line: object) -> None:
        log.write(json.dumps(line) + "\n")
        log.flush()

    note(settings={name: str(value) for name, value in vars(args).items()}, labels=kept.values)
    note(step=0, without_prompt=kept.accuracy(None, outer))
    rng, order, recent = np.random.default_rng(args.seed), np.zeros(0, dtype=np.int64), []

    def part(rows: Tensor) -> tuple[float, Tensor]:
        loss = cross_entropy(kept.logits(prompt, rows), kept.first[kept.labels[rows]])
        return loss.item(), torch.autograd.grad(loss, prompt)[0]

    begun = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        for step in range(args.steps):
            if len(order) < args.batch:
                order = np.concatenate([order, rng.permutation(inner)])
            rows, order = torch.from_numpy(order[: args.batch]), order[args.batch :]
            factor = min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
            optimizer.param_groups[0]["lr"] = args.rate * factor
            each = list(pool.map(part, rows.chunk(WORKERS)))
            prompt.grad = torch.stack([grad for _, grad in each]).mean(dim=0)
            nn.utils.clip_grad_norm_([prompt], 1.0)
            optimizer.step()
            recent.append(float(np.mean([loss for loss, _ in each])))
            if (step + 1) % args.every == 0 or step + 1 == args.steps:
                seen = {"seconds": round(time.monotonic() - begun), "loss": round(float(np.mean(recent[-25:])), 3)}
                note(step=step + 1, **seen, validation=kept.accuracy(prompt, outer))
                save_file({"prompt": prompt.detach().clone()}, args.out / f"{args.name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--bridge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="prompt")
    parser.add_argument("--part", default="emotion6")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train(given)
