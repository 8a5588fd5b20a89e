"""Memory, from folders that look like proc/ and sys/."""

import os
from pathlib import Path

import pytest

from cam_pipeline.machine.memory import Memory, memory

GB = 2**30
MEMINFO = (
    "MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   16777216 kB\nHugePages_Total:       0\n"
)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, Memory(32 * GB, None, 16 * GB)),
        ({"memory.max": 4 * GB, "memory.current": GB}, Memory(32 * GB, 4 * GB, 3 * GB)),
        ({"memory.max": 24 * GB, "memory.current": GB}, Memory(32 * GB, 24 * GB, 16 * GB)),
        ({"memory.max": 64 * GB, "memory.current": GB}, Memory(32 * GB, None, 16 * GB)),
        ({"memory.max": "max", "memory.current": GB}, Memory(32 * GB, None, 16 * GB)),
    ],
)
def test_the_container_counts_if_it_has_less(tmp_path: Path, files: dict[str, object], found: Memory) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    for name, value in files.items():
        (tmp_path / "sys/fs/cgroup" / name).write_text(f"{value}\n")
    assert memory(tmp_path) == found


def test_without_proc_posix_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory(tmp_path) == Memory(4_096_000, None, None)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", refuse)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_bytes(b"\xff\xfe nothing\nMemTotal: many kB")
    assert memory(tmp_path) == Memory(None, None, None)
