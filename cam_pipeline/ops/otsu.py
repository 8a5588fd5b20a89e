"""Where a map's objects end, judged by the image alone.

Source: the between-class variance of Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979), of colours
instead of the map's own values; the two-region model of Chan and Vese, "Active Contours without Edges" (2001).
"""

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32


def explained_variance(image: Tensor, score: Tensor, thresholds: Tensor, size_power: float = 1.0) -> Tensor:
    """How well two mean colours, of {score > t} and of the rest, describe an image: (3, H, W), (H, W), (T,) -> (T,).

    The share 0..1 of the image's colour variance that lies between the two regions, n_f n_b / n^2 |m_f - m_b|^2 over
    the variance, for every rising threshold t; 0 where one region is empty or the image has one colour. It does not
    change when the scores are transformed monotonically, thresholds with them. In float64.

    The factor of sizes, n_f n_b / n^2, favours halves; it is raised to `size_power`. Below 1 the result may exceed 1.
    Raises ValueError for other shapes, thresholds that do not rise, or numbers that are not finite.
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
    # Pixels between two thresholds are one step; the foreground at a threshold is all steps above it.
    step = torch.bucketize(score.flatten(), thresholds.to(score))
    steps = len(thresholds) + 1
    count = torch.bincount(step, minlength=steps).double()
    total = colors.new_zeros(len(colors), steps).index_add_(1, step, colors)
    count, total = _from_above(count), _from_above(total)
    pixels, variance = colors.shape[1], colors.square().sum()
    between = total.square().sum(dim=0) * (1 / count.clamp_min(1) + 1 / (pixels - count).clamp_min(1))
    split = (count > 0) & (count < pixels)
    # Of one colour is also what differs by rounding alone.
    flat = variance <= pixels * (len(colors) * torch.finfo(image.dtype).eps * image.double().abs().max()).square()
    share = (between / variance.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
    sizes = (count * (pixels - count) / pixels**2).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(split & ~flat, share * sizes ** (size_power - 1), 0.0)


def _from_above(values: Tensor) -> Tensor:
    """Sums over all later steps: (..., T + 1) -> (..., T)."""
    return values.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:]
