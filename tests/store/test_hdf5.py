"""Part files: what is finished stays, what is broken goes, and the join is the same whichever way it came about."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cam_pipeline.errors import DamagedFile, UserError
from cam_pipeline.store.hdf5 import (
    Record,
    artefact_attributes,
    classes_in,
    key_of,
    names_in,
    open_file,
    read_record,
    text_attribute,
)
from cam_pipeline.store.parts import PartWriter

NAMES = ("a", "b", "c", "d", "e")
CHUNKS = (("e", "a"), ("b",), ("d", "c"))  # not in the order of the names
ATTRIBUTES = {"classes": json.dumps(["cat", "dog"]), "ignore_index": 255}


def record(name: str, size: tuple[int, int] = (3, 4)) -> Record:
    """Random but the same in every call; two kinds of arrays and an attribute."""
    rng = np.random.default_rng(list(name.encode()))
    arrays = {"cams": rng.random((2, *size)).astype(np.float16), "extra": rng.integers(0, 9, size)}
    return Record(name, arrays, {"class_ids": np.array([1, 2], dtype=np.uint8)})


def writer_in(folder: Path, chunks: Sequence[Sequence[str]] = CHUNKS) -> PartWriter:
    return PartWriter(folder / "cams.h5", "cams", ATTRIBUTES, chunks)


def write(writer: PartWriter, number: int) -> None:
    writer.write(number, [record(name) for name in writer.chunks[number]])


def finish(folder: Path, names: Sequence[str] = NAMES, chunks: Sequence[Sequence[str]] = CHUNKS) -> Path:
    """Go on where an earlier writer stopped, and join."""
    writer = writer_in(folder, chunks)
    for number in writer.pending():
        write(writer, number)
    writer.join(names)
    return writer.output


def progress(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "progress.json").read_text()))


def content(path: Path) -> dict[str, Any]:
    """Every dataset and attribute, as plain values, in the order in which the file lists them."""
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:

        def note(name: str, item: Any) -> None:
            found.update({f"{name}@{key}": np.asarray(value).tolist() for key, value in item.attrs.items()})
            if isinstance(item, h5py.Dataset):
                found[name] = (str(item.dtype), item.shape, item[()].tolist())

        note("/", file)
        file.visititems(note)
    return found


# Writing


def test_parts_make_one_artefact_in_the_order_given(tmp_path: Path) -> None:
    path = finish(tmp_path)
    with open_file(path, "cams") as file:
        assert names_in(file) == list(NAMES)
        for name in NAMES:
            stored, expected = read_record(file, ["cams", "extra"], name), record(name)
            assert all(np.array_equal(stored.arrays[kind], expected.arrays[kind]) for kind in expected.arrays)
            assert stored.attributes["class_ids"].tolist() == [1, 2]
        assert text_attribute(file, "format") == "cam-pipeline/cams"
        assert file.attrs["ignore_index"] == 255


def test_progress_counts_images_in_finished_parts(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    assert progress(tmp_path) == {"done": 0, "total": 5, "unit": "images"}
    write(writer, 2)
    assert progress(tmp_path) == {"done": 2, "total": 5, "unit": "images"}
    assert writer.pending() == [0, 1]


def test_of_several_processes_the_first_alone_notes_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = writer_in(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    write(writer_in(tmp_path), 2)
    assert progress(tmp_path)["done"] == 0
    monkeypatch.setenv("RANK", "0")
    write(first, 1)
    assert progress(tmp_path)["done"] == 3


def test_nothing_but_whole_parts_is_left_in_the_folder(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    write(writer, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-00001.h5", "progress.json"]


@pytest.mark.parametrize("names", [["b", "c"], [], ["b", "b2"]])
def test_part_must_hold_the_images_of_its_chunk(tmp_path: Path, names: list[str]) -> None:
    writer = writer_in(tmp_path)
    with pytest.raises(ValueError, match="part 1"):
        writer.write(1, [record(name) for name in names])
    assert writer.pending() == [0, 1, 2]


# Going on


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_finished_parts_are_kept_and_the_result_is_the_same(tmp_path: Path, order: tuple[int, ...]) -> None:
    first, second = tmp_path / "at once", tmp_path / "in three goes"
    finish(first)
    for done, number in enumerate(order):
        writer = writer_in(second)
        assert len(writer.finished) == done
        write(writer, number)
    times = {path: path.stat().st_mtime_ns for path in second.glob("part-*")}
    finish(second)
    assert {path: path.stat().st_mtime_ns for path in second.glob("part-*")} == times
    assert list(content(second / "cams.h5").items()) == list(content(first / "cams.h5").items())


def test_result_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    parts = finish(tmp_path / "parts")
    whole = finish(tmp_path / "whole", chunks=[NAMES])
    assert content(parts) == content(whole)


@pytest.mark.parametrize("kept", [0, 1, 100, -1000, -1])
def test_truncated_part_is_dropped_with_a_warning_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int
) -> None:
    writer = writer_in(tmp_path)
    for number in range(3):
        write(writer, number)
    part = writer.path(1)
    part.write_bytes(part.read_bytes()[:kept])
    writer = writer_in(tmp_path)
    assert writer.pending() == [1]
    assert progress(tmp_path)["done"] == 4
    assert [message for message in caplog.messages if str(part) in message and "dropped" in message]
    assert content(finish(tmp_path)) == content(finish(tmp_path / "clean"))


def test_part_of_other_images_is_made_again(tmp_path: Path) -> None:
    other = writer_in(tmp_path, [("x", "y"), ("b",), ("d", "c")])
    for number in range(3):
        write(other, number)
    assert writer_in(tmp_path).pending() == [0]


def test_part_of_another_kind_is_made_again(tmp_path: Path) -> None:
    scores = PartWriter(tmp_path / "scores.h5", "scores", {}, CHUNKS)
    write(scores, 0)
    assert writer_in(tmp_path).pending() == [0, 1, 2]


def test_half_written_part_does_not_count(tmp_path: Path) -> None:
    """A process killed in the middle of a write leaves only the file aside."""
    writer = writer_in(tmp_path)
    write(writer, 0)
    os.rename(writer.path(0), tmp_path / ".part-00000.h5.4711.tmp")
    assert writer_in(tmp_path).pending() == [0, 1, 2]


def test_failed_join_leaves_no_artefact(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    write(writer, 0)
    with pytest.raises(FileNotFoundError):
        writer.join(NAMES)
    assert not writer.output.exists()
    assert not list(tmp_path.glob(".*"))


# Ids and shapes


def test_awkward_ids_are_kept_apart(tmp_path: Path) -> None:
    names = ["a/b", "a%2Fb", "a%b", "a", "..", "2007/x y", "猫/犬", "a.b", "%", "A"]
    path = finish(tmp_path, names, [names[:4], names[4:]])
    with open_file(path, "cams") as file:
        assert names_in(file) == names
        for name in names:
            assert np.array_equal(read_record(file, ["cams"], name).arrays["cams"], record(name).arrays["cams"])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), unique=True))
def test_every_id_has_a_key_of_its_own_without_a_slash(names: list[str]) -> None:
    keys = {key_of(name) for name in names}
    assert len(keys) == len(names)
    assert not any("/" in key for key in keys)


def test_arrays_without_elements_keep_their_shape(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path / "cams.h5", "cams", {}, [["empty"]])
    writer.write(0, [Record("empty", {"cams": np.zeros((0, 3, 4), np.float16)}, {"class_ids": np.zeros(0, np.uint8)})])
    writer.join(["empty"])
    with open_file(writer.output, "cams") as file:
        stored = read_record(file, ["cams"], "empty")
    assert (stored.arrays["cams"].shape, stored.arrays["cams"].dtype) == ((0, 3, 4), np.float16)
    assert stored.attributes["class_ids"].shape == (0,)


def test_datasets_are_compressed_and_checked_one_chunk_an_image(tmp_path: Path) -> None:
    with h5py.File(finish(tmp_path), "r") as file:
        dataset = file["cams/a"]
        assert (dataset.chunks, dataset.compression) == ((2, 3, 4), "gzip")
        assert dataset.shuffle and dataset.fletcher32


# Reading what is no good


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*absent\.h5"), open_file(tmp_path / "absent.h5", "cams"):
        pass


def test_unknown_image(tmp_path: Path) -> None:
    with open_file(finish(tmp_path), "cams") as file, pytest.raises(UserError, match=r"cams\.h5 holds no image z"):
        read_record(file, ["cams"], "z")


def test_other_kind_is_named(tmp_path: Path) -> None:
    path = finish(tmp_path)
    message = r"not a scores file of version 2 \(found: cam-pipeline/cams, version 2\); make it again with --force"
    with pytest.raises(DamagedFile, match=message), open_file(path, "scores"):
        pass


def test_other_version_is_named(tmp_path: Path) -> None:
    path = finish(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 1
    message = r"not a cams file of version 2 \(found: HDF5 file, version 1\); make it again with --force"
    with pytest.raises(DamagedFile, match=message), open_file(path, "cams"):
        pass


def test_hdf5_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(DamagedFile, match="not a cams file"), open_file(path, "cams"):
        pass


def test_no_text_is_of_variable_length(tmp_path: Path) -> None:
    """HDF5 keeps such text in a heap without a checksum, and can loop for ever over a damaged one."""
    path = tmp_path / "cams.h5"
    attributes = artefact_attributes(["猫", "dog"], "1234", "", note="x" * 70_000)
    finished = PartWriter(path, "cams", attributes, CHUNKS)
    for number in finished.pending():
        write(finished, number)
    finished.join(NAMES)
    assert b"GCOL" not in path.read_bytes()
    with open_file(path, "cams") as file:
        assert classes_in(file) == ("猫", "dog")
        assert [text_attribute(file, key) for key in ("fingerprint", "config", "note")] == ["1234", "", "x" * 70_000]


def test_text_of_variable_length_is_not_even_read(tmp_path: Path) -> None:
    path = finish(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["classes"] = json.dumps(["cat"])
    with open_file(path, "cams") as file, pytest.raises(DamagedFile, match=r"cams\.h5 is damaged"):
        classes_in(file)


def test_names_have_a_checksum(tmp_path: Path) -> None:
    path = finish(tmp_path)
    with h5py.File(path, "r") as file:
        where = file["names"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    assert content[where : where + 5] == b"abcde"
    content[where] = ord("z")
    path.write_bytes(content)
    with open_file(path, "cams") as file, pytest.raises(DamagedFile, match=r"cams\.h5 is damaged"):
        names_in(file)


def test_attributes_name_classes_fingerprint_and_config() -> None:
    attributes = artefact_attributes(["cat", "dög"], "1234", "[run]\n", stride=16)
    assert json.loads(attributes["classes"]) == ["cat", "dög"]
    assert (attributes["fingerprint"], attributes["config"], attributes["stride"]) == ("1234", "[run]\n", 16)
