"""SFC's layers beside a classifier: side features of several depths, and features by which pixels are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cam_pipeline.models.levels import SIDE_WIDTHS, sampled_pixels
from cam_pipeline.ops.sfc import maps_with_background, pixel_correlation, prototype_cam, unit_vectors

WIDEST = 2048


@dataclass(frozen=True)
class Calibration:
    """Settings of calibrated maps, with the meaning they have in `ops.sfc`.

    `background_over`: of `maps_with_background`; `background_factor`: of `prototype_cam`; `correlation_steps`: the
    `steps` of `pixel_correlation`, 0: none.
    """

    background_over: str = "present"
    background_factor: float = 0.3
    correlation_steps: int = 2


class CalibrationHead(nn.Module):
    """Side features of every level, and features by which pixels are compared.

    Learned layers are 1 x 1 convolutions without bias: `sides` from the levels to `SIDE_WIDTHS` channels, `comparison`
    from the deepest level (D channels) and the image to min(2048, D) channels. Without learned layers, the levels
    themselves are the features.
    """

    def __init__(self, level_widths: Sequence[int] = (), sides: bool = False, comparison: bool = False) -> None:
        super().__init__()
        self.sides: nn.ModuleList | None = None
        self.comparison: nn.Conv2d | None = None
        if sides:
            widths = zip(level_widths, SIDE_WIDTHS, strict=False)
            self.sides = nn.ModuleList(nn.Conv2d(width, side, 1, bias=False) for width, side in widths)
        if comparison:
            self.comparison = nn.Conv2d(level_widths[-1] + 3, min(WIDEST, level_widths[-1]), 1, bias=False)

    def side_features(self, levels: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
        """Unit vectors of each level, resized to `grid` (h, w) and concatenated: (B, sum of widths, h, w).

        Gradients reach the side layers, but not the levels.
        """
        size = (grid[0], grid[1])
        sides = [nn.Identity()] * len(levels) if self.sides is None else list(self.sides)
        units = []
        for side, level in zip(sides, levels, strict=True):
            unit = unit_vectors(side(sampled_pixels(level.detach(), size)))
            units.append(F.interpolate(unit, size, mode="bilinear", align_corners=False))
        return torch.cat(units, dim=1)

    def compared_features(self, images: Tensor, deepest: Tensor) -> Tensor:
        """Features for pixel correlation, from normalised images (B, 3, H, W) and the deepest level (B, D, h, w)."""
        if self.comparison is None:
            return deepest
        small = F.interpolate(images, deepest.shape[-2:], mode="bilinear", align_corners=False)
        compared: Tensor = self.comparison(torch.cat([deepest, small.to(deepest.dtype)], dim=1))
        return compared

    def classifier_maps(
        self,
        raw: Tensor,
        images: Tensor,
        deepest: Tensor,
        present: Tensor,
        settings: Calibration,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Classifier maps with background (B, K, h, w) from `raw` maps (B, C, h, w), spread over similar pixels.

        `images` (B, 3, H, W) normalised; `deepest` level (B, D, h, w); `present` (B, C) 0/1; `valid` (B, 1, h, w) or
        None: 0 where the image is padded. K = 1 + C.
        """
        maps = maps_with_background(raw, present, settings.background_over, valid)
        if settings.correlation_steps == 0:
            return maps
        return pixel_correlation(maps, self.compared_features(images, deepest), settings.correlation_steps)

    def prototype_maps(
        self,
        maps: Tensor,
        levels: Sequence[Tensor],
        present: Tensor,
        settings: Calibration,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Prototype maps (B, K, h, w) in 0..1, with prototypes from the seeds of `maps` (B, K, h, w).

        `levels`: features of several depths; `present` and `valid` as in `classifier_maps`.
        """
        shown = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)[:, :, None, None].expand_as(maps)
        mask = shown if valid is None else shown * valid
        side_features = self.side_features(levels, maps.shape[-2:])
        return prototype_cam(maps, side_features, mask, settings.background_factor)
