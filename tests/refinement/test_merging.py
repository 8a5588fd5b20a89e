"""Maps of several runs become one: whose classes count, what is refused, and the stage that stores them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cam_pipeline.config import Config, DataSettings
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.errors import UserError
from cam_pipeline.ops.cam import cam_agreement, mean_cam
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.merging import agreement, merged, opened_together
from cam_pipeline.stages import compare_cams
from cam_pipeline.stages import merge_cams as module
from cam_pipeline.store.agreement import AgreementReader, AgreementStore
from cam_pipeline.store.cams import CamStore, StoredCam, cam_record
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.parts import PartWriter

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


@pytest.fixture
def cams(tmp_path: Path) -> Path:
    stored = [StoredCam(name, cam_of(i), CLASS_IDS, (HEIGHT, WIDTH)) for i, name in enumerate(["x/1", "x/2"])]
    empty = StoredCam("nothing", torch.zeros(0, 3, 4), (), (HEIGHT, WIDTH))
    return store_file(tmp_path / "cams.h5", "cams", [cam_record(one) for one in [*stored, empty]])


def other_cams(folder: Path, name: str = "other.h5", **changed: Any) -> Path:
    """Maps of a second network on a finer grid: class 2 where the first has class 1, and none for the empty image."""
    stored = [StoredCam(f"x/{i}", cam_of(10 + i, shape=(2, 5, 7)), (2, 3), (HEIGHT, WIDTH)) for i in (1, 2)]
    empty = StoredCam("nothing", torch.zeros(0, 3, 4), (), (HEIGHT, WIDTH))
    return store_file(folder / name, "cams", [cam_record(replace(one, **changed)) for one in [*stored, empty]])


def test_merged_maps_keep_the_features_of_the_first(cams: Path, tmp_path: Path) -> None:
    with opened_together(cams, [other_cams(tmp_path)]) as stores:
        own, beside = (store.read("x/1") for store in stores)
    features = torch.ones(2, 6, 8)
    assert merged([replace(own, features=features), beside]).features is features
    assert merged([own, replace(beside, features=features)]).features is None


def test_merged_maps_are_the_mean_for_the_classes_of_the_first(cams: Path, tmp_path: Path) -> None:
    path = other_cams(tmp_path)
    with opened_together(cams, [path, path]) as stores:
        own, beside, again = (store.read("x/1") for store in stores)
        nothing = merged([store.read("nothing") for store in stores])
    assert nothing.cam.shape[0] == 0
    both = merged([own, beside, again])
    assert (both.name, both.class_ids, both.size) == (own.name, own.class_ids, own.size)
    assert both.normalized and not own.normalized
    torch.testing.assert_close(both.cam[0], mean_cam([own.cam[0]], (5, 7)))
    torch.testing.assert_close(both.cam[1], mean_cam([own.cam[1], beside.cam[1], beside.cam[1]], (5, 7)))


def test_maps_of_other_images_or_classes_are_not_merged(cams: Path, tmp_path: Path) -> None:
    fewer = store_file(tmp_path / "fewer.h5", "cams", [cam_record(StoredCam("x/1", cam_of(0), CLASS_IDS, (5, 7)))])
    with (
        pytest.raises(UserError, match=r"fewer\.h5 cannot be merged with .*cams\.h5: it holds no image nothing"),
        opened_together(cams, [fewer]),
    ):
        pass
    renamed = store_file(tmp_path / "renamed.h5", "cams", [], ("dog", "cat"))
    with pytest.raises(UserError, match="it holds maps of other classes"), opened_together(cams, [renamed]):
        pass


def test_calibrated_maps_are_not_merged(cams: Path, tmp_path: Path) -> None:
    path = other_cams(tmp_path, background=torch.ones(2, 3), prototype=torch.ones(3, 2, 3))
    expected = r"other\.h5 holds calibrated maps, which cannot be merged: set cam\.calibration = 'none'"
    for first, second in ((cams, path), (path, cams)):
        with pytest.raises(UserError, match=expected), opened_together(first, [second]):
            pass
    with CamStore.open(path) as alone, pytest.raises(ValueError, match="image x/1 has some"):
        merged([alone.read("x/1"), alone.read("x/1")])


@pytest.mark.parametrize("per_part", [1, 256])
def test_the_stage_stores_the_mean_maps_of_all_images(
    cams: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_part: int
) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_PART", per_part)
    path = other_cams(tmp_path)
    config = Config.model_validate({"refine": {"merge_with": [path]}})
    output = Output(tmp_path / "out" / "merged_cams.h5", tmp_path / "logs", "f")
    dataset = Dataset(DataSettings(root=tmp_path), FileDigests(tmp_path / "digests.json"))
    module.merge_cams(config, Inputs(dataset, {"extract_cams": cams}), output)
    with opened_together(cams, [path]) as stores, CamStore.open(output.path) as store:
        assert store.names == stores[0].names and store.classes == CLASSES and not store.calibrated
        for name in store.names:
            found, expected = store.read(name), merged([one.read(name) for one in stores])
            assert found.normalized and (found.class_ids, found.size) == (expected.class_ids, expected.size)
            torch.testing.assert_close(found.cam, expected.cam, rtol=2**-10, atol=1e-6)


def test_networks_agree_about_a_cell_as_far_as_on_the_class_they_agree_least_on(cams: Path, tmp_path: Path) -> None:
    with opened_together(cams, [other_cams(tmp_path)]) as stores:
        own, beside = (store.read("x/1") for store in stores)
        nothing = agreement([store.read("nothing") for store in stores])
    absent = torch.zeros(1, 5, 7)  # the other network has no map of class 1
    expected = cam_agreement([own.cam, torch.cat([absent, beside.cam[1:]])], (5, 7))
    torch.testing.assert_close(agreement([own, beside]), expected)
    assert (agreement([own, own]) == 1).all() and (nothing == 1).all()


def test_the_stage_stores_the_agreement_about_all_images(cams: Path, tmp_path: Path) -> None:
    path = other_cams(tmp_path)
    config = Config.model_validate({"refine": {"merge_with": [path]}, "train_seg": {"agreement_power": 1}})
    output = Output(tmp_path / "out" / "agreement.h5", tmp_path / "logs", "f")
    dataset = Dataset(DataSettings(root=tmp_path), FileDigests(tmp_path / "digests.json"))
    compare_cams.compare_cams(config, Inputs(dataset, {"extract_cams": cams}), output)
    with opened_together(cams, [path]) as stores, AgreementStore.open(output.path) as store:
        assert store.names == stores[0].names and store.classes == CLASSES
        for index, name in enumerate(store.names):
            expected = agreement([one.read(name) for one in stores])
            found = AgreementReader(output.path, store.names)(index)
            torch.testing.assert_close(torch.from_numpy(found) / 255, expected, rtol=0, atol=0.51 / 255)
