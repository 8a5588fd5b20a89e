"""A disk that fills up while a command works: one line, what is finished stays, and the same command goes on."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIMIT = 3000
"""Bytes that a file may have once the disk is `full`: less than any result, more than what a command says."""

MOMENTS = {
    "checkpoint": (
        ("train-cls",), {"function": "cam_pipeline.training.trainer.save_checkpoint", "call": 3},
        "run/partial/train_cls-{}/checkpoint.pt", "2 of 6 steps done",
    ),
    "classifier": (
        ("train-cls",), {"function": "cam_pipeline.stages.train_cls.save_model"},
        "run/partial/train_cls-{}/classifier.safetensors", "6 of 6 steps done",
    ),
    "part": (
        ("make-cams",), {"function": "cam_pipeline.store.parts.write_artefact", "call": 2},
        "run/partial/extract_cams-{}/part-00001.h5", "15 of 24 images done",
    ),
    "join": (
        ("make-cams",), {"function": "cam_pipeline.store.parts.write_artefact", "holds": "cams.h5"},
        "run/partial/extract_cams-{}/cams.h5", "24 of 24 images done",
    ),
    "segmenter": (
        ("train-seg",), {"function": "cam_pipeline.training.trainer.save_checkpoint", "call": 2},
        "run/partial/train_seg-{}/checkpoint.pt", "1 of 6 steps done",
    ),
}  # fmt: skip
FILES = {
    "train-cls": ["classifier.safetensors"],
    "make-cams": ["cams.h5", "scores.h5", "pseudo_labels.h5"],
    "train-seg": ["segmenter.safetensors"],
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_command_goes_on_when_there_is_room_again(
    commands: Any, finished: Path, undisturbed: Path, differences: Callable[[Path, Path], list[str]], moment: str
) -> None:
    """The process is stopped just before it writes, and goes on with a limit on the size of its files.

    The kernel's answer to that is EFBIG; a full disk gives ENOSPC at the same place.
    """
    (command,), where, file, done = MOMENTS[moment]
    for name in FILES[command]:
        (finished / "run" / name).unlink()
        (finished / "run" / f"{name}.manifest.json").unlink()
    pid = commands.start(command, "-c", "tiny.toml", folder=finished, signal_at=where | {"send": "SIGSTOP"})
    assert commands.wait(pid).code is None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    os.kill(pid, signal.SIGCONT)
    ended = commands.wait(pid)
    assert ended.code == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    before, after = file.split("{}")
    assert last.startswith(f"Error: {before}")
    assert f"{after} cannot be written (File too large); raise the largest file size allowed" in last
    assert last.endswith("then start the same command again: finished work is kept")
    assert not list((finished / "run").rglob(".*.tmp"))
    again = commands.run(command, "-c", "tiny.toml", folder=finished)
    assert again.code == 0, again.stderr
    assert f"starts ({done})" in again.stderr
    assert differences(finished / "run", undisturbed / "run") == []


# With a file system of its own, in a name space where that needs no privilege

PROGRAM = str(Path(sys.executable).with_name("cam-pipeline"))
OWN_FILE_SYSTEMS = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


@pytest.fixture
def own_file_systems() -> list[str]:
    """The beginning of a command whose last argument is a shell script that may mount."""
    trial = "mount -t tmpfs -o size=64k tmpfs /mnt"
    allowed = shutil.which("unshare") and not subprocess.run([*OWN_FILE_SYSTEMS, trial], capture_output=True).returncode
    if not allowed:
        pytest.skip("mounting a small file system is not allowed here")
    return OWN_FILE_SYSTEMS


@pytest.mark.slow
def test_small_file_system(
    own_file_systems: list[str],
    workspace: Path,
    undisturbed: Path,
    differences: Callable[[Path, Path], list[str]],
) -> None:
    """It grows from 4 kB on, and the same command is started again and again."""
    sizes = ["4k", "40k", "400k", "800k", "1200k", "2m", "50m"]
    script = "mkdir run; mount -t tmpfs -o size=4k tmpfs run\n" + "".join(
        f"mount -o remount,size={size} run; {PROGRAM} run -c tiny.toml --quiet 2> said-{size} >/dev/null"
        f" && echo 0 > code-{size} || echo $? > code-{size}\n"
        for size in sizes
    )
    done = subprocess.run(
        [*own_file_systems, f"{script} cp -r run kept"], cwd=workspace, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    codes = [int((workspace / f"code-{size}").read_text()) for size in sizes]
    said = [(workspace / f"said-{size}").read_text() for size in sizes]
    assert codes[-1] == 0
    assert codes.count(2) >= 3 and set(codes) == {0, 2}, list(zip(codes, said, strict=True))
    for code, line in zip(codes, said, strict=True):
        errors = [
            one for one in line.splitlines() if not one.startswith(("make_labels: ", "train_seg: ", "train_cls: "))
        ]
        assert len(errors) == (code == 2), line  # the others are warnings of a tiny run
        assert code == 0 or "cannot be written (No space left on device); free some space, then" in line
    assert differences(workspace / "kept", undisturbed / "run") == []


@pytest.mark.slow
def test_run_folder_that_may_only_be_read(own_file_systems: list[str], finished: Path) -> None:
    before = {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()}
    script = f"""mount --bind run run; mount -o remount,bind,ro run
    for command in train-cls make-cams "train-seg --force"; do {PROGRAM} $command -c tiny.toml || echo $?; done"""
    done = subprocess.run([*own_file_systems, script], cwd=finished, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["2", "2", "2"], done.stderr
    line = (
        "Error: run/lock cannot be written (Read-only file system); get the permission, or set output.dir to another "
        "folder, then start the same command again: finished work is kept"
    )
    assert done.stderr.splitlines() == [line] * 3
    assert {path: path.read_bytes() for path in before} == before
