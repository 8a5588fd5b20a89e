"""What objectives share."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ImageLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin: binary cross entropy of every class, mean over classes and images."""
    return F.multilabel_soft_margin_loss(logits.float(), labels)


def rise(progress: float, ramp: float) -> float:
    return min(1.0, progress / ramp) if ramp else 1.0
