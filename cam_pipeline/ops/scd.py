"""Losses of TSCD's single stage (Xu et al., AAAI 2023, arXiv 2302.13765) that others use, too."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.losses import checked_labels


def balanced_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Half the mean cross entropy over background pixels, and half that over pixels of classes.

    Shapes and errors as in `segmentation_loss`. A half without pixels counts 0; if all are ignored the loss is 0, with
    a graph. Source: TSCD's released code, as specified; it balances labels of which most are background.
    """
    halves = balanced_halves(logits, labels, ignore_index)
    return halves[0] + halves[1]


def balanced_halves(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """The two terms of `balanced_cross_entropy`: of background, and of classes."""
    logits, labels = checked_labels(logits, labels, ignore_index)
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    background = labels == 0
    objects = ~background & (labels != ignore_index)
    first, second = (torch.where(half, each, 0).sum() / (2 * half.sum().clamp(min=1)) for half in (background, objects))
    return first, second
