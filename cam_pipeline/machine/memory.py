"""Main memory: what the machine has, what its container may use of it, and what is free."""

import os
from dataclasses import dataclass
from pathlib import Path

from cam_pipeline.machine.cgroup import ROOT, memory_left, memory_limit


@dataclass(frozen=True)
class Memory:
    """Bytes; None: not known, and of `limit`: none."""

    machine: int | None
    limit: int | None
    """What a container may use, if that is less than the machine has."""
    free: int | None
    """What can be had now, within the limit."""


def memory(root: Path = ROOT) -> Memory:
    """The memory of this process; `root` holds proc/ and sys/."""
    known = _meminfo(root / "proc/meminfo")
    machine = known.get("MemTotal") or _physical()
    limit = memory_limit(root)
    if limit is not None and machine is not None and limit >= machine:
        limit = None
    free = [amount for amount in (known.get("MemAvailable"), memory_left(root)) if amount is not None]
    return Memory(machine, limit, min(free, default=None))


def _meminfo(path: Path) -> dict[str, int]:
    """Linux's table of memory, in bytes; empty if it cannot be read."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdigit()}


def _physical() -> int | None:
    """The machine's memory by POSIX, as on macOS."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
