"""Pixels of square images, and visual tokens of a batch out of the features of its images: padding, masks, boxes."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

from masp.core.types import Pixels, VisualTokens

Shape = tuple[int, ...]


def square_pixels(processor: Any, images: Sequence[Image], **options: Any) -> Pixels:
    """One square of pixels per image, and the height and width that it had; `options` are the processor's."""
    values = processor(images=list(images), return_tensors="pt", **options)["pixel_values"]
    return Pixels(values=values, grid=torch.tensor([[image.height, image.width] for image in images]))


def packed(
    features: Sequence[Float[Tensor, "_ dim"]],
    boxes: Sequence[Float[Tensor, "_ 4"]] | None = None,
    grid: Sequence[Shape] | None = None,
    shapes: Sequence[Shape] | None = None,
) -> VisualTokens:
    """The visual tokens of a batch from the features of each image, with what is known of their places.

    Args:
        features: one tensor per image.
        boxes: place of each feature on its image.
        grid: rows and columns of each image's features.
        shapes: what the chat turn depends on beside the number of features, where that is not the grid.
    """
    device = features[0].device
    counts = [len(one) for one in features]
    mask = left(counts, device)
    tokens = features[0].new_zeros(*mask.shape, features[0].shape[1])
    tokens[mask] = torch.cat(list(features))
    positions = None
    if boxes is not None:
        positions = torch.zeros(*mask.shape, 4, device=device)
        positions[mask] = torch.cat(list(boxes)).to(device)
    cells = None if grid is None else torch.tensor(list(grid), device=device)
    return VisualTokens(tokens, mask, positions, cells, None if shapes is None else tuple(shapes))


def left(counts: Sequence[int], device: torch.device | None = None) -> Bool[Tensor, "batch visual"]:
    """Which places hold one of each image's features when they stand on the left."""
    return torch.arange(max(counts), device=device) < torch.tensor(counts, device=device)[:, None]


def grid_boxes(rows: int, columns: int) -> Float[Tensor, "cells 4"]:
    """Boxes (x0, y0, x1, y1) of the cells of a grid, row by row, as fractions of the image."""
    return cell_boxes(torch.tensor([[rows, columns]]), rows * columns)[0]


def cell_boxes(grid: Int[Tensor, "batch 2"], width: int) -> Float[Tensor, "batch width 4"]:
    """Boxes (x0, y0, x1, y1) of the first `width` cells of each grid, row by row, as fractions of the image."""
    cells = torch.arange(width, device=grid.device)
    rows, columns = grid[:, :1], grid[:, 1:]
    top, left = cells // columns, cells % columns
    return torch.stack([left / columns, top / rows, (left + 1) / columns, (top + 1) / rows], dim=-1)


def within(boxes: Float[Tensor, "cells 4"], frame: Float[Tensor, " 4"]) -> Float[Tensor, "cells 4"]:
    """Boxes given as fractions of a frame as fractions of the image, cut at its border."""
    corner, size = frame[:2], frame[2:] - frame[:2]
    return (boxes.view(-1, 2, 2) * size + corner).clamp(0, 1).view(-1, 4)


def tile_boxes(rows: int, columns: int, side: int, whole: bool) -> Float[Tensor, "cells 4"]:
    """Boxes of the side² cells of each tile, tile by tile and row by row; with `whole` also of a tile over all."""
    cells = grid_boxes(side, side)
    tiles = [within(cells, frame) for frame in grid_boxes(rows, columns)] if rows * columns else []
    return torch.cat([*tiles, cells] if whole else tiles)
