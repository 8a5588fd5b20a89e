"""A file under its final name is whole: the old one or the new one, never half of either."""

from pathlib import Path

import pytest

from cam_pipeline.atomic import write_text, written_aside


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
    with pytest.raises(FileNotFoundError), written_aside(path):
        pass
    assert path.read_bytes() == b"old"


def test_temporary_file_lies_beside_the_final_one(tmp_path: Path) -> None:
    """On the same file system, or the rename would not be one step."""
    with written_aside(tmp_path / "numbers.bin") as aside:
        aside.touch()
        assert aside.parent == tmp_path


def test_write_text_makes_folders_and_writes_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "猫\n")
    assert path.read_bytes() == "猫\n".encode()
    assert names_in(path.parent) == ["note.txt"]
