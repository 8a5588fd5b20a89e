"""What tells that a training has gone wrong: numbers that are not finite, a loss that grows or stays."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

FAR_ABOVE = 10.0
"""The main term of the loss, over the last epoch, may be this multiple of the first step's (of 1, if that is less).

It is a cross entropy: random weights start near log 2 for each class, or the log of the number of labels, and a network
that has learned nothing stays there. Ten times as much needs weights that have grown without bounds. Terms of methods
do not count, as their weights may rise."""

HARDLY_FALLEN = 0.95
"""Share of the first step's main term above which the last epoch's says that little was learned."""


def is_far_above(last: float, first: float) -> bool:
    """True if the main term of the last epoch says that weights have grown without bounds."""
    return last > FAR_ABOVE * max(first, 1.0)


def has_hardly_fallen(last: float, first: float) -> bool:
    """True if the main term of the last epoch is about that of the first step."""
    return last > HARDLY_FALLEN * first


def main_term(figures: Mapping[str, float]) -> str:
    """The name of the first objective's first term, which comes behind the loss as a whole."""
    names = list(figures)
    return names[names.index("loss") + 1]


def learned(network: nn.Module) -> list[Tensor]:
    """What training changes: parameters, and statistics of BatchNorm. Other buffers may hold -inf, as masks do."""
    statistics = [value for name, value in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return [*network.parameters(), *statistics]


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """True if no number is infinite or NaN. One transfer from the device."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()) if tensors else True
