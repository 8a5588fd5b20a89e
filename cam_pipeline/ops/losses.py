"""Losses that all methods share."""

import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean cross entropy over the labelled pixels: logits (B, K, H, W), labels (B, H, W) in 0..K-1 or `ignore_index`.

    A batch without a labelled pixel gives 0 with a graph, not NaN. Labels may have any integer type. Raises ValueError
    for other shapes, types or labels.
    """
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits and labels must be (B, K, H, W) and (B, H, W), not {shapes}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    logits = at_least_float32(logits, "logits")
    labels = labels.long()
    counted = labels != ignore_index
    if (counted & ((labels < 0) | (labels >= logits.shape[1]))).any():
        raise ValueError(f"labels must be 0..{logits.shape[1] - 1} or {ignore_index}")
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / counted.sum().clamp(min=1)
