"""Room on disks: at the nearest folder that exists, with a trial of writing that leaves nothing."""

import tempfile
from pathlib import Path

import pytest

from cam_pipeline.machine.disk import room_at


@pytest.mark.parametrize("inside", ["", "a", "a/b/c"])
def test_nearest_folder_that_exists(tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / inside, Path(inside)):
        room = room_at(path)
        assert (room.folder, room.refusal) == (tmp_path, "") and 0 < room.free <= room.total
    assert list(tmp_path.iterdir()) == []


def test_why_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert room_at(tmp_path / "a").refusal == "Permission denied"


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    assert room_at(tmp_path / "outputs" / "my").refusal == "Not a directory"


@pytest.mark.parametrize("inside", ["", "my"])
def test_a_link_that_leads_nowhere(tmp_path: Path, inside: str) -> None:
    (tmp_path / "outputs").symlink_to(tmp_path / "not mounted" / "outputs")
    room = room_at(tmp_path / "outputs" / inside)
    assert room.refusal == "a link leads nowhere" and 0 < room.free <= room.total
