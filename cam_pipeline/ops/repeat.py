"""How often images of rare classes are shown again.

Source: Gupta, Dollar and Girshick, "LVIS", CVPR 2019 (arXiv 1908.03195), appendix: repeat factor sampling.
"""

import torch
from torch import Tensor


def repeat_factors(labels: Tensor, threshold: float) -> Tensor:
    """(N,) float64, 1 or more: how often each image is shown, on average, where others are shown once.

    `labels` (N, C): 1 shown, 0 not shown, NaN not known. A class that a share f of the images shows has the factor
    max(1, sqrt(threshold / f)), an image the largest of its classes' factors, and 1 if it shows none. Images without a
    known label count in no share. Raises ValueError for another shape or a threshold that is not above 0.
    """
    if labels.ndim != 2 or threshold <= 0:
        raise ValueError(f"labels must be (N, C) and the threshold above 0, not {tuple(labels.shape)} and {threshold}")
    shown = labels.double().nan_to_num()
    known = (~labels.isnan()).any(dim=1).sum().clamp(min=1)
    share = shown.sum(dim=0) / known
    of_class = torch.where(share > 0, (threshold / share).sqrt().clamp(min=1), 1)
    return torch.where(shown > 0, of_class, 1).amax(dim=1) if labels.shape[1] else torch.ones(len(labels)).double()
