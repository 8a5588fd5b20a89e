"""SFC: maps of class prototypes beside classifier maps, and losses that make the two consistent.

Source: Zhao et al., "SFC: Shared Feature Calibration in Weakly Supervised Semantic Segmentation", AAAI 2024 (arXiv
2401.11719); numbers are those of the released code. Maps have a background channel: K = 1 + C, background first.
N = h * w.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32

EPS = 1e-5
EMPTY = 1e-6
"""A map whose maximum is not above this is empty: dividing it by its maximum would only amplify noise."""
ENTRIES_AT_ONCE = 1 << 24
"""Entries of the (B, N, N) affinity that pixel correlation holds at a time (64 MiB in float32)."""


def distribution_weights(counts: Tensor, extra: float = 0.0) -> Tensor:
    """Weight of every class, from the numbers of training images that show it: counts (C,) >= 0 -> (C,).

    TD_c = sum_j |n_c - n_j|, r_c = TD_c / (n_c + extra), weight r_c / mean(r): large for the most frequent and for the
    rarest classes, 1 on average, and 1 for all if counts are equal. `extra`: appearances per class that an image bank
    adds. A class without images gets 0 and is left out of sums and mean. Raises ValueError for another shape, and for
    numbers that are negative or not finite. Source: the distribution-weighted consistency loss.
    """
    if counts.ndim != 1 or not 0 <= extra < math.inf or not ((counts >= 0) & counts.isfinite()).all():
        raise ValueError(f"counts (C,) and extra must be finite and not negative, not {counts.tolist()} and {extra}")
    numbers = counts.to(torch.promote_types(counts.dtype, torch.float32))
    shown = numbers > 0
    distances = (numbers[:, None] - numbers[None]).abs() * shown
    ratio = torch.where(shown, distances.sum(dim=1) / (numbers + extra).clamp_min(torch.finfo(numbers.dtype).tiny), 0)
    mean = ratio.sum() / shown.sum().clamp_min(1)
    return torch.where(mean > 0, ratio / mean.clamp_min(torch.finfo(numbers.dtype).tiny), shown.to(numbers.dtype))


def bank_appearances(image_labels: Tensor, steps: int, draws: int, blank: bool = False) -> float:
    """Mean number of extra appearances per class and epoch that the image bank adds.

    An epoch has `steps` with `draws` from the bank each; image_labels (N, C) 0/1. The bank has a slot for every class
    that has an image, and with `blank` an empty one for every other class. A draw takes each slot with the same
    probability, and all classes of the image there appear: steps * draws * (mean over slots of the number of labels of
    an image with that class), divided by the number of classes that share them.
    """
    shown = image_labels.sum(dim=0)
    slots = shown > 0
    if not slots.any():
        return 0.0
    labels_per_slot = (image_labels.T @ image_labels.sum(dim=1))[slots] / shown[slots]
    drawn = steps * draws * float(slots.float().mean() if blank else 1)
    return float(drawn / slots.sum() * labels_per_slot.mean())


def maps_with_background(
    cam: Tensor, present: Tensor, background_over: str = "present", valid: Tensor | None = None
) -> Tensor:
    """Class maps of at most 1 and a background map beside them: raw maps (B, C, h, w) -> (B, K, h, w).

    The positive part of each map is divided by (its maximum + 1e-5); maps of classes that are not `present` (B, C)
    become zero. The background is 1 - max over classes: over those `present`, or over `all` as in the released code,
    where an absent class can erase the background. All channels are 0 where `valid` (B, 1, h, w) is 0. Raises
    ValueError for other shapes or another `background_over`. Source: the classifier maps of SFC (W-CAM).
    """
    if cam.ndim != 4 or present.shape != cam.shape[:2]:
        raise ValueError(f"cam (B, C, h, w) and present (B, C) do not fit: {tuple(cam.shape)}, {tuple(present.shape)}")
    if background_over not in ("present", "all"):
        raise ValueError(f"background_over must be 'present' or 'all', not {background_over!r}")
    scaled = peak_normalized(at_least_float32(cam, "cam").relu())
    shown = scaled * present.to(scaled.dtype)[:, :, None, None]
    foreground = (shown if background_over == "present" else scaled).amax(dim=1, keepdim=True)
    maps = torch.cat([1 - foreground, shown], dim=1)
    return maps if valid is None else maps * valid.to(maps.dtype)


def peak_normalized(maps: Tensor) -> Tensor:
    """Maps (..., h, w) >= 0, each divided by (its maximum + 1e-5); an empty map (`EMPTY`) becomes zero."""
    peaks = maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(peaks > EMPTY, maps / (peaks + EPS), torch.zeros_like(maps))


def pixel_correlation(cam: Tensor, features: Tensor, steps: int = 2) -> Tensor:
    """Spread maps over similar pixels: cam (B, K, h, w), features (B, D, h, w) -> (B, K, h, w).

    `steps` times M <- M A, with f the features divided by (their norm + 1e-5), A = relu(f^T f) and
    A[:, j] /= (sum_i A[i, j] + 1e-5): each pixel gets the mean of the map over the pixels similar to it. The affinity
    is computed a block of columns at a time. Raises ValueError for other or empty shapes or negative `steps`. Source:
    the pixel correlation module of Wang et al. 2020 (SEAM), as SFC uses it.
    """
    _check_grids(cam, features)
    if steps < 0:
        raise ValueError(f"steps must not be negative, but is {steps}")
    maps = at_least_float32(cam, "cam").flatten(2)
    unit = _unit(at_least_float32(features, "features").flatten(2))
    precision = torch.promote_types(maps.dtype, unit.dtype)
    maps, unit = maps.to(precision), unit.to(precision)
    together = max(1, ENTRIES_AT_ONCE // unit.shape[2] ** 2)  # images
    with torch.autocast(maps.device.type, enabled=False):  # it would lower the products to half precision
        parts = [_spread(*part, steps) for part in zip(maps.split(together), unit.split(together), strict=True)]
    return torch.cat(parts).view_as(cam)


def unit_vectors(features: Tensor) -> Tensor:
    """Every cell's feature vector divided by (its norm + 1e-5): (B, D, h, w) -> (B, D, h, w)."""
    return _unit(at_least_float32(features, "features"))


def prototype_cam(cam: Tensor, features: Tensor, mask: Tensor | None = None, background_factor: float = 0.3) -> Tensor:
    """Similarity of each pixel to its image's prototype of each class: features (B, D, h, w) -> (B, K, h, w) in 0..1.

    The seeds of a class are the pixels at which `cam` (B, K, h, w) is largest for it, after the background is
    multiplied by `background_factor`. A prototype is the sum of its seeds' features; the map is the positive part of
    the cosine, not divided by its maximum. The map of a class without seeds is zero. `mask` (B, 1 or K, h, w)
    multiplies `cam` first, and a pixel at which it is zero is no seed. Gradients reach `features` only. Raises
    ValueError for other shapes. Source: the prototype maps of SFC (P-CAM).
    """
    _check_grids(cam, features)
    batch, channels, rows, columns = cam.shape
    if mask is not None and mask.shape not in ((batch, 1, rows, columns), (batch, channels, rows, columns)):
        raise ValueError(f"mask must be (B, 1 or K, h, w) for cam {tuple(cam.shape)}, not {tuple(mask.shape)}")
    features = at_least_float32(features, "features")
    with torch.no_grad():
        weighed = at_least_float32(cam, "cam") if mask is None else at_least_float32(cam, "cam") * mask
        weighed = torch.cat([weighed[:, :1] * background_factor, weighed[:, 1:]], dim=1)
        seeds = F.one_hot(weighed.argmax(dim=1), channels).permute(0, 3, 1, 2).to(features.dtype)
        if mask is not None:
            seeds = seeds * (mask != 0)
    with torch.autocast(cam.device.type, enabled=False):  # it would lower the products to half precision
        prototypes = torch.einsum("bkhw,bdhw->bkd", seeds, features)
        along = F.normalize(prototypes, dim=2, eps=1e-8)
        lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1e-8)
        return (torch.einsum("bkd,bdhw->bkhw", along, features) / lengths).relu()


def msdw_losses(
    classifier_cam: Tensor,
    prototype_cam: Tensor,
    downscaled_cam: Tensor,
    half_scale_cam: Tensor,
    weights: Tensor,
    weight_prototype: float = 1.6,
    weight_scale: float = 0.8,
) -> tuple[Tensor, Tensor]:
    """The multi-scaled distribution-weighted losses: (loss_prototype, loss_scale), both scalars.

    loss_prototype: mean of weights_c * |classifier_cam - prototype_cam|, both (B, K, h, w), with weight 1 for the
    background and prototype maps already divided by their maxima. loss_scale: the same between the maps of scale 1
    resized to scale 1/2 and the maps of the image at scale 1/2, both (B, K, h', w'), without the background channel.
    Means are over all channels, absent ones included; `weights` (C,). Raises ValueError for other shapes. Source: the
    MSDW loss of SFC.
    """
    return (
        prototype_loss(classifier_cam, prototype_cam, weights, weight_prototype),
        scale_loss(downscaled_cam, half_scale_cam, weights, weight_scale),
    )


def prototype_loss(classifier_cam: Tensor, prototype_cam: Tensor, weights: Tensor, weight: float = 1.6) -> Tensor:
    """Distance of classifier maps and prototype maps: the first of `msdw_losses`."""
    _check_alike(classifier_cam, prototype_cam, weights)
    of_channels = torch.cat([weights.new_ones(1), weights])
    return weight * _weighted_distance(classifier_cam, prototype_cam, of_channels)


def scale_loss(downscaled_cam: Tensor, half_scale_cam: Tensor, weights: Tensor, weight: float = 0.8) -> Tensor:
    """Distance of maps at two scales: the second of `msdw_losses`."""
    _check_alike(downscaled_cam, half_scale_cam, weights)
    return weight * _weighted_distance(downscaled_cam[:, 1:], half_scale_cam[:, 1:], weights)


def _check_grids(cam: Tensor, features: Tensor) -> None:
    shapes = f"{tuple(cam.shape)}, {tuple(features.shape)}"
    if cam.ndim != 4 or features.ndim != 4 or cam.shape[0] != features.shape[0] or cam.shape[2:] != features.shape[2:]:
        raise ValueError(f"cam and features must share batch and grid: {shapes}")
    if 0 in cam.shape or 0 in features.shape:
        raise ValueError(f"cam and features must not be empty: {shapes}")


def _check_alike(first: Tensor, second: Tensor, weights: Tensor) -> None:
    fit = first.ndim == 4 and first.shape == second.shape and weights.shape == (first.shape[1] - 1,)
    if not fit or first.numel() == 0 or weights.numel() == 0:
        shapes = f"{tuple(first.shape)}, {tuple(second.shape)}, {tuple(weights.shape)}"
        raise ValueError(f"maps must be (B, 1 + C, h, w) twice and weights (C,), not {shapes}")


def _weighted_distance(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    distance = (at_least_float32(first, "maps") - at_least_float32(second, "maps")).abs()
    return (distance * weights[:, None, None]).mean()


def _unit(features: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features * (norms + EPS).reciprocal()  # the gradient of a quotient takes four more passes over the features


def _spread(maps: Tensor, unit: Tensor, steps: int) -> Tensor:
    """Maps (B, K, N) times the normalised affinity of unit vectors (B, D, N), `steps` times."""

    def columns(start: int) -> Tensor:
        affinity = (unit.transpose(1, 2) @ unit[:, :, start : start + width]).relu()
        return affinity / (affinity.sum(dim=1, keepdim=True) + EPS)

    cells = unit.shape[2]
    width = max(1, ENTRIES_AT_ONCE // (len(unit) * cells))
    whole = columns(0) if cells <= width else None  # blocks are too large to keep: they are computed in every step
    for _ in range(steps):
        if whole is not None:
            maps = maps @ whole
        else:
            maps = torch.cat([maps @ columns(start) for start in range(0, cells, width)], dim=2)
    return maps
