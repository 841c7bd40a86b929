"""Fit the embedded backbone's detector of images that are no emoji scenes, on its own pre-training pictures alone.

The first pictures of the split `pretrain` give the statistics, the next ones the limit. Photographs take no part in
either; whether they lie beyond the limit is measured by `benchmarks/out_of_domain.py`.

    python scripts/pretrain/domain.py --out src/masp/backbones/embedded
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from pictures import SEED

from masp.backbones.domain import DomainDetector, write_detector
from masp.backbones.loading import load_backbone
from masp.data.emoji.splits import scene
from masp.types import VisualTokens

KNOWS = "emoji scenes"
BENDS = 3.0
"""Standard deviations from the centre where tanh bends a number of a token."""
MINOR = 0.75
"""Share of the principal components, from the least, that are minor ones."""
RIDGE = 1e-4
"""Added to the variance of each component, for those that hardly vary at all."""
INSIDE = 0.995
"""Share of the further pictures that the limit leaves inside."""
BATCH = 50


def seen(start: int, stop: int) -> VisualTokens:
    """Visual tokens of pictures `start` … `stop` of the split, in float32."""
    backbone, found = load_backbone("embedded", dtype="float32", device="cpu"), []
    for first in range(start, stop, BATCH):
        indices = range(first, min(first + BATCH, stop))
        images = [scene("pretrain", SEED, index).drawing.image for index in indices]
        found.append(backbone.visual_tokens(backbone.preprocess(images)))
    return VisualTokens.stack(found)


def fit(visual: VisualTokens) -> DomainDetector:
    """The statistics of these pictures, as the file keeps them; the limit is still open."""
    tokens = visual.tokens[visual.mask]
    centre = tokens.double().mean(0)
    parts = [part.double() - centre for part in tokens.split(4096)]
    variances, axes = torch.linalg.eigh(sum(part.T @ part for part in parts) / len(tokens))
    sphering = axes.T / (variances + 1e-5 * variances.mean()).sqrt()[:, None] / BENDS
    dim = len(variances)
    started = DomainDetector(
        KNOWS, float("inf"), centre.float(), sphering.half().float(), torch.zeros(dim), torch.eye(dim)
    )
    features = started.features(visual).double()
    spread = features.std(0)
    variances, axes = torch.linalg.eigh(torch.corrcoef(features.T))
    kept = round(MINOR * dim)
    minor = axes.T[:kept] / (variances[:kept, None] + RIDGE).sqrt() / spread
    return replace(started, mean=features.mean(0).float(), minor=minor.half().float())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fit", type=int, default=3000)
    parser.add_argument("--limit", type=int, default=1500)
    args = parser.parse_args()
    fitted = fit(seen(0, args.fit))
    distances = fitted.distances(seen(args.fit, args.fit + args.limit))
    write_detector(args.out, replace(fitted, limit=round(float(distances.quantile(INSIDE)), 3)))
