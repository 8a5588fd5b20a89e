"""Random walks: score maps spread along the affinity between the cells of a grid.

Source: Ahn and Kwak, "Learning Pixel-level Semantic Affinity", CVPR 2018 (PSA); with affinity from attention, Ru et
al., "Learning Affinity from Attention", CVPR 2022 (AFA). Cells are numbered row by row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cam_pipeline.ops.dtypes import at_least_float32


def random_walk(scores: Tensor, affinity: Tensor, steps: int = 1, power: float = 1.0, eps: float = 0.0) -> Tensor:
    """Each cell gathers the scores of similar cells: scores (B, K, h, w), affinity (B, N, N) >= 0 -> (B, K, h, w).

    N = h * w. `steps` times m_j <- sum_i m_i T_ij, with T = affinity^power elementwise, each column divided by (its sum
    + eps). Without eps a constant map stays constant. A cell without any affinity gets 0. Raises ValueError for other
    shapes, an affinity below 0, or a power, steps or eps out of range.
    """
    scores, affinity = at_least_float32(scores, "scores"), at_least_float32(affinity, "affinity")
    _check_walk(scores, steps, power, eps)
    batch, _, height, width = scores.shape
    if affinity.shape != (batch, height * width, height * width):
        shapes = f"{tuple(scores.shape)} and {tuple(affinity.shape)}"
        raise ValueError(f"scores (B, K, h, w) and affinity (B, h * w, h * w) do not fit: {shapes}")
    if not affinity.amin() >= 0:
        raise ValueError(f"affinity must not be negative, but reaches down to {float(affinity.amin())}")
    dtype = torch.promote_types(scores.dtype, affinity.dtype)
    transition = affinity.to(dtype).pow(power) if power != 1 else affinity.to(dtype)
    maps = scores.to(dtype).flatten(2)
    for _ in range(steps):
        maps = _gather(maps, transition, eps)
    return maps.view(scores.shape)


def feature_walk(
    scores: Tensor,
    features: Tensor,
    radius: int | None = None,
    steps: int = 1,
    power: float = 1.0,
    eps: float = 0.0,
    chunk: int = 1024,
) -> Tensor:
    """`random_walk` over the affinity max(0, cosine) of features (B, D, h, w), which is never held as a whole.

    Cells more than `radius` rows or columns apart have affinity 0; None or 0: no limit. `chunk` columns of the affinity
    are computed at a time, again in each step: less memory, same result. Gradients reach scores and features; with them
    all columns are kept. A cell whose feature vector is zero gets 0. Raises ValueError for other shapes, or a radius,
    chunk, power, steps or eps out of range.
    """
    scores, features = at_least_float32(scores, "scores"), at_least_float32(features, "features")
    _check_walk(scores, steps, power, eps)
    batch, _, height, width = scores.shape
    if features.ndim != 4 or features.shape[1] == 0 or (len(features), *features.shape[2:]) != (batch, height, width):
        shapes = f"{tuple(scores.shape)} and {tuple(features.shape)}"
        raise ValueError(f"scores (B, K, h, w) and features (B, D, h, w) do not fit: {shapes}")
    if chunk < 1 or (radius or 0) < 0:
        raise ValueError(f"chunk must be at least 1 and radius not negative, but they are {chunk} and {radius}")
    dtype = torch.promote_types(scores.dtype, features.dtype)
    directions = functional.normalize(features.to(dtype).flatten(2), dim=1)
    maps = scores.to(dtype).flatten(2)
    for _ in range(steps):
        parts = []
        for start in range(0, height * width, chunk):
            stop = min(start + chunk, height * width)
            first, last = _reach(start, stop, radius, height, width)
            affinity = _cosine(directions[..., first:last], directions[..., start:stop]).pow(power)
            if radius:
                affinity = affinity * _near((first, last), (start, stop), radius, width, affinity.device)
            parts.append(_gather(maps[..., first:last], affinity, eps))
        maps = torch.cat(parts, dim=2)
    return maps.view(scores.shape)


def _gather(maps: Tensor, transition: Tensor, eps: float) -> Tensor:
    """Maps (B, K, M) times the columns of `transition` (B, M, n), each divided by (its sum + eps): (B, K, n)."""
    total = transition.sum(dim=1, keepdim=True) + eps
    with torch.autocast(maps.device.type, enabled=False):  # it would lower the product to half precision
        return (maps @ transition) / total.clamp_min(torch.finfo(maps.dtype).tiny)


def _cosine(rows: Tensor, columns: Tensor) -> Tensor:
    """Positive part of the cosines between unit vectors (B, D, M) and (B, D, n): (B, M, n)."""
    with torch.autocast(rows.device.type, enabled=False):
        return (rows.transpose(1, 2) @ columns).relu()


def _reach(start: int, stop: int, radius: int | None, height: int, width: int) -> tuple[int, int]:
    """Range of cells that the cells start..stop - 1 may reach, in whole rows: the first, and the last + 1."""
    if not radius:
        return 0, height * width
    top, bottom = start // width - radius, (stop - 1) // width + radius
    return max(top, 0) * width, min(bottom + 1, height) * width


def _near(rows: tuple[int, int], columns: tuple[int, int], radius: int, width: int, device: torch.device) -> Tensor:
    """(M, n) bool: True for cells of two ranges that are within the Chebyshev radius."""
    one = torch.arange(*rows, device=device).unsqueeze(1)
    other = torch.arange(*columns, device=device)
    beside = (one % width - other % width).abs() <= radius
    return beside & ((one // width - other // width).abs() <= radius)


def _check_walk(scores: Tensor, steps: int, power: float, eps: float) -> None:
    """Raise ValueError for scores or settings out of range."""
    if scores.ndim != 4 or 0 in scores.shape:
        raise ValueError(f"scores must be (B, K, h, w) and not empty, not {tuple(scores.shape)}")
    if steps < 0 or not power > 0 or not eps >= 0:
        message = "steps and eps must not be negative and power must be positive"
        raise ValueError(f"{message}, but they are {steps}, {eps} and {power}")
