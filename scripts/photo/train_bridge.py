"""Pre-train the bridge: names of things, guesses of the tower's own head, captions, and features that must survive.

python scripts/photo/train_bridge.py PHOTOGRAPHS --features FOLDER --smollm FOLDER --start FILE --out FOLDER --steps 600

A run that is broken off goes on from its last checkpoint; a later one with more --steps goes on longer.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bridge import HIDDEN_WHOLE, RANK, VISUAL, Bridge, Projector, inputs, load_bridge, ridge
from lessons import Packed, Packer, Turn, turns
from photographs import Features, Shown, catalogue
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

SHARES = {"caltech101": 0.4, "imagenet": 0.2, "captions": 0.1, "stanford40": 0.15, "intel": 0.15}
WARM, FADE = 40, 0.35  # steps of warming up; share of the steps over which the rate falls
SAVE_SECONDS = 180
WORKERS = 2  # parts of a batch side by side, each on a thread of its own: they wait for each other once a step only


class Keeper(nn.Module):
    """Throw-away heads: the tower's features read back from the last hidden states."""

    matrix: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor
    image_mean: Tensor
    image_scale: Tensor
    asked_mean: Tensor
    asked_scale: Tensor

    def __init__(self, start: Projector, variances: Tensor) -> None:
        super().__init__()
        self.image, self.asked = nn.Linear(576, HIDDEN_WHOLE), nn.Linear(576, HIDDEN_WHOLE)
        self.register_buffer("matrix", start.whole.first.weight.detach().clone(), persistent=False)
        self.register_buffer("mean", start.whole_mean.clone(), persistent=False)
        self.register_buffer("scale", start.whole_scale.clone(), persistent=False)
        weight = variances.sqrt()
        self.register_buffer("weight", weight / weight.pow(2).mean().sqrt(), persistent=False)
        for name in ("image", "asked"):
            self.register_buffer(f"{name}_mean", torch.zeros(576))
            self.register_buffer(f"{name}_scale", torch.ones(576))

    def target(self, last: Tensor, stages: Tensor) -> Tensor:
        """Principal components of the whole picture's features; the large ones count more."""
        whole = inputs(last, stages)[1]
        return ((whole - self.mean) * self.scale) @ self.matrix.T * self.weight

    def forward(self, image: Tensor, asked: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the features that are not read back, from visual places and from the question's end."""
        spread = target.pow(2).mean()
        image = self.image((image - self.image_mean) * self.image_scale)
        asked = self.asked((asked - self.asked_mean) * self.asked_scale)
        return (image - target).pow(2).mean() / spread, (asked - target).pow(2).mean() / spread

    @torch.no_grad()
    def solve(self, image: Tensor, asked: Tensor, target: Tensor) -> None:
        """Start the heads by ridge regression on some pictures: Adam alone finds them slowly."""
        for name, x in (("image", image), ("asked", asked)):
            mean, scale = x.mean(dim=0), 1 / x.std(dim=0).clamp(min=1e-3)
            matrix, constant = ridge((x - mean) * scale, target, torch.ones(len(x)), 0.5 * len(x))
            getattr(self, name).weight.copy_(matrix)
            getattr(self, name).bias.copy_(constant)
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(scale)


Drawn = tuple[Shown, list[Turn]]


@dataclass(frozen=True)
class Work:
    """A part of a batch, its features, and its share of the batch."""

    packed: Packed
    last: Tensor
    stages: Tensor
    share: float


@dataclass
class State:
    """Everything that a checkpoint holds."""

    bridge: Bridge
    keeper: Keeper
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, out: Path) -> None:
        """Write the checkpoint whole or not at all."""
        heads = {f"keeper.{name}": one for name, one in self.keeper.state_dict().items()}
        weights = {name: one.contiguous() for name, one in (self.bridge.trained() | heads).items()}
        save_file(weights, out / "bridge.tmp")
        rest = {"optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds}
        torch.save(rest, out / "state.tmp")
        (out / "bridge.tmp").replace(out / "bridge.safetensors")
        (out / "state.tmp").replace(out / "state.pt")

    def resume(self, out: Path) -> None:
        """Go on from a checkpoint, if there is one."""
        if not (out / "state.pt").exists():
            return
        weights = load_file(out / "bridge.safetensors")
        self.bridge.load(weights)
        heads = {name.removeprefix("keeper."): one for name, one in weights.items() if name.startswith("keeper.")}
        self.keeper.load_state_dict(heads, strict=False)
        rest = torch.load(out / "state.pt", weights_only=True)
        self.optimizer.load_state_dict(rest["optimizer"])
        self.step, self.seconds = rest["step"], rest["seconds"]


def vectors(bridge: Bridge, packed: Packed, tokens: Tensor, start: int) -> Tensor:
    """Embeddings of a packed batch with visual tokens in their places."""
    text = bridge.language.embedding[packed.ids]
    return torch.cat([text[:, :start], tokens.to(text.dtype), text[:, start + VISUAL :]], dim=1)


def losses(state: State, packer: Packer, packed: Packed, last: Tensor, stages: Tensor) -> tuple[Tensor, ...]:
    """Cross-entropy of the answers, and what is lost of the features at the visual places and at the question's end."""
    hidden, image, asked = pooled(state.bridge, packer, packed, last, stages)
    logits = state.bridge.language.logits(hidden[packed.rows, packed.columns])
    return cross_entropy(logits.float(), packed.targets), *state.keeper(image, asked, state.keeper.target(last, stages))


def pooled(bridge: Bridge, packer: Packer, packed: Packed, last: Tensor, stages: Tensor) -> tuple[Tensor, ...]:
    """Last hidden states: all, their mean over visual places, and that at the question's end."""
    tokens, start = bridge.projector(last, stages), packer.start
    hidden = bridge.language(vectors(bridge, packed, tokens, start), packed.positions, packed.mask)
    image = hidden[:, start : start + VISUAL].float().mean(dim=1)
    return hidden, image, hidden[torch.arange(len(hidden)), packed.asked].float()


def solve(state: State, packer: Packer, features: Features, draw: "Draw", count: int) -> None:
    """Solve the throw-away heads on `count` pictures."""

    def one(some: list[Shown]) -> tuple[Tensor, ...]:
        packed = packer.pack([turns(each, np.random.default_rng(0), draw.others, 0)[:1] for each in some])
        seen = features.read([(each.part, each.row) for each in some])
        with torch.no_grad():
            return *pooled(state.bridge, packer, packed, *seen)[1:], state.keeper.target(*seen)

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(one, [draw.batch(32) for _ in range(count // 32)]))
    state.keeper.solve(*(torch.cat(column) for column in zip(*parts, strict=True)))


def gradients(
    state: State, packer: Packer, trained: list[Tensor], keep: float, work: Work
) -> tuple[list[float], tuple[Tensor, ...]]:
    """The losses of a part of a batch, times its share of it, and the gradients of all that is trained."""
    each = losses(state, packer, work.packed, work.last, work.stages)
    share = work.share
    grads = torch.autograd.grad(share * (each[0] + keep * (each[1] + each[2])), trained)
    return [share * one.item() for one in each], grads


def halves(packer: Packer, drawn: list[Drawn]) -> tuple[list[Drawn], list[Drawn]]:
    """A batch cut into long and short, so that little is padded and both parts cost about the same."""
    drawn = sorted(drawn, key=lambda one: -packer.length(one[1]))
    lengths = [packer.length(asked) for _, asked in drawn]
    costs = [max(n * lengths[0], (len(drawn) - n) * lengths[n]) for n in range(1, len(drawn))]
    cut = 1 + int(np.argmin(costs))
    return drawn[:cut], drawn[cut:]


def sum_of(tensors: list[Tensor]) -> Tensor:
    """The sum of some tensors, in the place of the first."""
    for one in tensors[1:]:
        tensors[0].add_(one)
    return tensors[0]


class Draw:
    """Draws photographs by the shares of their parts."""

    def __init__(self, shown: list[Shown], rng: np.random.Generator) -> None:
        self.rng, self.parts = rng, {part: [one for one in shown if one.part == part] for part in SHARES}
        self.parts = {part: some for part, some in self.parts.items() if some}
        shares = np.array([SHARES[part] for part in self.parts])
        self.shares = shares / shares.sum()
        self.others = sorted({one.name for one in shown if one.name})

    def batch(self, size: int) -> list[Shown]:
        kinds = self.rng.choice(list(self.parts), size=size, p=self.shares)
        return [self.parts[kind][int(self.rng.integers(len(self.parts[kind])))] for kind in kinds]


def prepare(args: argparse.Namespace) -> State:
    """The start, or the last checkpoint."""
    bridge = load_bridge(args.smollm, None, args.rank)
    start = load_file(args.start)
    variances = start.pop("variances")
    bridge.projector.load_state_dict(start)
    keeper = Keeper(bridge.projector, variances)
    groups = [
        {"params": list(bridge.language.parameters()), "lr": args.rate},
        {"params": list(bridge.projector.parameters()), "lr": args.rate * args.projector_rate},
        {"params": list(keeper.parameters()), "lr": args.rate * 0.3},
    ]
    state = State(bridge, keeper, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01))
    peaks = [group["lr"] for group in groups]
    state.resume(args.out)
    for group, peak in zip(state.optimizer.param_groups, peaks, strict=True):
        group["peak"] = peak
    return state


def train(args: argparse.Namespace) -> None:
    """Train up to a number of steps."""
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    state, packer = prepare(args), Packer(AutoTokenizer.from_pretrained(args.smollm))
    features = Features(args.features, list(SHARES))
    shown, _ = catalogue(args.photographs, features)
    rng = np.random.default_rng((args.seed, state.step))
    draw, log = Draw(shown, rng), (args.out / "log.jsonl").open("a")
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    if args.solve:
        solve(state, packer, features, draw, args.solve)
    saved, recent, pool = time.monotonic(), [], ThreadPoolExecutor(WORKERS)
    while state.step < args.steps:
        begun = time.monotonic()
        left = (args.steps - state.step) / (FADE * args.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * min(1, (state.step + 1) / WARM, max(left, 0.02))
        drawn = [(one, turns(one, rng, draw.others, args.second)) for one in draw.batch(args.batch)]
        work = []
        for some in halves(packer, drawn):
            packed = packer.pack([asked for _, asked in some])
            seen = features.varied([(one.part, one.row) for one, _ in some], rng)
            work.append(Work(packed, *seen, len(some) / len(drawn)))
        each = list(pool.map(lambda part: gradients(state, packer, trained, args.keep, part), work))
        for number, one in enumerate(trained):
            one.grad = sum_of([grads[number] for _, grads in each])
        nn.utils.clip_grad_norm_(trained, 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.seconds += time.monotonic() - begun
        recent.append(np.sum([values for values, _ in each], axis=0))
        if state.step % 10 == 0:
            means = dict(zip(("answers", "image", "asked"), np.mean(recent[-10:], axis=0).round(4), strict=True))
            log.write(json.dumps({"step": state.step, "seconds": round(state.seconds), **means}) + "\n")
            log.flush()
        if time.monotonic() - saved > SAVE_SECONDS:
            state.save(args.out)
            saved = time.monotonic()
    state.save(args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--smollm", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--projector-rate", type=float, default=0.3)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--second", type=float, default=0.4)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--solve", type=int, default=0, help="pictures on which the throw-away heads are solved first")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    train(given)
