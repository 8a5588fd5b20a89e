"""Spread class maps by feature similarity, and subtract what looks like the border: once, on the finest grid.

The reasons are in docs/decisions, number 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cam_pipeline.models.sfc import CalibrationHead
from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.border import border_likeness, without_background
from cam_pipeline.ops.cam import normalize_cam, place_features


@dataclass(frozen=True)
class FeatureWalk:
    """Random walk of maps over the similarity of features (`ops.affinity.feature_walk`); `radius` in cells, 0: all."""

    radius: int = 0
    steps: int = 1
    power: float = 1.0


@dataclass(frozen=True)
class Border:
    """Background found at the image's border (`ops.border`), a strip of `share` of the shorter side."""

    share: float = 0.1
    steps: int = 3
    power: float = 5.0


def cell_features(levels: Sequence[Tensor], grid: tuple[int, int], offset: float) -> Tensor:
    """Features (B, D, h, w) by which the cells of `grid` are compared: all `levels` of a view, placed as cells lie.

    Each level's vectors have unit length, so that the cosine of two cells is close to its mean over the levels. Levels
    are outputs of stages, not of the layers that some CNNs add before the classifier: these are positive everywhere,
    so all cosines would be near 1.
    """
    return place_features(CalibrationHead().side_features(levels, grid), grid, offset)


def compare_cells(
    maps: Tensor, features: Tensor, present: Tensor, walk: FeatureWalk | None, border: Border | None
) -> Tensor:
    """Maps (B, C, h, w) >= 0 after cells were compared by features (B, D, h, w): (B, C, h, w) >= 0.

    First the maps are spread along feature similarity (`walk`). Then what resembles the border is subtracted, except
    where a class that is `present` (B, C) already covers it.
    """
    if walk is not None:
        maps = feature_walk(maps, features, walk.radius, walk.steps, walk.power)
    if border is not None:
        claimed = (normalize_cam(maps, eps=0.0) * present[:, :, None, None]).amax(dim=1, keepdim=True)
        maps = without_background(maps, border_likeness(features, border.share, border.steps, border.power, claimed))
    return maps
