"""Networks in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, all of `network` is in evaluation mode; afterwards every module of it is in the mode it came in.

    BatchNorm so learns no statistics from what is only looked at, and dropout takes nothing away.
    """
    came = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in came:
            module.training = training
