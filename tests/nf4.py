"""NF4 by hand: rounding to its levels and reading packed bytes, without bitsandbytes."""

import torch
from torch import Tensor, nn

BLOCK = 64
# The sixteen values of NF4 (QLoRA, Dettmers et al. 2023, appendix E), shares of the largest weight of a block.
LEVELS = torch.tensor(
    [
        *(-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0),
    ]
)


def rounded(weight: Tensor) -> Tensor:
    """The weights that NF4 keeps: the nearest level in every block of 64, the last of which may be short."""
    flat = weight.flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[..., None] / largest[..., None] - LEVELS).abs().argmin(-1)
    return (LEVELS[nearest] * largest).flatten()[: len(flat)].view_as(weight)


def unpacked(packed: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix in packed bytes: two levels in each, the first in its upper half, and a scale for every 64."""
    bytes_ = packed.flatten().int()
    levels = torch.stack([bytes_ >> 4, bytes_ & 15], 1).flatten()[: shape[0] * shape[1]]
    return (LEVELS[levels] * scales.repeat_interleave(BLOCK)[: len(levels)]).view(shape)


def packs(width: int) -> bool:
    """Whether rows of this width are packed on a CPU."""
    return width % 16 != 0 or width % BLOCK == 0
