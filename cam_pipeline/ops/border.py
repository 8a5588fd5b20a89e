"""The border of an image as a sample of its background.

Photographers put their objects inside the frame, so what looks like the border is more likely background, whatever the
classes. Source: the boundary prior of salient object detection, Wei et al., "Geodesic Saliency Using Background
Priors", ECCV 2012; as a walk from the border along similarity, Yang et al., "Saliency Detection via Graph-Based
Manifold Ranking", CVPR 2013.
"""

import torch
from torch import Tensor

from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.dtypes import at_least_float32


def border_cells(height: int, width: int, share: float) -> Tensor:
    """(h, w) float 0/1: 1 in the border strip, `share` (0 < share <= 1/2) of the shorter side wide, at least one cell.

    Raises ValueError for an empty grid or another share.
    """
    if height < 1 or width < 1 or not 0 < share <= 0.5:
        raise ValueError(f"share must lie in 0..1/2 and the grid not be empty, given {share} and {height} x {width}")
    depth = max(1, round(share * min(height, width)))
    cells = torch.ones(height, width)
    cells[depth : height - depth, depth : width - depth] = 0
    return cells


def border_likeness(
    features: Tensor, share: float = 0.1, steps: int = 3, power: float = 5.0, claimed: Tensor | None = None
) -> Tensor:
    """Similarity of every cell to the image border: features (B, D, h, w) -> (B, 1, h, w) in 0..1.

    Border cells start at 1 minus `claimed` (B, 1, h, w) in 0..1, the part that classes have taken, as objects reach
    beyond the frame; all other cells start at 0. The values walk `steps` times along the affinity max(0, cosine)^power
    (`ops.affinity.feature_walk`), so that a cell gets the share of the border among the cells like it. The result is
    divided by the maximum obtained without `claimed`. Raises ValueError for other shapes, and like `border_cells` and
    `feature_walk`.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be (B, D, h, w), not {tuple(features.shape)}")
    batch, _, height, width = features.shape
    cells = border_cells(height, width, share).to(features.device).expand(batch, 1, height, width)
    if claimed is not None:
        if claimed.shape != cells.shape:
            raise ValueError(f"claimed must be (B, 1, h, w) {tuple(cells.shape)}, not {tuple(claimed.shape)}")
        cells = torch.cat([cells, cells * (1 - at_least_float32(claimed, "claimed"))], dim=1)
    likeness = feature_walk(cells, features, steps=steps, power=power)
    peak: Tensor = likeness[:, :1].amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(likeness.dtype).tiny)
    return likeness[:, -1:] / peak


def without_background(cam: Tensor, background: Tensor) -> Tensor:
    """Subtract the background from each map: cam (B, C, h, w), background (B, 1, h, w) in 0..1 -> (B, C, h, w) >= 0.

    The result is relu(cam - max(cam) * background) with the positive part of the map and its spatial maximum, so a map
    whose maximum is 1 is compared with the background directly, and maps keep their sizes relative to one another.
    Raises ValueError for other shapes.
    """
    if cam.ndim != 4 or background.shape != (cam.shape[0], 1, *cam.shape[2:]):
        shapes = f"{tuple(cam.shape)} and {tuple(background.shape)}"
        raise ValueError(f"cam (B, C, h, w) and background (B, 1, h, w) do not fit: {shapes}")
    positive = at_least_float32(cam, "cam").relu()
    return (positive - positive.amax(dim=(-2, -1), keepdim=True) * background).relu()
