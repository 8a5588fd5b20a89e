"""The border of an image as a sample of its background.

Photographers put what they mean inside the frame. What looks like the frame's edge is therefore more likely background,
whatever the classes. Source: the boundary prior of salient object detection: Wei et al., "Geodesic Saliency Using
Background Priors", ECCV 2012; as a walk from the border over likeness, Yang et al., "Saliency Detection via Graph-Based
Manifold Ranking", CVPR 2013.
"""

import torch
from torch import Tensor

from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.dtypes import at_least_float32


def border_cells(height: int, width: int, share: float) -> Tensor:
    """(h, w) float 0/1: the cells that lie within `share` (0..1/2) of the shorter side of the edge, at least one deep.

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
    """How much every cell is like the border's: features (B, D, h, w) -> (B, 1, h, w) in 0..1.

    The border's cells walk `steps` times over the affinity max(0, cosine)^power (`ops.affinity.feature_walk`): a cell
    gets the share of the border among the cells like it, the one with the largest share 1. A cell of the border counts
    less by as much as classes have `claimed` it, (B, 1, h, w) in 0..1: objects reach beyond the frame. What 1 is, this
    does not change. Raises ValueError for other shapes, and as `border_cells` and `feature_walk` do.
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
    """What a map keeps when the background takes its part: cam (B, C, h, w), background (B, 1, h, w) in 0..1.

    Of the map's positive part its maximum times `background` is taken away, and what is negative then: (B, C, h, w)
    >= 0. So a map that was brought to a maximum of 1 is compared with the background, and those of other views keep
    their sizes beside one another. Raises ValueError for other shapes.
    """
    if cam.ndim != 4 or background.shape != (cam.shape[0], 1, *cam.shape[2:]):
        shapes = f"{tuple(cam.shape)} and {tuple(background.shape)}"
        raise ValueError(f"cam (B, C, h, w) and background (B, 1, h, w) do not fit: {shapes}")
    positive = at_least_float32(cam, "cam").relu()
    return (positive - positive.amax(dim=(-2, -1), keepdim=True) * background).relu()
