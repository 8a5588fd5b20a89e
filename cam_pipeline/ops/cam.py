"""Class activation maps: from features and weights, over several views, normalised, with a background."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cam_pipeline.ops.precision import at_least_float32


def classifier_cam(features: Tensor, weight: Tensor) -> Tensor:
    """Raw class maps M_c(x, y) = sum_k w_ck f_k(x, y): features (B, D, h, w), weight (C, D) -> (B, C, h, w).

    No ReLU and no bias: the maps may be negative, and their spatial mean plus the bias is the logit of a
    classifier with global average pooling. Raises ValueError for other shapes. Source: Zhou et al. 2016
    (CAM), equation 2.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"features and weight must be (B, D, h, w) and (C, D), not {shapes}")
    features = at_least_float32(features, "features")
    weight = at_least_float32(weight, "weight")
    dtype = torch.promote_types(features.dtype, weight.dtype)
    with torch.autocast(features.device.type, enabled=False):  # it would lower the product to half precision
        return torch.einsum("bdhw,cd->bchw", features.to(dtype), weight.to(dtype))


def unflip_mean(cam: Tensor, flipped_cam: Tensor) -> Tensor:
    """Mean of a view's map and that of the mirrored view, mirrored back: two (..., h, w) -> (..., h, w).

    Raises ValueError for unequal shapes.
    """
    if cam.ndim < 2 or cam.shape != flipped_cam.shape:
        raise ValueError(f"maps must have one shape (..., h, w), not {tuple(cam.shape)}, {tuple(flipped_cam.shape)}")
    cam = at_least_float32(cam, "cam")
    return (cam + at_least_float32(flipped_cam, "flipped_cam").flip(-1)) / 2


def merge_views(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum of the scales' positive parts on one grid: maps (..., h_i, w_i), size (H, W) -> (..., H, W).

    Each map belongs to one scale (with flipping: `unflip_mean` of its two views). Negative evidence is
    clipped before the bilinear resampling (align_corners=False) and the sum, as in IRNet (Ahn et al. 2019),
    so that a scale that sees nothing can not erase what another sees; the caller normalises the sum. Never
    negative.

    Raises ValueError for no maps, unequal leading dimensions or an empty grid.
    """
    if not maps:
        raise ValueError("merge_views needs at least one map")
    if min(size) < 1 or any(m.ndim < 2 or 0 in m.shape[-2:] for m in maps):
        raise ValueError(f"maps (..., h, w) and size (height, width) must not be empty; size is {tuple(size)}")
    if len({m.shape[:-2] for m in maps}) > 1:
        raise ValueError(f"maps differ in their leading dimensions: {[tuple(m.shape) for m in maps]}")
    resized = [_resize(at_least_float32(m, "maps").relu(), size) for m in maps]
    return torch.stack(resized).sum(dim=0) if len(resized) > 1 else resized[0]


def normalize_cam(cam: Tensor, mode: str = "max", eps: float = 1e-5) -> Tensor:
    """Scale each class map to at most 1. `cam` is (..., h, w); `max` clips negatives first, `minmax` shifts.

    max: clip(x, 0) / (max clip(x, 0) + eps). minmax: (x - min) / (max - min + eps). Maxima are spatial, per
    map. Returns like `cam`, in 0..1; a map with no positive value (`minmax`: a constant map) becomes zero.
    Does not change `cam`. Raises ValueError for another mode, an empty grid or a negative eps. Source:
    per-class max normalisation of Ahn et al. 2019 (IRNet).
    """
    if mode not in ("max", "minmax"):
        raise ValueError(f"mode must be 'max' or 'minmax', not {mode!r}")
    if cam.ndim < 2 or 0 in cam.shape[-2:]:
        raise ValueError(f"cam must be (..., h, w) with a grid that is not empty, not {tuple(cam.shape)}")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, but is {eps}")
    cam = at_least_float32(cam, "cam")
    shifted = cam.relu() if mode == "max" else cam - cam.amin(dim=(-2, -1), keepdim=True)
    peak = shifted.amax(dim=(-2, -1), keepdim=True) + eps
    return shifted / peak.clamp_min(torch.finfo(cam.dtype).tiny)


def with_background(cam: Tensor, background_score: float) -> Tensor:
    """Prepend a constant background channel: (..., C, h, w) -> (..., 1 + C, h, w).

    Raises ValueError for a tensor of fewer than three dimensions or a score outside 0..1.
    """
    if cam.ndim < 3:
        raise ValueError(f"cam must be (..., C, h, w), not {tuple(cam.shape)}")
    if not (math.isfinite(background_score) and 0 <= background_score <= 1):
        raise ValueError(f"background_score must lie in 0..1, but is {background_score}")
    cam = at_least_float32(cam, "cam")
    background = cam.new_full((*cam.shape[:-3], 1, *cam.shape[-2:]), background_score)
    return torch.cat([background, cam], dim=-3)


def cam_scores(cam: Tensor, size: tuple[int, int]) -> Tensor:
    """Stored maps as scores at image size: (..., C, h, w) -> (..., C, H, W), bilinear, each map's maximum just below 1.

    Put the background score beside them with `with_background`. Raises ValueError for an empty grid or size.
    """
    if cam.ndim < 2 or 0 in cam.shape[-2:] or min(size) < 1:
        raise ValueError(f"cam (..., h, w) and size must not be empty, but are {tuple(cam.shape)} and {tuple(size)}")
    return normalize_cam(_resize(at_least_float32(cam, "cam"), size))


def to_probabilities(scores: Tensor) -> Tensor:
    """Scores (..., 1 + C, H, W) >= 0 divided by their sum over channels, as the unary term of a CRF wants them.

    Where all channels are zero, every one gets the same share. Raises ValueError for fewer than three dimensions, no
    channel, or a score that is negative or not finite.
    """
    if scores.ndim < 3 or scores.shape[-3] == 0:
        raise ValueError(f"scores must be (..., 1 + C, H, W), not {tuple(scores.shape)}")
    scores = at_least_float32(scores, "scores")
    if not ((scores >= 0) & scores.isfinite()).all():
        raise ValueError("scores must be finite and not negative")
    total = scores.sum(dim=-3, keepdim=True)
    least = torch.finfo(scores.dtype).tiny
    return torch.where(total >= least, scores / total.clamp(min=least), 1 / scores.shape[-3])


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling of (..., h, w) with any leading dimensions, also none and also empty ones."""
    leading = maps.shape[:-2]
    if 0 in leading:
        return maps.new_zeros((*leading, *size))
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    resized = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return resized.reshape(*leading, *size)
