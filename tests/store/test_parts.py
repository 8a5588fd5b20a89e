"""The loop over parts that stages share; what a part file is, is tested in test_hdf5.py."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from cam_pipeline.errors import Interrupted
from cam_pipeline.store import parts
from cam_pipeline.store.hdf5 import Record
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

CHUNKS = (("a", "b"), ("c",), ("d", "e"))


def writer_in(folder: Path) -> PartWriter:
    return PartWriter(folder / "cams.h5", "cams", {"classes": "[]"}, CHUNKS)


class Maker:
    """Gives records, and notes which it was asked for and whether it was closed."""

    def __init__(self, writer: PartWriter) -> None:
        self.writer = writer
        self.made: list[str] = []
        self.closed = 0

    def __call__(self, number: int) -> Generator[Record, None, None]:
        try:
            for name in self.writer.chunks[number]:
                self.made.append(name)
                yield Record(name, {"cams": np.zeros((1, 2, 3), np.float16)})
        finally:
            self.closed += 1


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(5, 2, [[0, 1], [2, 3], [4]]), (4, 4, [[0, 1, 2, 3]]), (0, 3, [])]
)
def test_in_chunks(count: int, size: int, expected: list[list[int]]) -> None:
    assert in_chunks(list(range(count)), size) == expected


def test_parts_that_are_finished_are_not_made_again(tmp_path: Path) -> None:
    first = Maker(writer_in(tmp_path))
    write_parts("t", first.writer, first, [1])
    assert (first.made, first.writer.done) == (["c"], 1)
    second = Maker(writer_in(tmp_path))
    write_parts("t", second.writer, second)
    assert second.made == ["a", "b", "d", "e"]
    assert second.writer.pending() == []


def test_a_stop_is_honoured_between_two_images_and_what_makes_them_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker(writer_in(tmp_path))

    def stop_at_d() -> None:
        if maker.made[-1] == "d":
            raise Interrupted("stopped")

    monkeypatch.setattr(parts, "raise_if_stopped", stop_at_d)
    with pytest.raises(Interrupted):
        write_parts("t", maker.writer, maker)
    assert maker.made == ["a", "b", "c", "d"]
    assert maker.closed == 3, "also the part that was broken off"
    assert maker.writer.pending() == [2]
