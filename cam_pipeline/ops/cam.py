"""Class activation maps: made from features and weights, placed, normalised, given a background."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cam_pipeline.ops.dtypes import at_least_float32


def classifier_cam(features: Tensor, weight: Tensor) -> Tensor:
    """Raw class maps M_c(x, y) = sum_k w_ck f_k(x, y): features (B, D, h, w), weight (C, D) -> (B, C, h, w).

    No ReLU and no bias: the maps may be negative, and their spatial mean plus the bias is the logit of a classifier
    with global average pooling. Raises ValueError for other shapes. Source: Zhou et al. 2016 (CAM), equation 2.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"features and weight must be (B, D, h, w) and (C, D), not {shapes}")
    features = at_least_float32(features, "features")
    weight = at_least_float32(weight, "weight")
    dtype = torch.promote_types(features.dtype, weight.dtype)
    with torch.autocast(features.device.type, enabled=False):  # it would lower the product to half precision
        return torch.einsum("bdhw,cd->bchw", features.to(dtype), weight.to(dtype))


def place_view(cam: Tensor, size: tuple[int, int], offset: float = 0.0, flipped: bool = False) -> Tensor:
    """Positive part of one view's raw maps, placed in the image: (..., h, w) -> (..., H, W) for `size` (H, W).

    Other arguments and errors as in `place_features`. Negative values become zero first, so that a view that sees
    nothing cannot erase what another view sees, as in IRNet (Ahn et al. 2019). The caller averages and sums views.
    """
    return place_features(at_least_float32(cam, "cam").relu(), size, offset, flipped)


def place_features(features: Tensor, size: tuple[int, int], offset: float = 0.0, flipped: bool = False) -> Tensor:
    """One view's features or maps, placed in the image: (..., h, w) -> (..., H, W) for `size` (H, W).

    A view is the image at some scale, or its mirror image (`flipped`), which is turned back. `offset`: by how many
    cells the centres of the network's cells lie right of and below an even division of the view
    (`models.offset.cell_offset`). Resampling is bilinear (align_corners=False) and repeats the border. Raises
    ValueError for an empty grid or size.
    """
    if features.ndim < 2 or 0 in features.shape[-2:] or min(size) < 1:
        raise ValueError(
            f"maps (..., h, w) and size (height, width) must not be empty: {tuple(features.shape)}, {size}"
        )
    whole = at_least_float32(features, "features")
    placed = _resample(whole.flip(-1) if flipped else whole, -2, size[0], offset)
    return _resample(placed, -1, size[1], -offset if flipped else offset)


def normalize_cam(cam: Tensor, mode: str = "max", eps: float = 1e-5) -> Tensor:
    """Scale each class map to at most 1: (..., h, w) -> (..., h, w) in 0..1.

    `max`: relu(x) / (max relu(x) + eps). `minmax`: (x - min) / (max - min + eps). Maxima and minima are those of each
    map. A map without a positive value (`minmax`: a constant map) becomes zero. Raises ValueError for another mode, an
    empty grid or a negative eps. Source: per-class max normalisation of Ahn et al. 2019 (IRNet).
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


def cam_scores(cam: Tensor, size: tuple[int, int], mode: str = "max") -> Tensor:
    """Stored maps as scores at image size: (..., C, h, w) -> (..., C, H, W), bilinear, each map's maximum 1.

    `mode` as in `normalize_cam`; `with_background` adds the background score. Raises ValueError for an empty grid or
    size.
    """
    if cam.ndim < 2 or 0 in cam.shape[-2:] or min(size) < 1:
        raise ValueError(f"cam (..., h, w) and size must not be empty, but are {tuple(cam.shape)} and {tuple(size)}")
    return normalize_cam(resize_cam(at_least_float32(cam, "cam"), size), mode, eps=0.0)  # gradients may be that small


def mean_cam(cams: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean of several networks' maps of the same classes: (..., h_i, w_i) each -> (..., h, w) in 0..1.

    First the positive part of every map is divided by its maximum, so that no network outvotes the others, and resized
    to `size` (h, w), bilinear. Raises ValueError for no maps, an empty grid, or leading dimensions that differ.
    """
    return _alike(cams, size).mean(dim=0)


def _alike(cams: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(N, ..., h, w): the maps of N networks, divided by their maxima, on one grid. Errors as `mean_cam`."""
    if not cams or any(cam.shape[:-2] != cams[0].shape[:-2] or 0 in cam.shape[-2:] for cam in cams) or min(size) < 1:
        shapes = [tuple(cam.shape) for cam in cams]
        raise ValueError(f"maps must be (..., h, w) of the same classes, and size not empty, but are {shapes}, {size}")
    alike = [normalize_cam(at_least_float32(cam, "cams"), eps=0.0) for cam in cams]
    return torch.stack([resize_cam(cam, size) for cam in alike])


def cam_agreement(cams: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """How far several networks agree about each cell: maps of the same classes, (n, h_i, w_i) each -> (h, w) in 0..1.

    Maps are divided by their maximum and resized as in `mean_cam`. 1: all say the same of every class; 0: of some class
    one network says 1 where another says 0. Without classes, or from one network, it is 1 everywhere. Raises ValueError
    as `mean_cam`, or unless maps have three dimensions.
    """
    alike = _alike(cams, size)
    if alike.ndim != 4:
        raise ValueError(f"maps must be (n, h, w), not {tuple(cams[0].shape)}")
    if not alike.shape[1]:
        return alike.new_ones(size)
    return 1 - (alike.amax(dim=0) - alike.amin(dim=0)).amax(dim=0)


def to_probabilities(scores: Tensor) -> Tensor:
    """Scores (..., 1 + C, H, W) >= 0 divided by their sum over channels: probabilities for the unary term of a CRF.

    A pixel whose channels are all zero gets the same probability for each. Raises ValueError for fewer than three
    dimensions, no channel, or a score that is negative or not finite.
    """
    if scores.ndim < 3 or scores.shape[-3] == 0:
        raise ValueError(f"scores must be (..., 1 + C, H, W), not {tuple(scores.shape)}")
    scores = at_least_float32(scores, "scores")
    if not ((scores >= 0) & scores.isfinite()).all():
        raise ValueError("scores must be finite and not negative")
    total = scores.sum(dim=-3, keepdim=True)
    least = torch.finfo(scores.dtype).tiny
    return torch.where(total >= least, scores / total.clamp(min=least), 1 / scores.shape[-3])


def resize_cam(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling (align_corners=False): maps (..., h, w) -> (..., H, W) for `size` (H, W).

    There may be any leading dimensions, none or empty ones included.
    """
    leading = maps.shape[:-2]
    if 0 in leading:
        return maps.new_zeros((*leading, *size))
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    resized = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return resized.reshape(*leading, *size)


def _resample(maps: Tensor, dim: int, length: int, offset: float) -> Tensor:
    """Linear resampling along dimension `dim` to `length` cells; the input's cell i lies at i + offset instead of i."""
    cells = maps.shape[dim]
    if cells == length and offset == 0:
        return maps
    centres = (torch.arange(length, dtype=maps.dtype, device=maps.device) + 0.5) * (cells / length) - 0.5
    at = (centres - offset).clamp(0, cells - 1)
    before = at.floor().long()
    after = (before + 1).clamp(max=cells - 1)
    share = (at - before).unflatten(0, (-1, *(1,) * (-dim - 1)))
    return torch.lerp(maps.index_select(dim, before), maps.index_select(dim, after), share)
