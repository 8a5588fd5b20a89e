"""Probabilities of pixels, given which classes the image shows; and the threshold that says so."""

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32

BETA = 2.0
"""How many times as much recall counts as precision in `best_threshold`.

A class that is taken out by mistake costs all of its pixels; one that is left in by mistake costs only those that the
segmenter gives it. So recall counts more. A share of classes to keep is no better rule: what it keeps beside them
depends on the classifier (on voc-mini, 95 % kept 2.9 wrong classes an image, the best F2 kept 86 % and 0.8).
"""


def with_image_classes(probabilities: Tensor, presence: Tensor) -> Tensor:
    """Probabilities (..., 1 + C, H, W) of each pixel, background first, given which classes the image shows.

    `presence` (..., C) in 0..1: each class is multiplied by its own, the background by 1; then all are divided by their
    sum. A class of presence 0 is taken out, and where nothing is left the background is certain. Raises
    ValueError for other shapes or a presence outside 0..1.
    """
    probabilities, presence = at_least_float32(probabilities, "probabilities"), at_least_float32(presence, "presence")
    if probabilities.ndim < 3 or presence.shape != (*probabilities.shape[:-3], probabilities.shape[-3] - 1):
        shapes = f"{tuple(probabilities.shape)} and {tuple(presence.shape)}"
        raise ValueError(f"probabilities must be (..., 1 + C, H, W) and presence (..., C), not {shapes}")
    if not ((presence >= 0) & (presence <= 1)).all():
        raise ValueError("presence must lie in 0..1")
    factors = torch.cat([torch.ones_like(presence[..., :1]), presence], dim=-1)
    weighted = probabilities * factors[..., None, None]
    total = weighted.sum(dim=-3, keepdim=True)
    nothing = torch.zeros_like(factors)
    nothing[..., 0] = 1
    return torch.where(total > 0, weighted / total, nothing[..., None, None])


def best_threshold(probabilities: Tensor, shown: Tensor, beta: float = BETA) -> float:
    """The threshold that best tells the classes that images show from the others, by F-beta (van Rijsbergen, 1979).

    `probabilities` (N, C) in 0..1 of N images; `shown` (N, C) bool: the classes that their labels name, all counted
    alike. Classes with at least the threshold are kept, and F = (1 + b^2) hits / (b^2 shown + kept). The threshold is
    the probability of one of the shown classes; of equally good ones the lowest. Raises ValueError for other shapes or
    if no class is shown.
    """
    if probabilities.ndim != 2 or probabilities.shape != shown.shape or shown.dtype != torch.bool:
        shapes = f"{tuple(probabilities.shape)} and {tuple(shown.shape)} {shown.dtype}"
        raise ValueError(f"probabilities and shown must be (N, C), the latter bool, not {shapes}")
    named = probabilities[shown].unique()  # sorted
    if not len(named):
        raise ValueError("no image shows a class")
    kept = _at_least(probabilities.flatten(), named)
    hits = _at_least(probabilities[shown], named)
    measure = (1 + beta**2) * hits / (beta**2 * shown.sum() + kept)
    return float(named[int((measure >= measure.max()).nonzero()[0])])


def _at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """How many values are no smaller than each threshold, float64."""
    return (len(values) - torch.searchsorted(values.sort().values, thresholds)).double()
