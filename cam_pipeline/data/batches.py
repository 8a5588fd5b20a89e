"""Batches for training and for prediction; what a batch holds never depends on how many processes load it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from cam_pipeline.data.sfc import ImageBank, Key


class EpochBatches(Sampler[list[Key]]):
    """Batches of (epoch, index) from step `start` on: each epoch is a new permutation, drawn from (seed, epoch).

    Every batch is full; the rest of a permutation that fills no batch is left out (all of it, where the data set
    is smaller than one batch, makes a batch). Of `processes` that share the work, the one numbered `rank` gets its
    part of each batch: together they see what one alone would see. Views that a `bank` draws come behind a batch.
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
        bank: ImageBank | None = None,
    ) -> None:
        self.count, self.epochs, self.seed, self.start = count, epochs, seed, start
        self.rank, self.processes, self.bank = rank, processes, bank
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        if self.bank:
            self.bank.clear()
        for step in range(0 if self.bank else self.start, self.steps_per_epoch * self.epochs):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or step == self.start:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count).tolist()
            views = [(epoch, index) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size]]
            if self.bank:
                self.bank.update(views)
            if step >= self.start:
                share = self.batch_size // self.processes
                again = self.bank.draw(step) if self.bank else []
                yield views[self.rank * share : (self.rank + 1) * share] + again[self.rank :: self.processes]


def same_size_batches(keys: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Indices cut into batches whose `keys` are equal, ordered by key and then by index."""
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    batches: list[list[int]] = []
    for index in order:
        if not batches or len(batches[-1]) == batch_size or keys[batches[-1][0]] != keys[index]:
            batches.append([])
        batches[-1].append(index)
    return batches
