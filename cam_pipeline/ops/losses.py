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


PATCH = 120
"""Side of the patches of `clipped_losses` in pixels. Source: WeakTr (Zhu et al., arXiv 2304.01184)."""
CLIPPED_BELOW = 1.2
"""Mean loss of a batch from which on its losses are clipped. Source: as `PATCH`."""


def pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross entropy (B, H, W) of every pixel, 0 at ignored ones. Arguments and errors as in `segmentation_loss`."""
    logits, labels = checked_labels(logits, labels, ignore_index)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Sum of losses times weights, divided by the sum of the weights; both (B, H, W). Weights of 0 give 0, with a
    graph."""
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total > 0, total, 1)


def clipped_losses(
    losses: Tensor, labelled: Tensor, mean: Tensor | None = None, patch: int = PATCH, below: float = CLIPPED_BELOW
) -> Tensor:
    """Losses (B, H, W), each at most the larger of the batch's mean and the mean of its patch.

    A batch whose mean is not under `below` keeps its losses. Patches are patch x patch pixels from the top left; the
    last row and column of them may be smaller. Means are over the pixels that are `labelled`, (B, H, W) bool, and have
    no gradient, nor has a loss that is clipped. `mean`: that of the batch, if these are only some of its images.
    Source: the gradient clipping of WeakTr, which decides once for the rest of the training; here every batch decides
    for itself, so that nothing need be remembered.
    """
    known = torch.where(labelled, losses, 0).detach()
    if mean is None:
        mean = known.sum() / labelled.sum().clamp(min=1)
    height, width = losses.shape[-2:]
    sums, counts = _of_patches(known, patch), _of_patches(labelled.to(known.dtype), patch)
    limits = torch.maximum(sums / counts.clamp(min=1), mean)
    limits = limits.repeat_interleave(patch, -2).repeat_interleave(patch, -1)[..., :height, :width]
    return torch.where((losses > limits) & (mean < below), limits, losses)


def _of_patches(values: Tensor, patch: int) -> Tensor:
    """Sums (B, rows, columns) over the patches of (B, H, W)."""
    height, width = values.shape[-2:]
    padded = F.pad(values, (0, -width % patch, 0, -height % patch))
    _, height, width = padded.shape
    return padded.reshape(-1, height // patch, patch, width // patch, patch).sum(dim=(2, 4))


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
    _check_ignore(ignore, each)
    return torch.where(ignore, 0, each).sum() / (~ignore).sum().clamp(min=1)


def potts_loss(logits: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Mean of -ln(<s_i, s_j> / (|s_i| |s_j|)) over all horizontal and vertical neighbour pairs: logits (B, K, h, w).

    s is the softmax of the logits: neighbours with the same answer cost nothing, however unsure it is. An image of one
    pixel has no pairs and gives 0, with a graph. `ignore`: bool (B, h, w), True = the pixel has no neighbours. Raises
    ValueError for another shape or type. Source: as `collision_cross_entropy`.
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
    if ignore is None:
        return torch.stack([each.sum() for each in pairs]).sum() / max(sum(each.numel() for each in pairs), 1)
    _check_ignore(ignore, length)
    kept = neighbours(ignore)
    total = torch.stack([torch.where(both, each, 0).sum() for both, each in zip(kept, pairs, strict=True)]).sum()
    return total / torch.stack([both.sum() for both in kept]).sum().clamp(min=1)


def neighbours(ignore: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs without an ignored pixel (B, h, w) bool: vertical (B, h - 1, w) and horizontal (B, h, w - 1) bool."""
    kept = ~ignore
    return kept[:, 1:] & kept[:, :-1], kept[..., 1:] & kept[..., :-1]


def _check_ignore(ignore: Tensor, each: Tensor) -> None:
    """Raise ValueError unless `ignore` is bool and has a value for each pixel."""
    if ignore.dtype != torch.bool or ignore.shape != each.shape:
        raise ValueError(f"ignore must be {tuple(each.shape)} bool, not {tuple(ignore.shape)} {ignore.dtype}")
