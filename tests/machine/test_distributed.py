"""One process alone, and what it knows of others; several are in tests/robustness/test_distributed.py."""

import pytest

from cam_pipeline.errors import ConfigError
from cam_pipeline.machine import distributed


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*distributed.NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone(environment: pytest.MonkeyPatch) -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)
    assert distributed.is_first()
    assert distributed.exchange(1.5, 2.0) == [(1.5, 2.0)]
    answer = object()  # no JSON on the way
    assert distributed.from_first(lambda: answer) is distributed.first_before_others(lambda: answer) is answer
    distributed.meet()
    distributed.check_shares("train_cls.batch_size", 7)


@pytest.mark.parametrize("world", ["1", "", "many"])
def test_a_rank_without_several_processes_means_nothing(environment: pytest.MonkeyPatch, world: str) -> None:
    environment.setenv("RANK", "3")
    environment.setenv("WORLD_SIZE", world)
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)


def test_places_of_processes_on_two_machines(environment: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        environment.setenv(name, value)
    places = (distributed.rank(), distributed.world_size(), distributed.local_rank(), distributed.local_world_size())
    assert places == (3, 4, 1, 2) and not distributed.is_first()


def test_shares_must_be_even(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "3")
    distributed.check_shares("train_cls.batch_size", 6)
    with pytest.raises(
        ConfigError,
        match=r"train_cls\.batch_size = 8 cannot be divided over 3 processes; make it a multiple of 3",
    ):
        distributed.check_shares("train_cls.batch_size", 8)
    distributed.check_shares("train_seg.batch_size", 12, parts=2)
    with pytest.raises(
        ConfigError, match=r"train_seg\.batch_size = 15 in 3 parts cannot be divided over 3 processes; make it .* of 9"
    ):
        distributed.check_shares("train_seg.batch_size", 15, parts=3)
