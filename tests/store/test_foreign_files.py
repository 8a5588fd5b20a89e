"""HDF5 files from elsewhere: nothing outside the file is read, and no memory is taken for what it does not hold."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cam_pipeline.errors import DamagedFile
from cam_pipeline.store.cams import CamStore, StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import LabelStore, label_record
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreStore, StoredScores, score_record

SIZE = (6, 8)
CAM = StoredCam("a", torch.rand(2, 2, 3), (1, 2), SIZE)
SCORES = StoredScores("a", np.full((3, *SIZE), 1 / 3, np.float32), (1, 2), {"unrefined": np.zeros(SIZE, np.uint8)})


@pytest.fixture
def cams(tmp_path: Path) -> Path:
    return written(tmp_path / "cams.h5", "cams", cam_record(CAM), ("cat", "dog"))


def written(path: Path, kind: str, record: object, classes: tuple[str, ...]) -> Path:
    writer = PartWriter(path, kind, artefact_attributes(classes, "f", ""), [["a"]])
    writer.write(0, [record])  # type: ignore[list-item]
    writer.join(["a"])
    return path


def replaced(path: Path, place: str, make: Callable[[h5py.File], None]) -> None:
    """Replace a member of the file by what `make` puts there; the attributes of a dataset stay."""
    with h5py.File(path, "r+") as file:
        attributes = dict(file[place].attrs)
        del file[place]
        make(file)
        if isinstance(file.get(place, getlink=True), h5py.HardLink):
            file[place].attrs.update(attributes)


def read(path: Path) -> None:
    with CamStore.open(path) as store:
        store.read("a")


def other_file(folder: Path) -> Path:
    path = folder / "secret.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.ones((2, 2, 3), np.float16)
        file["names"] = np.array([b"a"])
    return path


def test_a_whole_file_is_read(cams: Path) -> None:
    read(cams)


@pytest.mark.parametrize("place", ["cams/a", "cams", "names"])
@pytest.mark.parametrize("soft", [True, False])
def test_links_are_not_followed(cams: Path, tmp_path: Path, place: str, soft: bool) -> None:
    other = other_file(tmp_path)
    link = h5py.SoftLink("/extra") if soft else h5py.ExternalLink(str(other), "/names" if place == "names" else "/")

    def make(file: h5py.File) -> None:
        file.create_group("extra")
        file[place] = link

    replaced(cams, place, make)
    with pytest.raises(DamagedFile, match="is a link or missing"):
        read(cams)


def test_content_in_other_files_is_not_read(cams: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\x00\x3c" * 12)

    def make(file: h5py.File) -> None:
        file.create_dataset("cams/a", (2, 2, 3), np.float16, external=[(str(secret), 0, 24)])

    replaced(cams, "cams/a", make)
    with pytest.raises(DamagedFile, match="in other files"):
        read(cams)


def test_virtual_datasets_are_not_read(cams: Path, tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((2, 2, 3), np.float16)
    layout[:] = h5py.VirtualSource(str(other_file(tmp_path)), "secret", (2, 2, 3))
    replaced(cams, "cams/a", lambda file: file.create_virtual_dataset("cams/a", layout))
    with pytest.raises(DamagedFile, match="in other files"):
        read(cams)


@pytest.mark.parametrize("shape", [(2, 10**6, 10**6), (2, 10**4, 10**4)])
def test_no_memory_is_taken_for_numbers_that_are_not_stored(cams: Path, shape: tuple[int, ...]) -> None:
    replaced(cams, "cams/a", lambda file: file.create_dataset("cams/a", shape, np.float16, chunks=(1, 64, 64)))
    with pytest.raises(DamagedFile, match="too little is stored"):
        read(cams)


def test_text_of_variable_length_is_not_read(cams: Path) -> None:
    replaced(cams, "cams/a", lambda file: file.create_dataset("cams/a", data=["x"], dtype=h5py.string_dtype()))
    with pytest.raises(DamagedFile, match="of another kind"):
        read(cams)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        (np.full((2, 2, 3), np.nan, np.float16), "not finite"),
        (np.full((2, 2, 3), np.inf, np.float16), "not finite"),
        (np.ones((3, 2, 3), np.float16), "shape"),
        (np.ones((2, 3), np.float16), "shape"),
        (np.ones((2, 0, 3), np.float16), "shape"),
    ],
)
def test_maps_that_cannot_be_are_refused_in_one_line(cams: Path, maps: np.ndarray, words: str) -> None:
    replaced(cams, "cams/a", lambda file: file.create_dataset("cams/a", data=maps))
    with pytest.raises(DamagedFile, match=words):
        read(cams)


def test_maps_of_no_class_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "cams.h5", "cams", cam_record(StoredCam("a", torch.zeros(0, 2, 3), (), SIZE)), ("cat",))
    read(path)


@pytest.mark.parametrize("place", ["scores/a", "unrefined/a"])
@pytest.mark.parametrize("shape", [(2, 6, 8), (6, 8, 3), (0, 8), (6,)])
def test_scores_of_another_shape_are_refused(tmp_path: Path, place: str, shape: tuple[int, ...]) -> None:
    path = written(tmp_path / "scores.h5", "scores", score_record(SCORES), ("cat", "dog"))
    replaced(path, place, lambda file: file.create_dataset(place, data=np.zeros(shape, np.uint8)))
    with pytest.raises(DamagedFile, match="shape"), ScoreStore.open(path) as store:
        store.read("a")


@pytest.mark.parametrize(
    "labels", [np.full(SIZE, 3, np.uint8), np.full(SIZE, 1, np.int32), np.full((1, *SIZE), 1, np.uint8)]
)
def test_labels_of_no_class_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    good = np.full(SIZE, 2, np.uint8)
    path = written(tmp_path / "l.h5", "pseudo-labels", label_record("a", good, good), ("background", "cat", "dog"))
    with LabelStore.open(path) as store:
        assert (store.read("a") == 2).all()
    replaced(path, "labels/a", lambda file: file.create_dataset("labels/a", data=labels))
    with pytest.raises(DamagedFile), LabelStore.open(path) as store:
        store.read("a")


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("peaks", np.array([np.nan, 1], np.float32), "not finite"),
        ("peaks", np.array([np.inf, 1], np.float32), "not finite"),
        ("peaks", np.array([-1, 1], np.float32), "below 0"),
        ("peaks", np.array([1], np.float32), "shape"),
        ("class_ids", np.array([1, 99]), "names classes that there are not"),
        ("class_ids", np.array([-1, 1]), "names classes that there are not"),
        ("class_ids", np.array([1.0, 1.7]), "names classes that there are not"),
        ("class_ids", np.array([1, 1]), "or one twice"),
        ("size", np.array([0, 8]), "states the image size"),
        ("size", np.array([10**9, 10**9]), "states the image size"),
        ("size", np.array([6]), "states the image size"),
    ],
)
def test_attributes_that_cannot_be_are_refused(cams: Path, attribute: str, value: np.ndarray, words: str) -> None:
    with h5py.File(cams, "r+") as file:
        file["cams/a"].attrs[attribute] = value
    with pytest.raises(DamagedFile, match=words):
        read(cams)


def test_a_dataset_of_many_chunks_is_not_read(cams: Path) -> None:
    """Few of them may be stored, and all would be made."""

    def make(file: h5py.File) -> None:
        file.create_dataset("cams/a", (2, 64, 64), np.float16, chunks=(1, 64, 64))[0] = 1

    replaced(cams, "cams/a", make)
    with pytest.raises(DamagedFile, match="too little is stored"):
        read(cams)


def test_channels_may_stand_in_any_order(cams: Path) -> None:
    with h5py.File(cams, "r+") as file:
        file["cams/a"].attrs["class_ids"] = np.array([2, 1], np.uint8)
    with CamStore.open(cams) as store:
        assert store.read("a").class_ids == (2, 1)


@pytest.mark.parametrize("ids", [[1, 3], [1, 1], [0, 1]])
def test_scores_of_classes_that_there_are_not_are_refused(tmp_path: Path, ids: list[int]) -> None:
    path = written(tmp_path / "scores.h5", "scores", score_record(SCORES), ("cat", "dog"))
    with h5py.File(path, "r+") as file:
        file["scores/a"].attrs["class_ids"] = np.array(ids, np.uint8)
    with ScoreStore.open(path) as store:
        for read_it in (store.read, store.class_ids):
            with pytest.raises(DamagedFile, match="names classes that there are not"):
                read_it("a")
