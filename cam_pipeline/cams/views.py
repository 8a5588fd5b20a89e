"""The views of an image that maps are read from: scales and mirror images."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cells_of(images: Tensor, stride: int) -> tuple[int, int]:
    """The grid (h, w) of images (B, 3, H, W)."""
    return images.shape[-2] // stride, images.shape[-1] // stride


def finest_view(views: Sequence[tuple[Tensor, bool]]) -> int:
    """Number of the view with most pixels, the first of these: features are compared in it."""
    return max(range(len(views)), key=lambda number: views[number][0].shape[-2:].numel())


def scaled_views(images: Tensor, stride: int, scales: Sequence[float], flip: bool) -> Iterator[tuple[Tensor, bool]]:
    """Every scale of a batch (B, 3, H, W), sides in whole cells, and each mirrored left to right; channels last."""
    rows, columns = images.shape[-2] // stride, images.shape[-1] // stride
    for scale in scales:
        size = (max(1, round(rows * scale)) * stride, max(1, round(columns * scale)) * stride)
        scaled = (
            images
            if size == tuple(images.shape[-2:])
            else F.interpolate(images, size, mode="bilinear", align_corners=False)
        )
        for flipped in (False, True) if flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            yield view.contiguous(memory_format=torch.channels_last), flipped
