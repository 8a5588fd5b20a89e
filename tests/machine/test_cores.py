"""Cores that may be used: the fewest of those seen, allowed and paid for."""

import os
from pathlib import Path

import pytest

from cam_pipeline.config import RunSettings
from cam_pipeline.machine.cores import Cores, cores
from cam_pipeline.machine.parallel import worker_count


@pytest.mark.parametrize(
    ("found", "usable"),
    [
        (Cores(64, 64, None), 64), (Cores(64, 3, None), 3), (Cores(64, 64, 2.0), 2), (Cores(64, None, 1.5), 2),
        (Cores(64, 64, 0.1), 1), (Cores(2, 2, 8.0), 2), (Cores(1, None, None), 1),
    ],
)  # fmt: skip
def test_usable(found: Cores, usable: int) -> None:
    assert found.usable == usable


def test_all_limits_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert cores(tmp_path) == Cores(seen=64, affinity=16, quota=2.0)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores(tmp_path) == Cores(seen=1, affinity=None, quota=None)


def test_no_more_workers_than_a_container_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cam_pipeline.machine.cores.cores", lambda: Cores(64, 64, 2.0))
    assert worker_count(RunSettings()) == 2
    assert worker_count(RunSettings(workers=5)) == 5
