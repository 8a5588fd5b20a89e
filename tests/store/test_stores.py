"""cams.h5, scores.h5 and pseudo_labels.h5: what goes in comes out, and a damaged file is never trusted."""

import multiprocessing
import pickle
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cam_pipeline.errors import DamagedFile, UserError
from cam_pipeline.store.cams import CamStore, StoredCam, cam_record
from cam_pipeline.store.hdf5 import Record, RecordStore, artefact_attributes
from cam_pipeline.store.labels import LabelReader, LabelStore, label_record
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreReader, ScoreStore, StoredScores, score_record

CLASSES = ("cat", "dog", "猫")
CLASS_IDS = (1, 3)
HEIGHT, WIDTH = 5, 7


def store_file(path: Path, kind: str, records: list[Record], classes: tuple[str, ...] = CLASSES) -> Path:
    writer = PartWriter(path, kind, artefact_attributes(classes, "print", ""), [[record.name for record in records]])
    writer.write(0, records)
    writer.join([record.name for record in records])
    return path


def cam_of(seed: int, peak: float = 10.0, shape: tuple[int, int, int] = (2, 3, 4)) -> torch.Tensor:
    return peak * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).choice(np.array([0, 1, 3, 255], np.uint8), (HEIGHT, WIDTH))


@pytest.fixture
def cams(tmp_path: Path) -> Path:
    stored = [StoredCam(name, cam_of(i), CLASS_IDS, (HEIGHT, WIDTH)) for i, name in enumerate(["x/1", "x/2"])]
    empty = StoredCam("nothing", torch.zeros(0, 3, 4), (), (HEIGHT, WIDTH))
    return store_file(tmp_path / "cams.h5", "cams", [cam_record(one) for one in [*stored, empty]])


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    records = [
        score_record(StoredScores(name, rng.random((3, HEIGHT, WIDTH), np.float32), CLASS_IDS))
        for name in ("x/1", "x/2")
    ]
    empty = score_record(StoredScores("nothing", np.ones((1, HEIGHT, WIDTH), np.float32), ()))
    return store_file(tmp_path / "scores.h5", "scores", [*records, empty])


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    names = ["x/2", "x/1"]  # not sorted: the order is that of the data set
    records = [label_record(name, labels_of(i), np.full((HEIGHT, WIDTH), i, np.uint8)) for i, name in enumerate(names)]
    return store_file(tmp_path / "pseudo_labels.h5", "pseudo-labels", records, ("background", *CLASSES))


# CAMs


def test_cam_comes_back_with_ids_and_size(cams: Path) -> None:
    with CamStore.open(cams) as store:
        assert store.classes == CLASSES
        stored = store.read("x/2")
    assert (stored.name, stored.class_ids, stored.size) == ("x/2", CLASS_IDS, (HEIGHT, WIDTH))
    assert (stored.cam.shape, stored.cam.dtype) == ((2, 3, 4), torch.float32)
    assert torch.allclose(stored.cam, cam_of(1), rtol=2**-11, atol=0)


@given(peak=st.floats(1e-30, 1e30), seed=st.integers(0, 99))
def test_cam_keeps_half_precision_at_any_scale(tmp_path_factory: Any, peak: float, seed: int) -> None:
    """float16 alone ends at 65504 and loses what is below 6e-8; each map is stored relative to its peak."""
    cam = torch.stack([cam_of(seed, peak, (3, 4)), cam_of(seed + 1, 1.0, (3, 4))])
    back = read_back(cam)
    for channel, original in zip(back, cam, strict=True):
        assert torch.allclose(channel, original, rtol=2**-10, atol=float(original.max()) * 2**-24)
        assert channel.argmax() == original.argmax()


def read_back(cam: torch.Tensor) -> torch.Tensor:
    """What `CamStore.read` makes of a record, without the file between."""
    record = cam_record(StoredCam("x", cam, tuple(range(1, 1 + len(cam))), (HEIGHT, WIDTH)))
    file: Mapping[str, Any] = {"peaks": record.attributes["peaks"], "cams": record.arrays["cams"]}
    assert file["cams"].dtype == np.float16
    return torch.from_numpy(file["cams"].astype(np.float32) * np.asarray(file["peaks"], np.float32)[:, None, None])


def test_map_without_activation_stays_zero() -> None:
    assert read_back(torch.stack([torch.zeros(3, 4), torch.ones(3, 4)]))[0].tolist() == [[0.0] * 4] * 3


def test_image_without_classes_has_an_empty_cam(cams: Path) -> None:
    with CamStore.open(cams) as store:
        stored = store.read("nothing")
    assert (tuple(stored.cam.shape), stored.class_ids, stored.size) == ((0, 3, 4), (), (HEIGHT, WIDTH))


def test_calibrated_maps_come_back_beside_the_others(tmp_path: Path) -> None:
    background, prototypes = cam_of(7, 1e-3)[0], cam_of(8, 40.0, (3, 3, 4))
    full = StoredCam("x", cam_of(1), CLASS_IDS, (HEIGHT, WIDTH), background, prototypes)
    empty = StoredCam("n", torch.zeros(0, 3, 4), (), (HEIGHT, WIDTH), background, prototypes[:1])
    with CamStore.open(store_file(tmp_path / "cams.h5", "cams", [cam_record(full), cam_record(empty)])) as store:
        back, nothing = store.read("x"), store.read("n")
    assert back.background is not None and back.prototype is not None
    for got, given_map in ((back.cam, cam_of(1)), (back.background, background), (back.prototype, prototypes)):
        assert got.shape == given_map.shape and torch.allclose(got, given_map, rtol=2**-10, atol=0)
    assert nothing.background is not None and nothing.prototype is not None
    assert (len(nothing.cam), tuple(nothing.background.shape), len(nothing.prototype)) == (0, (3, 4), 1)


def test_features_come_back_to_a_127th_of_unit_length(tmp_path: Path) -> None:
    """Beside maps and calibrated maps, on a grid of their own; marks are not stored."""
    features = torch.randn(8, 6, 9, generator=torch.Generator().manual_seed(0))
    plain = StoredCam("x", cam_of(1), CLASS_IDS, (HEIGHT, WIDTH), features=features, marks=np.zeros((2, 2), np.uint8))
    full = StoredCam(
        "y", cam_of(1), CLASS_IDS, (HEIGHT, WIDTH), cam_of(2)[0], cam_of(3, 1.0, (3, 3, 4)), features=features
    )
    for number, stored in enumerate((plain, full)):
        with CamStore.open(store_file(tmp_path / f"{number}.h5", "cams", [cam_record(stored)])) as store:
            assert store.keeps_features
            back = store.read(stored.name)
        assert back.features is not None and back.marks is None
        assert torch.allclose(back.features, torch.nn.functional.normalize(features, dim=0), atol=0.5 / 127)
        assert (back.prototype is None) == (stored.prototype is None)


def test_files_without_features_are_read_as_before(cams: Path) -> None:
    with CamStore.open(cams) as store:
        assert not store.keeps_features and store.read("x/1").features is None


def test_features_of_another_kind_are_damage(tmp_path: Path) -> None:
    record = cam_record(StoredCam("x", cam_of(1), CLASS_IDS, (HEIGHT, WIDTH)))
    wrong = Record("x", {**record.arrays, "features": np.zeros((2, 3, 4), np.uint8)}, record.attributes)
    with CamStore.open(store_file(tmp_path / "c.h5", "cams", [wrong])) as store, pytest.raises(DamagedFile):
        store.read("x")


# Scores


@given(st.floats(-0.5, 1.5, width=32))
def test_scores_are_kept_to_a_255th(value: float) -> None:
    stored = score_record(StoredScores("x", np.full((1, 1, 1), value, np.float32), ())).arrays["scores"]
    assert stored.dtype == np.uint8
    assert abs(stored.item() / 255 - min(max(value, 0), 1)) <= 0.5 / 255 + 1e-6


def test_scores_come_back_with_ids(scores: Path) -> None:
    with ScoreStore.open(scores) as store:
        stored, empty = store.read("x/1"), store.read("nothing")
    expected = np.random.default_rng(0).random((3, HEIGHT, WIDTH), np.float32)
    assert (stored.scores.shape, stored.scores.dtype, stored.class_ids) == ((3, HEIGHT, WIDTH), np.float32, CLASS_IDS)
    assert np.abs(stored.scores - expected).max() <= 0.5 / 255 + 1e-6
    assert (empty.scores.shape, empty.class_ids) == ((1, HEIGHT, WIDTH), ())


def test_reader_gives_the_scores_of_the_ith_name_as_they_are_stored(scores: Path) -> None:
    reader = ScoreReader(scores, ["nothing", "x/1"])
    found, class_ids = pickle.loads(pickle.dumps(reader))(1)
    expected = np.random.default_rng(0).random((3, HEIGHT, WIDTH), np.float32)
    assert (found.dtype, class_ids) == (np.uint8, CLASS_IDS)
    assert np.array_equal(found, np.rint(255 * expected))
    found, class_ids = reader(0)
    assert (found.shape, class_ids) == ((1, HEIGHT, WIDTH), ())


# Labels: the contract


def test_origins_are_those_of_marked_images_and_else_zero(tmp_path: Path) -> None:
    """Files of versions without origins are read as if nobody had marked anything."""
    labels, origin = labels_of(0), np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 5
    records = [label_record("a/1", labels, labels, origin), label_record("b", labels, labels)]
    with LabelStore.open(store_file(tmp_path / "l.h5", "pseudo-labels", records, ("bg", *CLASSES))) as store:
        assert np.array_equal(store.origin("a/1"), origin)
        assert not store.origin("b").any() and store.origin("b").shape == labels.shape
        with pytest.raises(UserError, match="holds no image c"):
            store.origin("c")
    with LabelStore.open(store_file(tmp_path / "old.h5", "pseudo-labels", records[1:], ("bg", *CLASSES))) as store:
        assert not store.origin("b").any()


@pytest.mark.parametrize("origin", [np.full((HEIGHT, WIDTH), 5, np.uint8), np.zeros((HEIGHT, WIDTH), np.int32),
                                    np.zeros((WIDTH, HEIGHT), np.uint8)])  # fmt: skip
def test_a_wrong_origin_is_damage(tmp_path: Path, origin: np.ndarray[Any, Any]) -> None:
    path = store_file(
        tmp_path / "l.h5", "pseudo-labels", [label_record("b", labels_of(0), labels_of(0), origin)], ("bg", *CLASSES)
    )
    with LabelStore.open(path) as store, pytest.raises(DamagedFile):
        store.origin("b")


def test_label_store_keeps_its_contract(labels: Path) -> None:
    with LabelStore.open(labels) as store:
        assert store.names == ["x/2", "x/1"]
        assert store.classes == ("background", *CLASSES)
        read = store.read("x/1")
        assert (read.shape, read.dtype) == ((HEIGHT, WIDTH), np.uint8)
        assert np.array_equal(read, labels_of(1))
        assert np.array_equal(store.confidence("x/1"), np.full((HEIGHT, WIDTH), 1, np.uint8))
    assert not store.file, "the file is closed when the block ends"


def test_label_store_opens_a_path_given_as_text(labels: Path) -> None:
    with LabelStore.open(str(labels)) as store:
        assert store.names == ["x/2", "x/1"]


def test_labels_of_an_unknown_image(labels: Path) -> None:
    with LabelStore.open(labels) as store, pytest.raises(UserError, match=r"pseudo_labels\.h5 holds no image x/3"):
        store.read("x/3")


def test_reader_gives_the_labels_of_the_ith_name(labels: Path) -> None:
    reader = LabelReader(labels, ["x/1", "x/2"])
    assert np.array_equal(reader(0), labels_of(1))
    assert np.array_equal(reader(1), labels_of(0))
    assert np.array_equal(reader.confidence(0), np.full((HEIGHT, WIDTH), 1, np.uint8))


def test_reader_can_be_pickled_while_its_file_is_open(labels: Path) -> None:
    reader = LabelReader(labels, ["x/1", "x/2"])
    reader(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(copy(1), labels_of(0))
    assert np.array_equal(reader(1), labels_of(0))


def read_in_child(reader: LabelReader, parents_file: int, answer: Connection) -> None:
    read = reader(0)
    assert reader._store is not None
    answer.send((read, id(reader._store) != parents_file))


def test_reader_opens_a_file_of_its_own_after_a_fork(labels: Path) -> None:
    reader = LabelReader(labels, ["x/1", "x/2"])
    reader(0)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=read_in_child, args=(reader, id(reader._store), sender))
    child.start()
    assert receiver.poll(60)
    read, own = receiver.recv()
    child.join()
    assert own
    assert np.array_equal(read, labels_of(1))
    assert np.array_equal(reader(1), labels_of(0)), "the parent's file still works"


# Damage


STORES: Mapping[str, type[RecordStore]] = {"cams": CamStore, "scores": ScoreStore, "labels": LabelStore}


def read_all(kind: str, path: Path) -> dict[str, Any]:
    with STORES[kind].open(path) as store:
        return {name: store.read(name) for name in store.names}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("kept", [0, 8, 100, 0.5, -1])
def test_truncated_file_is_damaged(kind: str, kept: float, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
    with pytest.raises(DamagedFile, match=rf"{path.name} is damaged or no HDF5 file; make it again with --force"):
        read_all(kind, path)


@pytest.mark.parametrize("kind", STORES)
def test_changed_bytes_of_an_image_are_found(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    with h5py.File(path, "r") as file:
        dataset = file[{"cams": "cams", "scores": "scores", "labels": "labels"}[kind]]["x%2F2"]
        where = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[where + 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"is damaged at image x/2; make it again with --force"):
        read_all(kind, path)
