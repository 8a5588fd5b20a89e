"""Images as tensors, resized to whole cells of a network."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.data.images import UInt8


def to_tensor(image: UInt8) -> Tensor:
    """(height, width, 3) uint8 -> (3, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def grid_size(height: int, width: int, stride: int, max_side: int, scale: float = 1.0) -> tuple[int, int]:
    """(rows, columns) of feature cells for an image seen at `scale`: sides are rounded to whole cells, at least one.

    The network sees the image resized to exactly rows x columns cells, so the grid covers all of the image, and
    images of nearly the same size share a batch. Images longer than `max_side` pixels are reduced to it first.
    """
    factor = scale * min(1.0, max_side / max(height, width)) / stride
    return max(1, round(height * factor)), max(1, round(width * factor))


def resize_to_grid(image: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """(3, H, W) uint8 -> (3, rows * stride, columns * stride) float32 in 0..1, antialiased bilinear."""
    size = (grid[0] * stride, grid[1] * stride)
    unit = image[None].float() / 255
    return F.interpolate(unit, size, mode="bilinear", align_corners=False, antialias=True)[0]
