"""Cores: how many there are, and how many this process may use. A container may have fewer than it sees."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from cam_pipeline.machine.cgroup import ROOT, cpu_quota


@dataclass(frozen=True)
class Cores:
    """What limits the cores of this process; None: nothing does, or it is not known."""

    seen: int
    """Cores of the machine."""
    affinity: int | None
    """Those that this process may run on (`taskset`, SLURM, a container's `--cpuset-cpus`)."""
    quota: float | None
    """Those whose whole time it may use (a container's `--cpus`)."""

    @property
    def usable(self) -> int:
        """Whole cores, at least one; a part of a core counts as one."""
        limits = [self.seen, self.affinity, None if self.quota is None else math.ceil(self.quota)]
        return max(min(limit for limit in limits if limit is not None), 1)


def cores(root: Path = ROOT) -> Cores:
    """The cores of this process; `root` holds proc/ and sys/."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # macOS has none
    return Cores(os.cpu_count() or 1, affinity, cpu_quota(root))


def usable_cores() -> int:
    """How many cores this process may use."""
    return cores().usable
