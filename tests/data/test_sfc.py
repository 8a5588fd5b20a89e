import pytest

from cam_pipeline.data.batches import EpochBatches
from cam_pipeline.data.sfc import ImageBank
from cam_pipeline.data.views import BLANK

CLASS_IDS = [(1, 3), (3,), (), (2, 3), (1,)]  # person, cow, dog; class 4 has no image


def bank(draws=4, blank=False, seed=0):
    return ImageBank(CLASS_IDS, 4, draws, seed, blank)


def drawn_after(one, views, steps):
    """All views drawn in so many steps, the slots written once."""
    return [view for step in range(steps) for view in one.draw(one.shown(views), step)]


def test_a_slot_holds_the_view_that_last_showed_its_class():
    one = bank(draws=200)
    steps = [[(0, 0), (0, 1), (0, 2)], [(1, 4)]]  # image 0 shows classes 1 and 3, image 1 class 3, image 2 nothing
    assert one.shown(steps[0]) == {1: (0, 0), 3: (0, 1)}
    assert [set(views) for views in one(iter(steps))] == [{(0, 0), (0, 1)}, {(1, 4), (0, 1)}]


def test_slots_are_drawn_evenly_and_only_when_written():
    one = bank(draws=3)
    assert one.draw({}, 0) == []
    drawn = drawn_after(one, [(0, 0), (0, 1)], 400)
    assert len(drawn) == 1200 and set(drawn) == {(0, 0), (0, 1)}
    assert drawn.count((0, 0)) == pytest.approx(600, abs=80)


def test_in_the_released_way_an_unwritten_slot_is_an_empty_view():
    one = bank(draws=3, blank=True)
    assert one.draw({}, 0) == [(0, BLANK)] * 3
    drawn = drawn_after(one, [(0, 3)], 400)
    assert drawn.count((0, BLANK)) == pytest.approx(600, abs=80)  # classes 1 and 4 of four


def test_draws_follow_from_seed_and_step_alone():
    one, other = ([each.draw({1: (0, 0), 2: (0, 3), 3: (0, 1)}, step) for step in range(20)]
                  for each in (bank(), bank(seed=1)))  # fmt: skip
    assert one == [bank().draw({1: (0, 0), 2: (0, 3), 3: (0, 1)}, step) for step in range(20)] != other


def batches(**more):
    return EpochBatches(5, 2, epochs=6, seed=3, more=[bank(draws=3)], **more)


def test_what_is_drawn_comes_behind_the_batch_that_was_just_written():
    plain = list(EpochBatches(5, 2, epochs=6, seed=3))
    one, slots = bank(draws=3), {}
    for step, (views, usual) in enumerate(zip(batches(), plain, strict=True)):
        slots |= one.shown(usual)
        assert views[:2] == usual and views[2:] == one.draw(slots, step)
        assert len(views) == (5 if slots else 2)


def test_a_resumed_training_draws_what_an_undisturbed_one_draws():
    everything = list(batches())
    assert everything == list(batches())
    for start in range(len(everything)):
        assert list(batches(start=start)) == everything[start:]
    one = batches()
    assert list(one) == list(one), "the slots of an earlier pass are forgotten"


def test_processes_see_together_what_one_would_see():
    whole = list(batches())
    parts = [list(batches(rank=rank, processes=2)) for rank in range(2)]
    for views, *shares in zip(whole, *parts, strict=True):
        assert [share[:1] for share in shares] == [[view] for view in views[:2]]
        assert sorted(view for share in shares for view in share) == sorted(views)
        assert abs(len(shares[0]) - len(shares[1])) <= 1
