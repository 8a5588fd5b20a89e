"""What is loaded does not depend on workers or torch's random state; what becomes of workers that are killed."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import _utils as data_loading

from cam_pipeline.data import loading
from cam_pipeline.data.batches import EpochBatches
from cam_pipeline.data.loading import grid_batches, loader_over, training_batches
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import GridImages
from cam_pipeline.errors import DataError, WorkerLost


def contents(loader):
    return [{key: value.tolist() for key, value in batch.items()} for batch in loader]


def test_training_batches_do_not_depend_on_the_number_of_workers(samples, make_views):
    views = make_views(samples, masks=True)
    alone, one, two = (
        contents(training_batches(views, EpochBatches(5, 2, epochs=2, seed=0, start=1), workers))
        for workers in (0, 1, 2)
    )
    assert alone == one == two
    assert [batch["index"] for batch in alone] == [
        [index for _, index in batch] for batch in EpochBatches(5, 2, epochs=2, seed=0, start=1)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_leave_the_global_random_states_alone(samples, workers, make_views):
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(training_batches(make_views(samples), EpochBatches(5, 2, epochs=1, seed=0), workers))
    list(loader_over(GridImages(samples, [(3, 5)] * 5, 4), [[0], [2, 1]], workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_grid_batches_hold_images_of_one_grid(samples):
    batches, loader = grid_batches(samples, stride=4, max_side=30, batch_size=2, workers=1)
    # 12 x 20 and 13 x 21 pixels are 3 x 5 cells of 4; 40 x 20 is reduced to 30 x 15: 7.5 and 3.75 cells.
    assert batches == [[0, 2], [3], [1], [4]]
    loaded = list(loader)
    assert [tuple(images.shape) for images in loaded] == [
        (2, 3, 12, 20),
        (1, 3, 12, 20),
        (1, 3, 20, 12),
        (1, 3, 32, 16),
    ]
    for batch, images in zip(batches, loaded, strict=True):
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[:, 2, 0, 0], torch.tensor([index * 10 / 255 for index in batch]))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_by_the_error_itself(samples, workers, tmp_path, make_views):
    """Not by the traceback of a worker process."""
    (tmp_path / "broken.png").write_text("no image")
    broken = [*samples[:2], Sample("broken", tmp_path / "broken.png", "train", (1,))]
    with pytest.raises(DataError, match=r"^\S*broken\.png cannot be read as an image") as caught:
        list(training_batches(make_views(broken), EpochBatches(3, 2, epochs=2, seed=0), workers))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^\S*broken\.png cannot be read as an image"):
        list(loader_over(GridImages(broken, [(3, 5)] * 3, 4), [[0, 1], [2]], workers))


def test_a_loader_over_nothing_is_empty(samples):
    assert list(loader_over(GridImages(samples, [(3, 5)] * 5, 4), [], workers=2)) == []


@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_is_killed_is_told_of_and_none_stays(samples, busy, make_views):
    """`busy`: it is killed while the next batch is waited for, not between two batches."""
    handler = signal.getsignal(signal.SIGCHLD)
    before = set(multiprocessing.active_children())
    loaded = training_batches(make_views(samples), EpochBatches(5, 1, epochs=10_000, seed=0), workers=2)
    next(loaded)
    victim, other = set(multiprocessing.active_children()) - before
    begun = time.monotonic()
    killing = threading.Timer(0.2 if busy else 0, os.kill, (victim.pid, signal.SIGKILL))
    killing.start()
    if not busy:
        killing.join()
    with pytest.raises(
        WorkerLost, match=r"^a process that loads images was killed, .*--workers 1.* same command again"
    ):
        for _ in loaded:
            pass
    assert time.monotonic() - begun < 30
    assert not victim.is_alive() and not other.is_alive()
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_what_is_left_of_the_workers_ends_with_a_loading_that_is_broken_off(samples, monkeypatch, make_views):
    monkeypatch.setattr(data_loading, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for a worker, twice
    before = set(multiprocessing.active_children())
    loaded = training_batches(make_views(samples), EpochBatches(5, 1, epochs=10_000, seed=0), workers=2)
    next(loaded)
    workers = set(multiprocessing.active_children()) - before
    stopped = next(iter(workers))
    os.kill(stopped.pid, signal.SIGSTOP)  # hears neither the end of the work nor SIGTERM
    loaded.close()
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_gpu_that_is_used_not_for_one_that_is_there(
    samples, monkeypatch, device, pinned, make_views
):
    asked = []

    def spy(*arguments, pin_memory, **named):
        asked.append(pin_memory)
        return []

    monkeypatch.setattr(loading, "DataLoader", spy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    place = torch.device(device)
    list(training_batches(make_views(samples), EpochBatches(5, 2, epochs=1, seed=0), 0, place))
    list(loader_over(GridImages(samples, [(3, 5)] * 5, 4), [[0], [2, 1]], 0, place))
    list(grid_batches(samples, stride=4, max_side=30, batch_size=2, workers=0, device=place)[1])
    assert asked == [pinned] * 3


@pytest.mark.parametrize(
    ("chosen", "system", "method"),
    [(None, "linux", "fork"), (None, "darwin", None), ("spawn", "linux", None), ("forkserver", "linux", None)],
)
def test_workers_are_forked_on_linux_unless_the_user_chose(monkeypatch, chosen, system, method):
    """From Python 3.14 on the default is another, with which each worker imports torch anew."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: chosen)
    monkeypatch.setattr(loading.sys, "platform", system)
    assert loading.start_method() == method


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first.dtype == second.dtype and torch.equal(first, second)


@pytest.mark.parametrize(("can_start", "ample"), [(True, False), (False, True)])
def test_batches_are_the_same_with_little_or_no_shared_memory(samples, make_views, monkeypatch, can_start, ample):
    views, batches = make_views(samples, masks=True), EpochBatches(5, 2, epochs=1, seed=0)
    images = GridImages(samples, [(3, 5)] * 5, 4)
    expected = list(training_batches(views, batches, 0)), list(loader_over(images, [[0], [2, 1]], 0))
    monkeypatch.setattr(loading, "is_ample", lambda: ample)
    monkeypatch.setattr(loading, "workers_can_start", lambda: can_start)
    # What torch does to make a tensor that other processes see.
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", lambda *_, **__: pytest.fail("shared memory is used"))
    found = list(training_batches(views, batches, 1)), list(loader_over(images, [[0], [2, 1]], 1))
    for before, after in zip(expected, found, strict=True):
        assert len(before) == len(after) and all(map(same, before, after))


def test_too_little_shared_memory_is_one_line(samples, monkeypatch, make_views):
    def fail(*_):
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm)")

    views = make_views(samples)
    monkeypatch.setattr(type(views), "__getitem__", fail)
    with pytest.raises(WorkerLost, match=r"^too little shared memory in /dev/shm; .*--shm-size.*--workers 1"):
        list(training_batches(views, EpochBatches(5, 2, epochs=1, seed=0), 1))
