"""One process at a time: who holds a folder is named, and the lock ends with its holder."""

import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cam_pipeline.errors import CannotWrite, RunFolderBusy
from cam_pipeline.pipeline.lock import held

HOLD = """
import os, pathlib, signal, sys
from cam_pipeline.pipeline.lock import held
with held(pathlib.Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGSTOP)
"""
TRY = """
import pathlib, sys
from cam_pipeline.pipeline.lock import held
with held(pathlib.Path(sys.argv[1])):
    print("free")
"""


def test_another_process_waits_for_nothing_and_names_the_holder(commands: Any, tmp_path: Path) -> None:
    with held(tmp_path):
        ended = commands.run(str(tmp_path), code=TRY, folder=tmp_path)
    assert ended.code == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(
        f"cam_pipeline.errors.RunFolderBusy: run folder {tmp_path} is in use by process {os.getpid()} on"
    )
    assert commands.run(str(tmp_path), code=TRY, folder=tmp_path).stdout == "free\n"


def test_lock_ends_with_a_killed_holder(commands: Any, tmp_path: Path) -> None:
    holder = commands.start(str(tmp_path), code=HOLD, folder=tmp_path)
    assert commands.wait(holder).code is None, "it is stopped, and holds"
    with pytest.raises(RunFolderBusy, match=f"process {holder} on "), held(tmp_path):
        pass
    os.kill(holder, signal.SIGKILL)
    assert commands.wait(holder).code == -signal.SIGKILL
    with held(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()


def test_refusal_changes_nothing(commands: Any, tmp_path: Path) -> None:
    with held(tmp_path):
        before = (tmp_path / "lock").stat()
        assert commands.run(str(tmp_path), code=TRY, folder=tmp_path).code == 1
        after = (tmp_path / "lock").stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def test_lock_names_only_the_present_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1234567890123 on a machine with a long name, since the beginning of time")
    with held(tmp_path):
        text = (tmp_path / "lock").read_text()
    assert text.startswith(f"process {os.getpid()} on ")
    assert "beginning of time" not in text


def test_folder_is_made(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / "run" / "lock").is_file()


def test_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    message = r"run cannot be written .*; set output\.dir to another folder"
    with pytest.raises(CannotWrite, match=message), held(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "not a folder"


def test_file_system_without_locks_is_not_taken_for_a_busy_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(CannotWrite, match=r"lock cannot be locked .*on another file system"), held(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "(No space left on device); free some space, then start the same command again"),
        (errno.EACCES, "(Permission denied); get the permission, or set output.dir to another folder"),
        (errno.EROFS, "(Read-only file system); get the permission, or set output.dir to another folder"),
    ],
)
def test_folder_that_can_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CannotWrite) as caught, held(tmp_path):
        pass
    assert f"{tmp_path}/lock cannot be written {words}" in str(caught.value)


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(victim)
    with pytest.raises(CannotWrite, match="is a symbolic link"), held(tmp_path / "run"):
        pass
    assert victim.read_text() == "mine"
