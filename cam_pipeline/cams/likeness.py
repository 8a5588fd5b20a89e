"""What class maps gain when the features of cells are compared: once for all views, on the finest grid (ADR 8)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cam_pipeline.models.sfc import CalibrationHead
from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.border import border_likeness, without_background
from cam_pipeline.ops.cam import normalize_cam, place_features


@dataclass(frozen=True)
class FeatureWalk:
    """Propagation of maps by the likeness of features, as `ops.affinity.feature_walk`; `radius` in cells, 0: all."""

    radius: int = 0
    steps: int = 1
    power: float = 1.0


@dataclass(frozen=True)
class Border:
    """Background told by the image's border, as `ops.border`: cells within `share` of the shorter side of its edge."""

    share: float = 0.1
    steps: int = 3
    power: float = 5.0


def cell_features(levels: Sequence[Tensor], grid: tuple[int, int], offset: float) -> Tensor:
    """Features (B, D, h, w) by which cells are compared, of a view's `levels`, placed as the network's cells lie.

    Those of each level are brought to unit length, so that the cosine is nearly the mean of theirs.
    """
    return place_features(CalibrationHead().side_features(levels, grid), grid, offset)


def compare_cells(
    maps: Tensor, features: Tensor, present: Tensor, walk: FeatureWalk | None, border: Border | None
) -> Tensor:
    """Maps (B, C, h, w) >= 0 after comparing the features (B, D, h, w): (B, C, h, w) >= 0.

    They walk, and lose what is like the border as far as no class that is `present` (B, C) claims this.
    """
    if walk is not None:
        maps = feature_walk(maps, features, walk.radius, walk.steps, walk.power)
    if border is not None:
        claimed = (normalize_cam(maps, eps=0.0) * present[:, :, None, None]).amax(dim=1, keepdim=True)
        maps = without_background(maps, border_likeness(features, border.share, border.steps, border.power, claimed))
    return maps
