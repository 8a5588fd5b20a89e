"""Losses that all methods share."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean cross entropy over the labelled pixels: logits (B, K, H, W), labels (B, H, W) in 0..K-1 or `ignore_index`.

    A batch without a labelled pixel gives 0 with a graph, not NaN. Labels may have any integer type. Raises ValueError
    for other shapes, types or labels.
    """
    logits, labels = checked_labels(logits, labels, ignore_index)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def checked_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Logits of at least float32 and labels as int64; the checks of `segmentation_loss`."""
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits and labels must be (B, K, H, W) and (B, H, W), not {shapes}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    logits = at_least_float32(logits, "logits")
    labels = labels.long()
    if ((labels != ignore_index) & ((labels < 0) | (labels >= logits.shape[1]))).any():
        raise ValueError(f"labels must be 0..{logits.shape[1] - 1} or {ignore_index}")
    return logits, labels


COLLISION_EPS = 1e-8
"""Added to the chance of a collision before the logarithm."""


def collision_cross_entropy(logits: Tensor, targets: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Mean of -ln(sum_c y_c s_c + 1e-8) over pixels: logits and targets (B, K, h, w), targets summing to 1.

    s is the softmax of the logits. The sum is the chance that two draws, one from the target and one from the answer,
    agree. A target that is sure of nothing (1/K each) gives ln K whatever the answer, and no gradient: unlike cross
    entropy, it does not pull the answer towards being unsure. `ignore`: bool (B, h, w), True = left out; if nothing is
    left the loss is 0, with a graph. Raises ValueError for other shapes or types. Source: Zhang & Boykov, CVPR 2025
    (arXiv 2507.01721).
    """
    logits, targets = at_least_float32(logits, "logits"), at_least_float32(targets, "targets")
    if logits.ndim != 4 or logits.shape != targets.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"logits and targets must both be (B, K, h, w), not {shapes}")
    each = -((targets * logits.softmax(dim=1)).sum(dim=1) + COLLISION_EPS).log()
    if ignore is None:
        return each.mean()
    if ignore.dtype != torch.bool or ignore.shape != each.shape:
        raise ValueError(f"ignore must be {tuple(each.shape)} bool, not {tuple(ignore.shape)} {ignore.dtype}")
    return torch.where(ignore, 0, each).sum() / (~ignore).sum().clamp(min=1)


def potts_loss(logits: Tensor) -> Tensor:
    """Mean of -ln(<s_i, s_j> / (|s_i| |s_j|)) over all horizontal and vertical neighbour pairs: logits (B, K, h, w).

    s is the softmax of the logits: neighbours with the same answer cost nothing, however unsure it is. An image of one
    pixel has no pairs and gives 0, with a graph. Raises ValueError for another shape. Source: as
    `collision_cross_entropy`.
    """
    logits = at_least_float32(logits, "logits")
    if logits.ndim != 4:
        raise ValueError(f"logits must be (B, K, h, w), not {tuple(logits.shape)}")
    logs = logits.log_softmax(dim=1)  # in logarithms: of answers that are sure, the products are too small for numbers
    length = (2 * logs).logsumexp(dim=1) / 2
    pairs = [
        length[:, 1:] + length[:, :-1] - (logs[:, :, 1:] + logs[:, :, :-1]).logsumexp(dim=1),
        length[..., 1:] + length[..., :-1] - (logs[..., 1:] + logs[..., :-1]).logsumexp(dim=1),
    ]
    return torch.stack([each.sum() for each in pairs]).sum() / max(sum(each.numel() for each in pairs), 1)
