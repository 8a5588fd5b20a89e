"""Batches loaded by worker processes. The workers end with the process that waits for them."""

import atexit
import multiprocessing
import sys
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cam_pipeline.data.batches import EpochBatches, same_size_batches
from cam_pipeline.data.grid import grid_size
from cam_pipeline.data.images import sample_size
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import GridImages, TrainingViews
from cam_pipeline.errors import UserError, WorkerLost
from cam_pipeline.machine.interrupt import child_handler_kept, ignore_in_worker
from cam_pipeline.machine.shared_memory import FOLDER, is_ample, workers_can_start

CPU = torch.device("cpu")


class _Reporting(Dataset[Any]):
    """Returns a user's mistake in place of the items. Raised in a worker, it would come with a traceback."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitems__(self, keys: Sequence[Any]) -> list[Any] | UserError:
        try:
            return [self.items[key] for key in keys]
        except UserError as error:
            return error


def _collate(items: list[Any] | UserError) -> Any:
    return items if isinstance(items, UserError) else default_collate(items)


def _collate_for_pipe(items: list[Any] | UserError) -> Any:
    """As arrays: those go through a pipe, tensors through shared memory, of which there is too little."""
    if isinstance(items, UserError):
        return items
    if isinstance(items[0], dict):
        return {key: _collate_for_pipe([item[key] for item in items]) for key in items[0]}
    return np.stack([np.asarray(item) for item in items])


def _from_pipe(batch: Any) -> Any:
    """The batch that `_collate` makes, from that of `_collate_for_pipe`."""
    if isinstance(batch, dict):
        return {key: _from_pipe(value) for key, value in batch.items()}
    return torch.from_numpy(batch)


_unfinished: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Close loadings that an error left open. At exit, multiprocessing would wait for workers that ignore SIGTERM."""
    for batches in list(_unfinished):
        batches.close()


def _load(items: Dataset[Any], batches: Iterable[Any], workers: int, device: torch.device) -> Iterator[Any]:
    """The items of each batch of keys, collated. The processes that load them end with the iterator or this process."""
    loading = _loading(items, batches, workers, device)
    _unfinished.add(loading)
    return loading


def start_method() -> str | None:
    """How worker processes start: on Linux by fork, as everywhere before Python 3.14; None: by Python's default.

    Linux's default is now a server, whose workers import torch anew: that takes seconds at every start. What the user
    set (`multiprocessing.set_start_method`) stands.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    return "fork" if chosen is None and sys.platform == "linux" else None


def _loading(
    items: Dataset[Any], batches: Iterable[Any], workers: int, device: torch.device
) -> Generator[Any, None, None]:
    workers = workers if workers_can_start() else 0
    by_pipe = workers > 0 and not is_ample()
    loader: DataLoader[Any] = DataLoader(
        _Reporting(items),
        batch_sampler=batches,
        num_workers=workers,
        multiprocessing_context=start_method() if workers else None,
        collate_fn=_collate_for_pipe if by_pipe else _collate,
        worker_init_fn=ignore_in_worker,
        generator=torch.Generator(),  # its own: torch's global random state stays untouched
        pin_memory=device.type == "cuda",  # on another device it would take memory of a GPU that others use
    )
    with child_handler_kept():  # torch's own raises wherever this process is, not here
        iterator = iter(loader)
    processes = list(getattr(iterator, "_workers", ()))
    try:
        while (batch := _next_batch(iterator)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield _from_pipe(batch) if by_pipe else batch
    finally:
        del iterator  # its workers end in order, unless an error holds it
        _kill(processes)


def _next_batch(iterator: Iterator[Any]) -> Any:
    """The next batch, None at the end. Raises WorkerLost if a loading process is gone."""
    try:
        return next(iterator, None)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A worker that ends while it hands over a batch raises the other two. Errors of items have another text.
        words = str(error)
        if "shared memory" in words:  # what others took since this loading began
            raise WorkerLost(
                f"too little shared memory in {FOLDER}; give it more (docker run --shm-size=1g) or use fewer processes "
                "(--workers 1), then start the same command again: finished work is kept"
            ) from error
        if isinstance(error, RuntimeError) and not words.startswith("DataLoader worker (pid"):
            raise
        raise WorkerLost(
            "a process that loads images was killed, most often for lack of memory; use fewer (--workers 1) or a "
            "smaller batch size, then start the same command again: finished work is kept"
        ) from error


def _kill(processes: Sequence[BaseProcess]) -> None:
    """Kill the workers that are left: they ignore SIGTERM and may wait for ever for one that is gone."""
    with child_handler_kept():
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def training_batches(
    views: TrainingViews, batches: EpochBatches, workers: int, device: torch.device = CPU
) -> Iterator[dict[str, Any]]:
    """The views of `batches`, collated, on the CPU, in memory from which a copy to `device` is fast.

    Raises DataError for an image or mask that cannot be read, WorkerLost if a loading process is gone.
    """
    return _load(views, batches, workers, device)


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
