"""Fit the embedded backbone's detector of images that are no emoji scenes, on its own pre-training images alone.

The first images of the split `pretrain` give the statistics, the next ones the limit. Photographs take no part in
either; whether they lie beyond the limit is measured by `benchmarks/out_of_domain.py`. Ten minutes on one core.

    python scripts/pretrain/domain.py --out src/masp/backbones/embedded
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pictures import SEED

from masp.backbones.domain import DomainDetector, masked_mean, write_detector
from masp.backbones.loading import load_backbone
from masp.core.types import VisualTokens
from masp.data.emoji.dataset import scene

KNOWS = "emoji scenes"
BENDS = 3.0
"""Standard deviations from the centre where tanh bends a number of a token."""
MINOR = 0.5
"""Share of the principal components, from the least, that are minor ones."""
RIDGE = 1e-4
"""Added to the variance of each component, for those that hardly vary at all."""
INSIDE = 0.995
"""Share of the further images that the limit leaves inside."""
BATCH = 50


def seen(start: int, stop: int) -> list[VisualTokens]:
    """Visual tokens of images `start` … `stop` of the split, in float32 and in batches."""
    backbone, found = load_backbone("embedded", dtype="float32", device="cpu"), []
    for first in range(start, stop, BATCH):
        indices = range(first, min(first + BATCH, stop))
        images = [scene("pretrain", SEED, index).drawing.image for index in indices]
        found.append(backbone.visual_tokens(backbone.preprocess(images)))
    return found


def fit(batches: Sequence[VisualTokens]) -> DomainDetector:
    """The statistics of these images, as the file keeps them; the limit is still open."""
    tokens = [batch.tokens[batch.mask].double() for batch in batches]
    count = sum(map(len, tokens))
    centre = sum(part.sum(0) for part in tokens) / count
    variances, axes = torch.linalg.eigh(sum((part - centre).T @ (part - centre) for part in tokens) / count)
    sphering = axes.T / (variances + 1e-5 * variances.mean()).sqrt()[:, None] / BENDS
    dim = len(variances)
    started = DomainDetector(
        knows=KNOWS,
        limit=float("inf"),
        centre=centre.float(),
        sphering=sphering.half().float(),
        mean=torch.zeros(dim),
        minor=torch.eye(dim),
        usual=torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    )
    features = torch.cat([masked_mean(started.sphered(one).tanh(), one.mask) for one in batches]).double()
    variances, axes = torch.linalg.eigh(torch.corrcoef(features.T))
    kept = round(MINOR * dim)
    minor = axes.T[:kept] / (variances[:kept, None] + RIDGE).sqrt() / features.std(0)
    fitted = replace(started, mean=features.mean(0).float(), minor=minor.half().float())
    numbers = torch.cat([fitted.numbers(one) for one in batches])
    return replace(fitted, usual=torch.stack([numbers.mean(0), numbers.std(0)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fit", type=int, default=8000)
    parser.add_argument("--limit", type=int, default=3500)
    args = parser.parse_args()
    fitted = fit(seen(0, args.fit))
    distances = torch.cat([fitted.distances(one) for one in seen(args.fit, args.fit + args.limit)])
    write_detector(args.out, replace(fitted, limit=round(float(distances.quantile(INSIDE)), 3)))
