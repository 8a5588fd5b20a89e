import pytest

from cam_pipeline.data.batches import EpochBatches
from cam_pipeline.data.sfc import BLANK, ImageBank

CLASS_IDS = [(1, 3), (3,), (), (2, 3), (1,)]  # person, cow, dog; class 4 has no image


def bank(draws=4, blank=False, seed=0):
    return ImageBank(CLASS_IDS, 4, draws, seed, blank)


def test_a_slot_holds_the_view_that_last_showed_its_class():
    one = bank()
    one.update([(0, 0), (0, 1), (0, 2)])  # image 0 shows classes 1 and 3, image 1 class 3, image 2 nothing
    assert one.slots == {1: (0, 0), 3: (0, 1)}
    one.update([(1, 4)])
    assert one.slots == {1: (1, 4), 3: (0, 1)}


def test_slots_are_drawn_evenly_and_only_when_written():
    one = bank(draws=3)
    assert one.draw(0) == []
    one.update([(0, 0), (0, 1)])
    drawn = [view for step in range(400) for view in one.draw(step)]
    assert len(drawn) == 1200 and set(drawn) == {(0, 0), (0, 1)}
    assert drawn.count((0, 0)) == pytest.approx(600, abs=80)


def test_in_the_released_way_an_unwritten_slot_is_an_empty_view():
    one = bank(draws=3, blank=True)
    assert one.draw(0) == [(0, BLANK)] * 3
    one.update([(0, 3)])
    drawn = [view for step in range(400) for view in one.draw(step)]
    assert drawn.count((0, BLANK)) == pytest.approx(600, abs=80)  # classes 1 and 4 of four


def test_draws_follow_from_seed_and_step_alone():
    one, other = bank(), bank(seed=1)
    for each in (one, other):
        each.update([(0, 0), (0, 1), (0, 3)])
    first = [one.draw(step) for step in range(20)]
    assert first == [one.draw(step) for step in range(20)] != [other.draw(step) for step in range(20)]


def batches(**more):
    return EpochBatches(5, 2, epochs=6, seed=3, bank=bank(draws=3), **more)


def test_what_is_drawn_comes_behind_the_batch_that_was_just_written():
    plain = list(EpochBatches(5, 2, epochs=6, seed=3))
    shadow = bank(draws=3)
    for step, (views, usual) in enumerate(zip(batches(), plain, strict=True)):
        shadow.update(usual)
        assert views[:2] == usual and views[2:] == shadow.draw(step)
        assert len(views) == (5 if shadow.slots else 2)


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
