"""Batches for training and for prediction. Their content never depends on the number of loading processes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from cam_pipeline.data.views import Key

MoreViews = Callable[[Iterator[list[Key]], int], Iterator[list[Key]]]
"""Takes the views of all steps, and a step to start with. Gives what that step and each later one shows beside them."""


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys, (epoch, index), from step `start` on. Each epoch is a new permutation, drawn from (seed, epoch).

    Every batch is full. The last images of a permutation are left out if they do not fill a batch; a data set smaller
    than one batch is one batch. If several `processes` share the work, the one numbered `rank` gets its part of each
    batch: together they see what one process alone would see, and so they do of each of `parts` of the batch, which
    come one after the other. The views of each of `more` come behind the batch.

    With `repeats`, 1 or more for each image, an epoch has as many views all the same, but an image has its part of them
    by its number: each is rounded up or down at random, images are repeated so often, and the epoch shows the first of
    these in random order. A further view of an image in an epoch has a key of its own.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        epochs: int,
        seed: int,
        start: int = 0,
        *,
        rank: int = 0,
        processes: int = 1,
        more: Sequence[MoreViews] = (),
        repeats: Sequence[float] = (),
        parts: int = 1,
    ) -> None:
        self.count, self.seed, self.start = count, seed, start
        self.rank, self.processes, self.more = rank, processes, more
        self.parts = parts
        self.repeats = np.asarray(repeats, dtype=np.float64)
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self.steps = self.steps_per_epoch * epochs

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        added = [more(self._views(0), self.start) for more in self.more]
        size = self.batch_size // self.parts
        share = size // self.processes
        starts = [part * size + self.rank * share for part in range(self.parts)]
        for views, *others in zip(self._views(self.start), *added, strict=True):
            again = [key for other in others for key in other]
            yield [key for start in starts for key in views[start : start + share]] + again[self.rank :: self.processes]

    def _views(self, first: int) -> Iterator[list[Key]]:
        """The views of all processes in each step, from step `first` on."""
        for step in range(first, self.steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or step == first:
                order = self._epoch(epoch)
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _epoch(self, epoch: int) -> list[Key]:
        """The views of an epoch, in order; there may be some more behind its last batch."""
        rng = np.random.default_rng([self.seed, epoch])
        if not len(self.repeats):
            return [(epoch, index) for index in rng.permutation(self.count).tolist()]
        whole = np.floor(self.repeats)
        times = (whole + (rng.random(self.count) < self.repeats - whole)).astype(np.int64)
        seen, order = Counter[int](), list[Key]()
        for index in rng.permutation(np.repeat(np.arange(self.count), times)).tolist():
            order.append((epoch, index, seen[index]) if seen[index] else (epoch, index))
            seen[index] += 1
        return order


def same_size_batches(keys: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Indices in batches of equal `keys`, ordered by key and then by index."""
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    batches: list[list[int]] = []
    for index in order:
        if not batches or len(batches[-1]) == batch_size or keys[batches[-1][0]] != keys[index]:
            batches.append([])
        batches[-1].append(index)
    return batches
