"""Whether an image is of the kind that a backbone was trained on, told from the visual tokens it has anyway.

A backbone that knows one small world brings the statistics of its own training images in `domain/detector.safetensors`
beside its weights; the others have no detector. Mean token features of those images are taken as one Gaussian, and the
Mahalanobis distance of a new image from it is compared with a limit that was set on further images of the same kind
(K. Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masp.errors import BackboneError
from masp.types import Domain, VisualTokens

FILE = "domain/detector.safetensors"
"""Where it lies in a backbone's folder; no part of the weights, and of no fingerprint."""

TENSORS = ("centre", "scale", "mean", "whitening")


@dataclass(frozen=True)
class DomainDetector:
    """Statistics of a backbone's own training images.

    Attributes:
        knows: what these images are, for people: "emoji scenes".
        limit: the largest distance of an image that still counts as one of them.
        centre: mean of each number of a visual token.
        scale: what a token's distance from the centre is divided by before it is bent by tanh, so that no single token
            decides.
        mean: of the mean bent tokens of the images.
        whitening: turns a distance from the mean into independent numbers of variance 1.
    """

    knows: str
    limit: float
    centre: Float[Tensor, " dim"]
    scale: Float[Tensor, " dim"]
    mean: Float[Tensor, " dim"]
    whitening: Float[Tensor, "dim dim"]

    def features(self, visual: VisualTokens) -> Float[Tensor, "batch dim"]:
        """The mean bent token of each image, padding left out."""
        tokens = visual.tokens.float().cpu()
        bent = torch.tanh((tokens - self.centre) / self.scale) * visual.mask.cpu()[..., None]
        return bent.sum(1) / visual.mask.cpu().sum(1, keepdim=True)

    def distances(self, visual: VisualTokens) -> Float[Tensor, " batch"]:
        """Mahalanobis distance of each image, as the root of its mean square over the dimensions: about 1 inside."""
        return ((self.features(visual) - self.mean) @ self.whitening.T).square().mean(1).sqrt()

    def judge(self, visual: VisualTokens) -> list[Domain]:
        """For each image whether it is one of those that the backbone knows."""
        return [Domain(self.knows, one <= self.limit, one, self.limit) for one in self.distances(visual).tolist()]


def read_detector(folder: Path, dim: int) -> DomainDetector | None:
    """The detector of a backbone's folder; None where there is none.

    Raises:
        BackboneError: it is damaged, or made for another width than `dim`.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata(), {name: file.get_tensor(name).float() for name in TENSORS}
        found = DomainDetector(about["knows"], float(about["limit"]), **tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{FILE} of the backbone cannot be read: {error}", "", "Copy it again, or remove it."
        ) from None
    if found.whitening.shape != (dim, dim):
        got = f"{FILE} of the backbone has width {found.whitening.shape[-1]}"
        raise BackboneError(got, f"{dim}, the width of the language model", "Copy the right one, or remove it.")
    return found


def write_detector(folder: Path, detector: DomainDetector) -> None:
    """Write a detector into a backbone's folder; the whitening, by far its largest part, in bfloat16."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    tensors = {name: getattr(detector, name).float().contiguous() for name in TENSORS}
    tensors["whitening"] = tensors["whitening"].bfloat16()
    save_file(tensors, folder / FILE, {"knows": detector.knows, "limit": repr(detector.limit)})
