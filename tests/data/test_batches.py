"""Which images a batch holds depends on seed, epoch and step alone, not on restarts or the number of processes."""

import pytest

from cam_pipeline.data.batches import EpochBatches, same_size_batches


def flat(batches):
    return [pair for batch in batches for pair in batch]


def test_resumed_batches_are_the_tail_of_all_batches():
    everything = list(EpochBatches(7, 2, epochs=3, seed=5))
    assert len(everything) == len(EpochBatches(7, 2, epochs=3, seed=5)) == 9
    for start in range(10):
        tail = EpochBatches(7, 2, epochs=3, seed=5, start=start)
        assert list(tail) == everything[start:] and len(tail) == 9 - start


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_every_part_of_a_batch(processes):
    whole = list(EpochBatches(26, 12, epochs=2, seed=5))
    chosen = {"epochs": 2, "seed": 5, "processes": processes, "parts": 2}
    shares = [list(EpochBatches(26, 12, **chosen, rank=rank)) for rank in range(processes)]
    for batch, *own in zip(whole, *shares, strict=True):
        half = len(own[0]) // 2
        assert flat([one[:half] for one in own]) == batch[:6] and flat([one[half:] for one in own]) == batch[6:]


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


def test_same_size_batches_keep_equal_keys_together():
    keys = [(2, 3), (3, 2), (2, 3), (1, 9), (2, 3), (3, 2)]
    assert same_size_batches(keys, 2) == [[3], [0, 2], [4], [1, 5]]
    assert same_size_batches(keys, 1) == [[3], [0], [2], [4], [1], [5]]
    assert same_size_batches([], 2) == []


REPEATS = [1.0, 1.0, 2.5, 1.0, 1.25, 1.0, 1.0]


def test_repeated_images_have_their_part_of_epochs_as_long_as_before():
    batches = list(EpochBatches(7, 2, epochs=400, seed=5, repeats=REPEATS))
    assert len(batches) == len(EpochBatches(7, 2, epochs=400, seed=5)) == 1200
    keys = flat(batches)
    assert len(set(keys)) == len(keys), "no view comes twice"
    counts = [sum(key[1] == index for key in keys) for index in range(7)]
    share = [count / len(keys) * sum(REPEATS) for count in counts]
    assert share == pytest.approx(REPEATS, abs=0.12)
    for epoch in range(400):
        of_epoch = [key for key in keys if key[0] == epoch]
        assert len(of_epoch) == 6
        for index in range(7):
            own = [key[2:] for key in of_epoch if key[1] == index]
            assert own == [(), (1,), (2,)][: len(own)] and len(own) <= (1, 1, 3, 1, 2, 1, 1)[index]


def test_repeated_batches_follow_from_seed_and_step_for_any_number_of_processes():
    everything = list(EpochBatches(7, 2, epochs=3, seed=5, repeats=REPEATS))
    for start in range(10):
        assert list(EpochBatches(7, 2, epochs=3, seed=5, start=start, repeats=REPEATS)) == everything[start:]
    shares = [list(EpochBatches(7, 2, epochs=3, seed=5, rank=r, processes=2, repeats=REPEATS)) for r in range(2)]
    assert [flat(parts) for parts in zip(*shares, strict=True)] == everything
