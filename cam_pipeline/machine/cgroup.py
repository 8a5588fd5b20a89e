"""Limits of the control group (Linux: of a container, a batch job or a service) that this process is in.

Version 1 has a hierarchy for each resource, version 2 one for all. A limit of a group holds for the groups inside it,
so the smallest on the way up counts. In a container the group's own folder often shows as the top one.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
MOUNTED = "sys/fs/cgroup"
UNLIMITED = 2**60
"""Version 1 writes the greatest number of whole pages, nearly 2**63, for "no limit"."""


def cpu_quota(root: Path = ROOT) -> float | None:
    """Number of cores whose whole time this process may use; None if that is not limited, or not known.

    `root`: the folder that holds proc/ and sys/.
    """
    found = []
    for folder in _groups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        found.append(_ratio(quota, period))
    for folder in _groups(root, "cpu"):
        found.append(_ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")))
    return min((one for one in found if one), default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that this process and those beside it may use; None if they are not limited, or not known."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes of the limits that nobody uses. Cached files count as free: they go first."""
    return min((max(limit - used, 0) for limit, used in _memory(root)), default=None)


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes, of each group that has a limit."""
    for folder in _groups(root, ""):
        yield from _limited(folder, "memory.max", "memory.current", "inactive_file")
    for folder in _groups(root, "memory"):
        yield from _limited(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _limited(folder: Path, limit: str, used: str, cached: str) -> Iterator[tuple[int, int]]:
    most = _number(folder / limit)
    if most is not None and most < UNLIMITED:
        statistics = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if " " in line)
        files = statistics.get(cached, "0")
        yield most, (_number(folder / used) or 0) - (int(files) if files.isdigit() else 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the group of this process and of those around it; `controller` "": version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(",") or (not controller and number != "0"):
            continue
        mounts = [controllers, controller] if controller else ["", "unified"]
        inside = Path(path.strip("/"))
        if ".." in inside.parts:  # it lies outside what can be seen
            inside = Path()
        for top in dict.fromkeys(root / MOUNTED / mount for mount in mounts):
            yield from dict.fromkeys(top / one for one in (inside, *inside.parents))


def _ratio(quota: str, period: str) -> float | None:
    """Cores of "200000" microseconds in each "100000"; None for "max", "-1" and what is no number."""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """What a file says; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
