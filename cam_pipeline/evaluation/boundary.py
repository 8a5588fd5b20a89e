"""How good label maps are near the outlines of objects."""

import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.ignore import IGNORE_INDEX

BAND = 5
"""Pixels on both sides of an outline that count as near it."""


def band_of(target: Tensor) -> Tensor:
    """(H, W) bool: pixels within BAND of one with another label, or of an outline that the mask leaves out."""
    labels = target[None, None].float()
    size = 2 * BAND + 1
    high = F.max_pool2d(labels, size, 1, BAND)
    low = -F.max_pool2d(-labels, size, 1, BAND)
    return (high != low)[0, 0]


def near_outlines(target: Tensor) -> Tensor:
    """The labels (H, W) int64 of a mask; those that are not near an outline are left out (ignored)."""
    found = target.long()
    return found.where(band_of(target), found.new_tensor(IGNORE_INDEX))
