"""An exponential moving average of a network's weights, kept beside them and put in their place at the end.

Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; with the warm-up of
TensorFlow's ExponentialMovingAverage, so that random initial weights are soon forgotten.
"""

import torch
from torch import Tensor, nn

from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.training.objectives.base import ForwardPass, Objective, Terms


class Average(nn.Module):
    """Averages of another module's parameters and floating buffers, as buffers, so that checkpoints hold them."""

    steps: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for number, value in enumerate(averaged(network)):
            self.register_buffer(f"value_{number}", value.clone())

    def values(self) -> list[Tensor]:
        """The averages, in the order of `averaged`."""
        return [value for name, value in self.named_buffers() if name != "steps"]


class MovingAverageObjective(Objective):
    """Adds no term. After every step the averages move towards the weights by 1 - `decay`, at first by more."""

    def __init__(self, network: Segmenter, decay: float, kept: bool = True) -> None:
        """Gives the network the averages as its `average`; to be made after methods that give it layers.

        `kept`: at the end they become its weights; else they only taught it.
        """
        self.network, self.decay, self.kept = network, decay, kept
        network.average = Average(network)

    def terms(self, seen: ForwardPass) -> list[Terms]:
        return []

    @torch.no_grad()
    def after_step(self) -> None:
        average = self._average
        average.steps += 1
        steps = int(average.steps)
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(average.values(), averaged(self.network), 1 - decay)

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Give the network the averages as its weights, if they are kept, and take the averages away."""
        if self.kept:
            for own, value in zip(averaged(self.network), self._average.values(), strict=True):
                own.copy_(value)
        self.network.average = None

    @property
    def _average(self) -> Average:
        average = self.network.average
        assert isinstance(average, Average)
        return average


def averages_of(network: Segmenter) -> dict[str, Tensor]:
    """The averages in the network by the names of the weights that they are averages of."""
    assert isinstance(network.average, Average)
    return dict(zip(_named(network), network.average.values(), strict=True))


def averaged(network: nn.Module) -> list[Tensor]:
    """Parameters and floating buffers of a network, such as BatchNorm's statistics, less its averages themselves."""
    return list(_named(network).values())


def _named(network: nn.Module) -> dict[str, Tensor]:
    named = [*network.named_parameters(), *network.named_buffers()]
    return {
        name: value.detach() for name, value in named if value.is_floating_point() and not name.startswith("average.")
    }
