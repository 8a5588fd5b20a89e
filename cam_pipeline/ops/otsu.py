"""A threshold for a map, judged by the colours of the image alone.

Source: the between-class variance of Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979), here of
colours instead of the map's own values; the two-region model of Chan and Vese, "Active Contours without Edges" (2001).
"""

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32


def explained_variance(image: Tensor, score: Tensor, thresholds: Tensor, size_power: float = 1.0) -> Tensor:
    """Share of an image's colour variance that a threshold explains: (3, H, W), score (H, W), thresholds (T,) -> (T,).

    The two regions are {score > t} and the rest. For every threshold t the share is n_f n_b / n^2 |m_f - m_b|^2 divided
    by the variance, with sizes n and mean colours m of the regions: in 0..1, float64; 0 if one region is empty or the
    image has a single colour. A monotonic transform of scores and thresholds does not change it.

    The factor n_f n_b / n^2 favours regions of equal size; it is raised to `size_power`, and below 1 the result may
    exceed 1. Raises ValueError for other shapes, thresholds that do not rise, or numbers that are not finite.
    """
    image, score = at_least_float32(image, "image"), at_least_float32(score, "score")
    if image.ndim != 3 or score.ndim != 2 or image.shape[1:] != score.shape or 0 in image.shape:
        shapes = f"{tuple(image.shape)} and {tuple(score.shape)}"
        raise ValueError(f"image (C, H, W) and score (H, W) must be of one size and not empty, not {shapes}")
    if thresholds.ndim != 1 or not (thresholds.diff() > 0).all():
        raise ValueError("thresholds must be one rising row of numbers")
    if not (image.isfinite().all() and score.isfinite().all()):
        raise ValueError("image and score must be finite")
    colors = image.double().flatten(1)
    colors = colors - colors.mean(dim=1, keepdim=True)
    # Pixels between two thresholds form a step; the foreground at a threshold is all steps above it.
    step = torch.bucketize(score.flatten(), thresholds.to(score))
    steps = len(thresholds) + 1
    count = torch.bincount(step, minlength=steps).double()
    total = colors.new_zeros(len(colors), steps).index_add_(1, step, colors)
    count, total = _from_above(count), _from_above(total)
    pixels = colors.shape[1]
    variance = colors.square().sum()
    between = total.square().sum(dim=0) * (1 / count.clamp_min(1) + 1 / (pixels - count).clamp_min(1))
    split = (count > 0) & (count < pixels)
    # Differences as small as rounding count as a single colour.
    flat = variance <= pixels * (len(colors) * torch.finfo(image.dtype).eps * image.double().abs().max()).square()
    share = (between / variance.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
    sizes = (count * (pixels - count) / pixels**2).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(split & ~flat, share * sizes ** (size_power - 1), 0.0)


def _from_above(values: Tensor) -> Tensor:
    """Sums over all later entries: (..., T + 1) -> (..., T)."""
    return values.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:]
