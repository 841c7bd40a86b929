"""Whether an image is of the kind that a backbone was trained on, told from the visual tokens it has anyway.

A backbone that knows one small world brings the statistics of its own training images in `domain/detector.safetensors`
beside its weights; the others have no detector. Taken is the Mahalanobis distance of the mean visual token in its minor
components: those in which the training images hardly vary. The major ones say which of them an image is, the minor ones
whether it is one (R. Kamoi, K. Kobayashi, "Why is the Mahalanobis distance effective for anomaly detection?", 2020).
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

TENSORS = ("centre", "sphering", "mean", "minor")


@dataclass(frozen=True)
class DomainDetector:
    """Statistics of a backbone's own training images.

    Attributes:
        knows: what these images are, for people: "emoji scenes".
        limit: the largest distance of an image that still counts as one of them.
        centre: mean of all visual tokens.
        sphering: turns a token's distance from the centre into independent numbers, which tanh bends so that no single
            token decides; its scale says where.
        mean: of the mean bent tokens of the images.
        minor: turns the distance of an image's mean bent token into its minor components, each of variance 1.
    """

    knows: str
    limit: float
    centre: Float[Tensor, " dim"]
    sphering: Float[Tensor, "dim dim"]
    mean: Float[Tensor, " dim"]
    minor: Float[Tensor, "components dim"]

    def features(self, visual: VisualTokens) -> Float[Tensor, "batch dim"]:
        """The mean bent token of each image, padding left out."""
        tokens, mask = visual.tokens.float().cpu(), visual.mask.cpu()[..., None]
        bent = torch.tanh((tokens - self.centre) @ self.sphering.T) * mask
        return bent.sum(1) / mask.sum(1)

    def distances(self, visual: VisualTokens) -> Float[Tensor, " batch"]:
        """Of each image the root mean square of its minor components: about 1 for the training images."""
        return ((self.features(visual) - self.mean) @ self.minor.T).square().mean(1).sqrt()

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
    if found.centre.shape != (dim,):
        got = f"{FILE} of the backbone has width {len(found.centre)}"
        raise BackboneError(got, f"{dim}, the width of the language model", "Copy the right one, or remove it.")
    return found


def write_detector(folder: Path, detector: DomainDetector) -> None:
    """Write a detector into a backbone's folder, its two matrices in float16."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    tensors = {name: getattr(detector, name).float().contiguous() for name in TENSORS}
    tensors |= {name: tensors[name].half() for name in ("sphering", "minor")}
    save_file(tensors, folder / FILE, {"knows": detector.knows, "limit": repr(detector.limit)})
