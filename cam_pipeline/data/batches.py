"""Batches for training and for prediction; what a batch holds never depends on how many processes load it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cam_pipeline.data.augment import random_view
from cam_pipeline.data.images import UInt8, grid_size, image_size, read_image, resize_to_grid, to_tensor
from cam_pipeline.data.table import Sample
from cam_pipeline.interrupt import ignore_in_worker

ReadMask = Callable[[int], UInt8]


class TrainingViews(Dataset[dict[str, Any]]):
    """Random views. An item is asked for by (epoch, index), and depends on (seed, epoch, index) alone.

    Items: `image` (3, crop, crop) uint8, `index` int and, where `read_mask` is given, `mask` (crop, crop) uint8.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        crop: int,
        scale: tuple[float, float],
        fill: tuple[int, int, int],
        seed: int,
        read_mask: ReadMask | None = None,
    ) -> None:
        self.samples, self.read_mask = samples, read_mask
        self.crop, self.scale, self.fill, self.seed = crop, scale, fill, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        image = to_tensor(read_image(self.samples[index].image))
        mask = None if self.read_mask is None else torch.from_numpy(np.array(self.read_mask(index)))
        rng = np.random.default_rng([self.seed, epoch, index])
        view, mask = random_view(image, mask, self.crop, self.scale, self.fill, rng)
        return {"image": view, "index": index} | ({} if mask is None else {"mask": mask})


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) from step `start` on: each epoch is a new permutation, drawn from (seed, epoch).

    Every batch is full; the rest of a permutation that fills no batch is left out (all of it, where the data set
    is smaller than one batch, makes a batch).
    """

    def __init__(self, count: int, batch_size: int, epochs: int, seed: int, start: int = 0) -> None:
        self.count, self.epochs, self.seed, self.start = count, epochs, seed, start
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.steps_per_epoch * self.epochs):
            epoch, batch = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in chosen]


def training_batches(views: TrainingViews, batches: EpochBatches, workers: int) -> DataLoader[dict[str, Any]]:
    """A loader over `batches`; its own generator keeps it from touching torch's global random state."""
    return DataLoader(
        views,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=ignore_in_worker,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


class GridImages(Dataset[Tensor]):
    """Images resized to whole cells: item i is (3, rows * stride, columns * stride) float32 in 0..1."""

    def __init__(self, samples: Sequence[Sample], grids: Sequence[tuple[int, int]], stride: int) -> None:
        self.samples, self.grids, self.stride = samples, grids, stride

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        image = to_tensor(read_image(self.samples[index].image))
        return resize_to_grid(image, self.grids[index], self.stride)


def same_size_batches(keys: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Indices cut into batches whose `keys` are equal, ordered by key and then by index."""
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    batches: list[list[int]] = []
    for index in order:
        if not batches or len(batches[-1]) == batch_size or keys[batches[-1][0]] != keys[index]:
            batches.append([])
        batches[-1].append(index)
    return batches


def loader_over(images: GridImages, batches: Sequence[Sequence[int]], workers: int) -> DataLoader[Tensor]:
    """A loader that gives (B, 3, H, W) float32 in 0..1 for each batch of indices; its generator is its own."""
    return DataLoader(
        images,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=min(workers, len(batches)),
        worker_init_fn=ignore_in_worker,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def grid_batches(
    samples: Sequence[Sample], *, stride: int, max_side: int, batch_size: int, workers: int
) -> tuple[list[list[int]], DataLoader[Tensor]]:
    """Batches of images that share a grid at scale 1, and a loader that gives (B, 3, H, W) float32 for each."""
    grids = [grid_size(*image_size(sample.image), stride, max_side) for sample in samples]
    batches = same_size_batches(grids, batch_size)
    return batches, loader_over(GridImages(samples, grids, stride), batches, workers)
