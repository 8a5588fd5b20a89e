"""Limits of containers, in both versions of control groups, from folders that look like proc/ and sys/."""

from pathlib import Path

import pytest

from cam_pipeline.machine.cgroup import cpu_quota, memory_left, memory_limit

GB = 2**30
Files = dict[str, str]


def system(root: Path, groups: str, files: Files) -> Path:
    """A root folder with the groups of this process and files in sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{key}": files[key] for key in files}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_1(quota: int, period: int, folder: str = "") -> Files:
    return {f"cpu/{folder}cpu.cfs_quota_us": f"{quota}\n", f"cpu/{folder}cpu.cfs_period_us": f"{period}\n"}


IN_DOCKER = "12:memory:/docker/abc\n11:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"cpu.max": "400000 100000", "a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/not/seen/here\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2),
        (IN_DOCKER, version_1(300000, 100000), 3),
        (IN_DOCKER, version_1(-1, 100000), None),
        (IN_DOCKER, {**version_1(-1, 100000), **version_1(50000, 100000, "docker/abc/")}, 0.5),
        (IN_DOCKER, {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2),
        ("4:memory:/\n", version_1(300000, 100000), None),
        ("0::/\n", {"cpu.max": "many 0\n"}, None),
        ("0::/\n", {"cpu.max": "1 0\n"}, None),
        ("no colon\n\n", {"cpu.max": "200000 100000\n"}, None),
        ("", {}, None),
    ],
)
def test_quota_of_cores(tmp_path: Path, groups: str, files: Files, cores: float | None) -> None:
    assert cpu_quota(system(tmp_path, groups, files)) == cores


def memory(version: int, limit: object, used: int, cached: int, folder: str = "") -> Files:
    if version == 2:
        names = (f"{folder}memory.max", f"{folder}memory.current", f"{folder}memory.stat")
    else:
        names = (
            f"memory/{folder}memory.limit_in_bytes",
            f"memory/{folder}memory.usage_in_bytes",
            f"memory/{folder}memory.stat",
        )
    key = "inactive_file" if version == 2 else "total_inactive_file"
    return dict(zip(names, (f"{limit}\n", f"{used}\n", f"anon 7\n{key} {cached}\n"), strict=True))


@pytest.mark.parametrize(
    ("groups", "files", "limit", "left"),
    [
        ("0::/\n", memory(2, 4 * GB, 3 * GB, GB), 4 * GB, 2 * GB),
        ("0::/\n", memory(2, "max", 3 * GB, GB), None, None),
        ("0::/\n", memory(2, GB, 2 * GB, 0), GB, 0),
        ("0::/a\n", memory(2, 8 * GB, 0, 0) | memory(2, 2 * GB, GB, 0, "a/"), 2 * GB, GB),
        ("0::/a\n", memory(2, 8 * GB, 8 * GB, GB) | memory(2, 4 * GB, GB, 0, "a/"), 4 * GB, GB),
        (IN_DOCKER, memory(1, 4 * GB, GB, 0), 4 * GB, 3 * GB),
        (IN_DOCKER, memory(1, 9223372036854771712, GB, 0), None, None),
        (IN_DOCKER, {"memory/memory.limit_in_bytes": str(GB)}, GB, GB),
        ("", {}, None, None),
    ],
)
def test_memory(tmp_path: Path, groups: str, files: Files, limit: int | None, left: int | None) -> None:
    root = system(tmp_path, groups, files)
    assert (memory_limit(root), memory_left(root)) == (limit, left)


def test_without_proc_and_sys_nothing_is_known(tmp_path: Path) -> None:
    assert (cpu_quota(tmp_path), memory_limit(tmp_path), memory_left(tmp_path)) == (None, None, None)
