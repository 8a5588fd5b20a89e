"""Losses that every method builds on."""

import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean cross entropy over the labelled pixels: logits (B, K, H, W), labels (B, H, W) in 0..K-1 or `ignore_index`.

    A batch without a labelled pixel gives 0 with a graph, not NaN. Half precision is raised to float32.
    """
    labels = labels.long()
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)
