"""What a batch holds depends on seed, epoch and image: not on workers, restarts or torch's random state."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import _utils as data_loading

from cam_pipeline.data import loading
from cam_pipeline.data.batches import EpochBatches, same_size_batches
from cam_pipeline.data.loading import grid_batches, loader_over, training_batches
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import BLANK, GridImages, TrainingViews
from cam_pipeline.errors import DataError, WorkerLost

SIZES = [(12, 20), (20, 12), (12, 20), (13, 21), (40, 20)]  # (height, width)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        pixels[..., 2] = 10 * index  # blue tells the images apart
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return [Sample(str(index), folder / f"{index}.png", "train", (1,)) for index in range(len(SIZES))]


def make_views(samples, seed=0, masks=False):
    def read_mask(index):
        return np.full(SIZES[index], index, dtype=np.uint8)

    return TrainingViews(
        samples, crop=10, scale=(0.8, 1.5), fill=(1, 2, 3), seed=seed, read_mask=read_mask if masks else None
    )


def flat(batches):
    return [pair for batch in batches for pair in batch]


def test_resumed_batches_are_the_tail_of_all_batches():
    everything = list(EpochBatches(7, 2, epochs=3, seed=5))
    assert len(everything) == len(EpochBatches(7, 2, epochs=3, seed=5)) == 9
    for start in range(10):
        tail = EpochBatches(7, 2, epochs=3, seed=5, start=start)
        assert list(tail) == everything[start:] and len(tail) == 9 - start


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(processes):
    whole = list(EpochBatches(14, 6, epochs=3, seed=5, start=1))
    shares = [
        list(EpochBatches(14, 6, epochs=3, seed=5, start=1, rank=r, processes=processes)) for r in range(processes)
    ]
    assert [flat(parts) for parts in zip(*shares, strict=True)] == whole
    assert {len(part) for share in shares for part in share} == {6 // processes}


def test_more_views_come_behind_the_batch_in_order_from_any_step_on():
    def first(steps, start):
        return ([views[0]] for step, views in enumerate(steps) if step >= start)

    def numbered(steps, start):
        return ([(step, 0), (step, 1)] for step, _ in enumerate(steps) if step >= start)

    plain = list(EpochBatches(6, 2, epochs=2, seed=5))
    for start in range(7):
        chosen = {"epochs": 2, "seed": 5, "start": start, "more": [first, numbered]}
        expected = [[*views, views[0], (step, 0), (step, 1)] for step, views in enumerate(plain)][start:]
        assert list(EpochBatches(6, 2, **chosen)) == expected
        one, other = (list(EpochBatches(6, 2, **chosen, rank=rank, processes=2)) for rank in range(2))
        assert [len(views) for views in one + other] == [3] * len(one) + [2] * len(other)
        assert [[a, b, c, d, e] for (a, c, e), (b, d) in zip(one, other, strict=True)] == expected


def test_every_image_comes_at_most_once_an_epoch_in_another_order_each_time():
    batches = list(EpochBatches(7, 3, epochs=4, seed=1))
    assert {len(batch) for batch in batches} == {3}
    epochs = [flat(batches[start : start + 2]) for start in range(0, 8, 2)]
    for number, pairs in enumerate(epochs):
        assert {epoch for epoch, _ in pairs} == {number}
        indices = [index for _, index in pairs]
        assert len(set(indices)) == 6 and set(indices) <= set(range(7))
    assert len({tuple(index for _, index in pairs) for pairs in epochs}) == 4
    assert list(EpochBatches(7, 3, epochs=4, seed=1)) == batches != list(EpochBatches(7, 3, epochs=4, seed=2))


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    batches = list(EpochBatches(3, 16, epochs=2, seed=0))
    assert [sorted(index for _, index in batch) for batch in batches] == [[0, 1, 2]] * 2
    assert EpochBatches(3, 16, epochs=2, seed=0).steps_per_epoch == 1


def test_a_view_depends_on_seed_epoch_and_index_alone(samples):
    views = make_views(samples)
    first = views[2, 3]
    assert first["index"] == 3 and first["image"].shape == (3, 10, 10) and first["image"].dtype == torch.uint8
    assert "mask" not in first
    assert torch.equal(make_views([samples[3]] * 4)[2, 3]["image"], first["image"])
    _ = views[0, 1], np.random.default_rng().random(), torch.rand(1)
    assert torch.equal(views[2, 3]["image"], first["image"])
    twice = make_views([samples[3]] * 4)  # the same image under other indices
    for other in (views[1, 3], make_views(samples, seed=1)[2, 3], twice[2, 2]):
        assert not torch.equal(other["image"], first["image"])


def test_mask_and_image_of_an_item_belong_together(samples):
    item = make_views(samples, masks=True)[0, 3]
    inside = item["mask"] != 255
    assert inside.any() and (item["mask"][inside] == 3).all()
    assert (item["image"][2][inside] == 30).all()


def test_a_view_has_the_labels_of_its_image_and_an_empty_one_has_none(samples):
    labels = torch.eye(5)[:, :2]
    views = TrainingViews(samples, crop=10, scale=(0.8, 1.5), fill=(1, 2, 3), seed=0, labels=labels)
    assert [views[3, index]["labels"].tolist() for index in (0, 1, 4, BLANK)] == [[1, 0], [0, 1], [0, 0], [0, 0]]
    blank = views[3, BLANK]
    assert blank["image"][:, 4, 7].tolist() == [1, 2, 3] and blank["image"].shape == (3, 10, 10)
    assert blank["index"] == BLANK and not blank["box"].any() and "mask" not in blank
    assert "labels" not in make_views(samples)[0, BLANK]


def contents(loader):
    return [{key: value.tolist() for key, value in batch.items()} for batch in loader]


def test_training_batches_do_not_depend_on_the_number_of_workers(samples):
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
def test_loaders_leave_the_global_random_states_alone(samples, workers):
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(training_batches(make_views(samples), EpochBatches(5, 2, epochs=1, seed=0), workers))
    list(loader_over(GridImages(samples, [(3, 5)] * 5, 4), [[0], [2, 1]], workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_same_size_batches_keep_equal_keys_together():
    keys = [(2, 3), (3, 2), (2, 3), (1, 9), (2, 3), (3, 2)]
    assert same_size_batches(keys, 2) == [[3], [0, 2], [4], [1, 5]]
    assert same_size_batches(keys, 1) == [[3], [0], [2], [4], [1], [5]]
    assert same_size_batches([], 2) == []


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
def test_an_unreadable_image_is_named_by_the_error_itself(samples, workers, tmp_path):
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
def test_a_worker_that_is_killed_is_told_of_and_none_stays(samples, busy):
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


def test_what_is_left_of_the_workers_ends_with_a_loading_that_is_broken_off(samples, monkeypatch):
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
def test_memory_is_pinned_for_a_gpu_that_is_used_not_for_one_that_is_there(samples, monkeypatch, device, pinned):
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
