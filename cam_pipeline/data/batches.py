"""Batches for training and for prediction; what a batch holds never depends on how many processes load it."""

import atexit
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from cam_pipeline.data.augment import random_view
from cam_pipeline.data.image_bank import BLANK, ImageBank, Key
from cam_pipeline.data.images import UInt8, grid_size, resize_to_grid, sample_image, sample_size, to_tensor
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import UserError, WorkerLost
from cam_pipeline.machine.interrupt import child_handler_kept, ignore_in_worker

ReadMask = Callable[[int], UInt8]
CPU = torch.device("cpu")


class TrainingViews(Dataset[dict[str, Any]]):
    """Random views. An item is asked for by (epoch, index), and depends on (seed, epoch, index) alone.

    Items: `image` (3, crop, crop) uint8, `index` int, `box` (4,) the part that shows the image (top, left, bottom,
    right) and, where `read_mask` is given, `mask` (crop, crop) uint8. The index BLANK has an empty view and no mask.
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

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        if index == BLANK:
            empty = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, self.crop, self.crop)
            return {"image": empty, "index": BLANK, "box": torch.zeros(4, dtype=torch.int64)}
        image = to_tensor(sample_image(self.samples[index]))
        mask = None if self.read_mask is None else torch.from_numpy(np.array(self.read_mask(index)))
        rng = np.random.default_rng([self.seed, epoch, index])
        view, mask, box = random_view(image, mask, self.crop, self.scale, self.fill, rng)
        return {"image": view, "index": index, "box": box} | ({} if mask is None else {"mask": mask})


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


class _Reporting(Dataset[Any]):
    """Gives a user's mistake in place of the items: raised in a worker, its one line would end in a traceback."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitems__(self, keys: Sequence[Any]) -> list[Any] | UserError:
        try:
            return [self.items[key] for key in keys]
        except UserError as error:
            return error


def _collate(items: list[Any] | UserError) -> Any:
    return items if isinstance(items, UserError) else default_collate(items)


_unfinished: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Close what an error left open: at exit, multiprocessing would wait for workers, which ignore its SIGTERM."""
    for batches in list(_unfinished):
        batches.close()


def _load(items: Dataset[Any], batches: Iterable[Any], workers: int, device: torch.device) -> Iterator[Any]:
    """The collated batches of keys, loaded by processes that end with the iterator, or with this process."""
    loading = _loading(items, batches, workers, device)
    _unfinished.add(loading)
    return loading


def _loading(
    items: Dataset[Any], batches: Iterable[Any], workers: int, device: torch.device
) -> Generator[Any, None, None]:
    loader: DataLoader[Any] = DataLoader(
        _Reporting(items),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=ignore_in_worker,
        generator=torch.Generator(),  # its own, so that torch's global random state stays untouched
        pin_memory=device.type == "cuda",  # without need it would take memory of a GPU that others use
    )
    with child_handler_kept():  # torch's own raises wherever this process is, not here where the batch is missed
        iterator = iter(loader)
    processes = list(getattr(iterator, "_workers", ()))
    try:
        while (batch := _next_batch(iterator)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        del iterator  # its workers end in order, unless an error holds it
        _kill(processes)


def _next_batch(iterator: Iterator[Any]) -> Any:
    """The next batch, None at the end. Raises WorkerLost when a process that loads is gone."""
    try:
        return next(iterator, None)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The other two come when it ends while it hands over a batch. What an item raises has another text.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        raise WorkerLost(
            "a process that loads images was killed, most often for lack of memory; use fewer (--workers 1) or a "
            "smaller batch size, then start the same command again: finished work is kept"
        ) from error


def _kill(processes: Sequence[BaseProcess]) -> None:
    """End what is left of the workers, which ignore SIGTERM and may wait for ever for one that is gone."""
    with child_handler_kept():
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def training_batches(
    views: TrainingViews, batches: EpochBatches, workers: int, device: torch.device = CPU
) -> Iterator[dict[str, Any]]:
    """The views of `batches`, collated, on the CPU; they can be brought to `device` fast.

    Raises DataError for an image or mask that can not be read, WorkerLost when a process that loads is gone.
    """
    return _load(views, batches, workers, device)


class GridImages(Dataset[Tensor]):
    """Images resized to whole cells: item i is (3, rows * stride, columns * stride) float32 in 0..1."""

    def __init__(self, samples: Sequence[Sample], grids: Sequence[tuple[int, int]], stride: int) -> None:
        self.samples, self.grids, self.stride = samples, grids, stride

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        image = to_tensor(sample_image(self.samples[index]))
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


def loader_over(
    images: GridImages, batches: Sequence[Sequence[int]], workers: int, device: torch.device = CPU
) -> Iterator[Tensor]:
    """(B, 3, H, W) float32 in 0..1 for each batch of indices. `device` and errors as in `training_batches`."""
    return _load(images, [list(batch) for batch in batches], min(workers, len(batches)), device)


def grid_batches(
    samples: Sequence[Sample],
    *,
    stride: int,
    max_side: int,
    batch_size: int,
    workers: int,
    device: torch.device = CPU,
) -> tuple[list[list[int]], Iterator[Tensor]]:
    """Batches of images that share a grid at scale 1, and (B, 3, H, W) float32 for each. Errors as `loader_over`."""
    grids = [grid_size(*sample_size(sample), stride, max_side) for sample in samples]
    batches = same_size_batches(grids, batch_size)
    return batches, loader_over(GridImages(samples, grids, stride), batches, workers, device)
