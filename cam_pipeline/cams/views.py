"""Views of images that maps are read from: every scale, and its mirror image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class View(NamedTuple):
    """`images` (B, 3, H, W) at one scale; `flipped`: mirrored left to right."""

    images: Tensor
    flipped: bool


def scaled_views(images: Tensor, stride: int, scales: Sequence[float], flip: bool) -> list[View]:
    """The views of images (B, 3, H, W): one for each scale, followed by its mirror image if `flip`; channels last.

    Scaled sides are rounded to whole cells of `stride` pixels, at least one, so that every grid covers the image.
    """
    rows, columns = cells_of(images, stride)
    views = []
    for scale in scales:
        size = (max(1, round(rows * scale)) * stride, max(1, round(columns * scale)) * stride)
        scaled = (
            images
            if size == tuple(images.shape[-2:])
            else F.interpolate(images, size, mode="bilinear", align_corners=False)
        )
        for flipped in (False, True) if flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            views.append(View(view.contiguous(memory_format=torch.channels_last), flipped))
    return views


def cells_of(images: Tensor, stride: int) -> tuple[int, int]:
    """Rows and columns (h, w) of the feature grid of images (B, 3, H, W)."""
    return images.shape[-2] // stride, images.shape[-1] // stride


def finest_view(views: Sequence[View]) -> View:
    """The first of the views with most pixels."""
    return max(views, key=lambda view: view.images.shape[-2:].numel())
