"""The loss of a training step: one forward pass, the terms of all objectives, and their sum over all processes."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import reduce

import torch
from torch import Tensor, nn

from cam_pipeline.machine.distributed import exchange, rank, world_size
from cam_pipeline.models.placing import image_batch
from cam_pipeline.training.objectives.base import Batch, ForwardPass, Objective, Terms


class Loss(nn.Module):
    """A network and its objectives as one module: takes a batch, gives the loss and its terms by name.

    It is one module because DistributedDataParallel finds parameters and gradients in a module's forward pass only.
    """

    def __init__(self, network: nn.Module, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.network, self.objectives = network, objectives

    def forward(
        self,
        batch: Batch,
        progress: float,
        images_share: float = 1.0,
        pixels_share: float = 1.0,
        shown_share: float = 1.0,
    ) -> dict[str, Tensor]:
        """`loss`, a scalar with gradients, and every weighted term and figure, scalars without.

        `progress` as in ForwardPass. Of a part of a batch the shares are those of `parts.Part`: terms that are means
        over images weigh by the first, those over all pixels that show an image by the third, and all others by the
        second, so that they add up to those of the batch.
        """
        groups = self._terms(batch, progress)
        weights = [
            weight * (images_share if group.items is None else shown_share if group.shown else pixels_share)
            for group, weight in zip(groups, shared_weights(groups, len(batch["index"])), strict=True)
        ]
        sums: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for group, weight in zip(groups, weights, strict=True):
            means = {name: value.mean() if value.dim() else value for name, value in group.values.items()}
            sums.append(weight * reduce(torch.add, means.values()))
            terms |= {name: weight * mean.detach() for name, mean in means.items()}
            terms |= {name: images_share * figure for name, figure in group.figures.items()}
        return {"loss": reduce(torch.add, sums), **terms}

    def _terms(self, batch: Batch, progress: float) -> list[Terms]:
        """The terms of all objectives after one forward pass."""
        images = image_batch(batch["image"], batch["image"].device)
        for objective in self.objectives:
            objective.before_pass(progress)
        added = [objective.added_views(images) for objective in self.objectives]
        draw_apart()
        views = [images, *(more for more in added if more is not None)]
        with ExitStack() as taps:  # closed in validation, which needs nothing from them
            for tap in (tap for objective in self.objectives for tap in objective.taps):
                taps.enter_context(tap)
            output = self.network(images if len(views) == 1 else image_batch(torch.cat(views), images.device))
        sizes, place = tuple(len(part) for part in views), 0
        terms: list[Terms] = []
        for objective, more in zip(self.objectives, added, strict=True):
            place += more is not None
            terms += objective.terms(ForwardPass(batch | {"image": images}, output, progress, sizes, place))
        return terms


def draw_apart() -> None:
    """Let processes draw different random numbers from here on, for dropout, after they have drawn the same.

    One alone draws as if nothing had happened.
    """
    if rank():
        torch.manual_seed(torch.initial_seed() + rank() * 500_000_003)


def shared_weights(groups: Sequence[Terms], images: int) -> list[float]:
    """Weight of each group in this process. The average over processes is then the mean over the items of all."""
    if world_size() == 1:
        return [group.weight for group in groups]
    counts = exchange(*(float(images if group.items is None else group.items) for group in groups))
    totals = [max(sum(column), 1.0) for column in zip(*counts, strict=True)]
    shares = [count * world_size() / total for count, total in zip(counts[rank()], totals, strict=True)]
    return [group.weight * share for group, share in zip(groups, shares, strict=True)]


def mean_over_processes(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """The average of each scalar, with one transfer from the device and one message between processes."""
    own = torch.stack([scalar.detach() for scalar in scalars.values()]).tolist()
    columns = zip(*exchange(*own), strict=True)
    return {name: sum(column) / world_size() for name, column in zip(scalars, columns, strict=True)}
