"""Containers with little shared memory, or none: the work goes on, and somebody hears why it is slower."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cam_pipeline.machine import shared_memory
from cam_pipeline.machine.parallel import Workers
from cam_pipeline.machine.shared_memory import is_ample, why_no_workers, workers_can_start


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    workers_can_start.cache_clear()
    is_ample.cache_clear()
    yield
    workers_can_start.cache_clear()
    is_ample.cache_clear()


@pytest.fixture(params=[(30, "Read-only file system"), (13, "Permission denied"), (28, "No space left on device")])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    number, reason = request.param

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, reason)

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Lock", refuse)
    return str(reason)


def test_why_there_are_none_is_asked_for_without_a_warning(no_locks: str, caplog: pytest.LogCaptureFixture) -> None:
    assert why_no_workers() == no_locks
    assert caplog.records == []


def test_without_it_the_work_is_done_in_this_process(no_locks: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with Workers("loky", 2) as workers:
            found = list(workers.results(range(3), lambda number: partial(os.getpid)))
        assert found == [os.getpid()] * 3
    assert [record.message for record in caplog.records] == [
        f"/dev/shm cannot be used ({no_locks}), so that no worker processes can start: all is done in this process, "
        "which is slower. Make it writable (docker run --shm-size=1g)"
    ]


@pytest.mark.parametrize(("free", "ample"), [(64 * 2**20, False), (2**30, True)])
def test_how_much_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, ample: bool) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert is_ample() == ample


def test_where_there_is_no_such_folder_it_is_managed_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "absent")
    assert is_ample()


def test_next_to_nothing_is_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**16))
    assert why_no_workers() == "No space left on device"
    assert not workers_can_start()


def test_a_limit_on_files_holds_for_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (100 * 1024, -1))
    assert not is_ample()
