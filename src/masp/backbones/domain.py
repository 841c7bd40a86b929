"""Whether an image is of the kind that a backbone was trained on, told from the visual tokens it has anyway.

A backbone that knows one small world brings the statistics of its own training images in `domain/detector.safetensors`
beside its weights; the others have no detector. Two numbers are read, and their standard deviations from the training
images are added:

- The Mahalanobis distance of the mean visual token in its minor components, those in which the training images hardly
  vary. The major ones say which of them an image is, the minor ones whether it is one (R. Kamoi, K. Kobayashi, "Why is
  the Mahalanobis distance effective for anomaly detection?", 2020).
- How evenly far the single tokens are from the centre. In an image of the known kind some are nearer than others; in a
  foreign one all are alike.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masp.core.errors import BackboneError
from masp.core.types import Domain, VisualTokens

FILE = "domain/detector.safetensors"
"""Where it lies in a backbone's folder; no part of the weights, and of no fingerprint."""

TENSORS = ("centre", "sphering", "mean", "minor", "usual")


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
        usual: mean and standard deviation of both numbers over the training images.
    """

    knows: str
    limit: float
    centre: Float[Tensor, " dim"]
    sphering: Float[Tensor, "dim dim"]
    mean: Float[Tensor, " dim"]
    minor: Float[Tensor, "components dim"]
    usual: Float[Tensor, "moments=2 numbers=2"]

    def sphered(self, visual: VisualTokens) -> Float[Tensor, "batch visual dim"]:
        """Every token as independent numbers, on its own device."""
        tokens = visual.tokens.float()
        return (tokens - self.centre.to(tokens)) @ self.sphering.to(tokens).T

    def numbers(self, visual: VisualTokens) -> Float[Tensor, "batch numbers=2"]:
        """Both numbers of each image, padding left out."""
        sphered = self.sphered(visual)
        away = masked_mean(sphered.tanh(), visual.mask) - self.mean.to(sphered)
        components = away @ self.minor.to(sphered).T
        apart = sphered.square().mean(2).clamp_min(torch.finfo(sphered.dtype).tiny).log()[..., None]
        spread = masked_mean((apart - masked_mean(apart, visual.mask)[:, None]).square(), visual.mask).sqrt()
        return torch.stack([components.square().mean(1).sqrt(), -spread[:, 0]], dim=1)

    def distances(self, visual: VisualTokens) -> Float[Tensor, " batch"]:
        """Distance of each image from the training images, in standard deviations; 0 on their average."""
        numbers = self.numbers(visual)
        mean, deviation = self.usual.to(numbers)
        return ((numbers - mean) / deviation).sum(1)

    def judge(self, visual: VisualTokens) -> list[Domain]:
        """For each image whether it is one of those that the backbone knows."""
        return [Domain(self.knows, one <= self.limit, one, self.limit) for one in self.distances(visual).tolist()]


def masked_mean(
    values: Float[Tensor, "batch visual numbers"], mask: Bool[Tensor, "batch visual"]
) -> Float[Tensor, "batch numbers"]:
    """Mean over the tokens of each image, padding left out."""
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


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
        result = DomainDetector(about["knows"], float(about["limit"]), **tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{FILE} of the backbone cannot be read: {error}", "", "Copy it again, or remove it."
        ) from None
    if result.centre.shape != (dim,):
        got = f"{FILE} of the backbone has width {len(result.centre)}"
        raise BackboneError(got, f"{dim}, the width of the language model", "Copy the right one, or remove it.")
    return result


def write_detector(folder: Path, detector: DomainDetector) -> None:
    """Write a detector into a backbone's folder, its two matrices in float16."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    tensors = {name: getattr(detector, name).float().contiguous() for name in TENSORS}
    tensors |= {name: tensors[name].half() for name in ("sphering", "minor")}
    save_file(tensors, folder / FILE, {"knows": detector.knows, "limit": repr(detector.limit)})
