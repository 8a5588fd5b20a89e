"""A file under its final name is whole: the old one or the new one, never half of either."""

import errno
import os
from pathlib import Path

import pytest

from cam_pipeline.errors import CannotWrite
from cam_pipeline.machine.atomic import UNNAMED, PatientFile, explain, file_aside, write_text, written_aside


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    with written_aside(path) as aside:
        aside.write_bytes(b"123")
        assert not path.exists()
    assert path.read_bytes() == b"123"
    assert names_in(tmp_path) == ["numbers.bin"]


def test_old_content_stays_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    path.write_bytes(b"old")
    with written_aside(path) as aside:
        aside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_block_leaves_the_old_content_and_no_litter(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "numbers.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), written_aside(path) as aside:
        aside.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["numbers.bin"]


def test_block_that_writes_nothing_fails_and_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="nothing was written"), written_aside(path):
        pass
    assert path.read_bytes() == b"old"


def test_temporary_file_lies_beside_the_final_one(tmp_path: Path) -> None:
    """On the same file system, or the rename would not be one step."""
    with written_aside(tmp_path / "numbers.bin") as aside:
        aside.write_bytes(b"123")
        assert aside.parent == tmp_path


def test_temporary_file_is_new_and_never_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link put there before would be written through."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda count: "ab" * count)
    (tmp_path / f".notes.{'ab' * 6}.tmp").symlink_to(victim)
    with pytest.raises(CannotWrite, match="notes cannot be written"):
        write_text(tmp_path / "notes", "theirs")
    assert victim.read_text() == "mine"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with written_aside(path) as first, written_aside(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # each was whole; the outer block ended last


def test_write_text_makes_folders_and_writes_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "猫\n")
    assert path.read_bytes() == "猫\n".encode()
    assert names_in(path.parent) == ["note.txt"]


# What the system refuses


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "(No space left on device); free some space, then start the same command again"),
        (errno.EDQUOT, "(Disk quota exceeded); free some space, then start the same command again"),
        (errno.EFBIG, "(File too large); raise the largest file size allowed"),
        (errno.EACCES, "(Permission denied); get the permission, or set output.dir to another folder"),
        (errno.EROFS, "(Read-only file system); get the permission, or set output.dir to another folder"),
        (errno.EIO, "(Input/output error); set output.dir to another folder"),
    ],
)
@pytest.mark.parametrize("where", ["write", "rename"])
def test_refusal_is_one_line_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, where: str
) -> None:
    path = tmp_path / "note.txt"
    path.write_bytes(b"old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))  # a write names no file

    owner, name = (Path, "write_text") if where == "write" else (os, "replace")
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, refuse)
        with pytest.raises(CannotWrite) as caught:
            write_text(path, "new")
    assert str(caught.value).startswith(f"{path} cannot be written {words}")
    assert str(caught.value).endswith("finished work is kept")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["note.txt"]


def test_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CannotWrite, match=rf"{tmp_path}/run cannot be written \(File exists\); set output.dir"):
        write_text(tmp_path / "run" / "note.txt", "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CannotWrite, match=rf"{tmp_path}/note.txt cannot be written \(Permission denied\)"):
        write_text(tmp_path / "note.txt", "new")
    tmp_path.chmod(0o700)
    assert names_in(tmp_path) == []


def test_explanation_without_a_path_says_what_is_known() -> None:
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "x/y")) == "x/y: No such file"
    full = explain(OSError(errno.ENOSPC, "No space left on device"))
    assert full.startswith(f"No space left on device {UNNAMED}; free some space, then")


# Files that tell of their first error late


def test_patient_file_keeps_the_first_error_for_later(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = PatientFile(path)
    assert file.write(b"begin") == 5
    file.check()
    os.close(file._file.fileno())  # from now on the system refuses
    assert file.write(b"lost") == 4
    assert file.truncate(100) == 100
    for ask in (file.check, file.close):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            ask()
        assert caught.value.filename == str(path)
    assert path.read_bytes() == b"begin"


def test_patient_file_reads_zeros_where_nothing_was_written(tmp_path: Path) -> None:
    file = PatientFile(tmp_path / "x")
    file.write(memoryview(b"abc"))
    file.seek(1)
    target = bytearray(b"....")
    assert file.readinto(target) == 4
    assert target == b"bc\0\0"
    file.seek(0)
    assert (file.read(2), file.tell()) == (b"ab", 2)
    file.truncate(1)
    file.close()
    assert (tmp_path / "x").read_bytes() == b"a"


def test_error_of_the_disk_comes_before_what_a_library_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(CannotWrite, match="x cannot be written"), file_aside(path) as file:
        file._keep(OSError(errno.ENOSPC, "No space left on device"))
        raise RuntimeError("unexpected pos 64 vs 0")
    assert path.read_bytes() == b"old"
    with pytest.raises(RuntimeError, match="another mistake"), file_aside(path):
        raise RuntimeError("another mistake")
    assert names_in(tmp_path) == ["x"]
