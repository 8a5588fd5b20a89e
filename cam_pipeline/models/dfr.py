"""The head whose features say which pixels are alike: it learns beside a segmenter, and is gone when that is used.

In the style of DFR (arXiv 2108.01296), of which only the abstract is public to us; the layers are inferred from A2GNN
(arXiv 2106.04054).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 64
"""Channels that every level is brought to."""


class ConsistencyHead(nn.Module):
    """Levels of an encoder (B, D_l, h_l, w_l), or (B, h_l, w_l, D_l) as some transformers give them -> (B, dim, h, w).

    `widths`: channels of the levels.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.levels = nn.ModuleList(nn.Conv2d(width, HIDDEN, 1) for width in widths)
        self.joined = nn.Conv2d(HIDDEN * len(self.widths), dim, 1)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Features on a grid of this size."""
        parts = [
            resized(F.gelu(layer(channels_first(level, width))), size)
            for layer, level, width in zip(self.levels, levels, self.widths, strict=True)
        ]
        features: Tensor = self.joined(torch.cat(parts, dim=1))
        return features


def channels_first(level: Tensor, width: int) -> Tensor:
    """A level of so many channels as (B, D, h, w), however the encoder gives it."""
    return level.permute(0, 3, 1, 2) if level.shape[1] != width and level.shape[-1] == width else level


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, D, h, w) at another size, bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
