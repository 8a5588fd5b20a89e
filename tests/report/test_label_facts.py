import numpy as np
import pytest
import torch

from cam_pipeline.data.table import Sample
from cam_pipeline.report.label_facts import BINS, Lost, disagreement, label_facts, odd_areas, spread, together
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.parts import PartWriter


def write(path, kind, records, classes):
    names = [record.name for record in records]
    writer = PartWriter(path, kind, artefact_attributes(classes, "f", ""), [names])
    writer.write(0, records)
    writer.join(names)
    return path


def sample(name, *class_ids, path="none"):
    return Sample(name, path, "train", class_ids)


def test_labels_say_what_is_doubtful(tmp_path):
    labels = np.zeros((4, 5), np.uint8)
    labels[0, :3], labels[1, :2] = 1, 255
    origin = np.zeros((4, 5), np.uint8)
    origin[0, :3] = 2
    records = [
        label_record("a", labels, np.full((4, 5), 255, np.uint8), origin),
        label_record("b", labels, np.full((4, 5), 51, np.uint8)),
    ]
    path = write(tmp_path / "labels.h5", "pseudo-labels", records, ("background", "cat", "dog"))
    found = label_facts(path, [sample("a", 1), sample("b", 1, 2), sample("not labelled", 1)], 100)
    assert (found.images, found.of) == (2, 2)
    assert found.lost == (Lost("b", 2),)
    assert found.ignored == pytest.approx(0.1)
    assert found.mean_confidence == pytest.approx(0.6)
    assert [name for name, _ in found.doubtful] == ["b", "a"]
    assert found.confidence[-1] == 20 and found.confidence[BINS // 5] == 20 and sum(found.confidence) == 40
    assert found.origins == {"pseudo-label": 37, "click": 0, "scribble": 3, "mask": 0, "corrected": 0}
    assert label_facts(path, [sample("other")], 100) is None
    assert label_facts(path, [sample("a", 1), sample("b", 1, 2)], 1).images == 1


def test_odd_areas_are_far_from_the_median():
    usual = {f"i{number}": 0.1 + 0.001 * number for number in range(9)}
    found = odd_areas({1: {**usual, "huge": 0.9, "twice": 0.2, "tiny": 0.001}, 2: {"few": 0.5, "too few": 0.01}})
    assert [(one.image, one.class_id) for one in found] == [("tiny", 1), ("huge", 1)]
    assert found[0].usual == pytest.approx(0.104, abs=0.001)
    varied = {f"i{number}": 2.0**-number for number in range(9)}
    assert not odd_areas({1: varied}), "a class whose areas vary much has no unusual one"


def test_classes_that_images_show_together():
    samples = [sample("a", 1, 2), sample("b", 2, 1, 3), sample("c", 2), Sample("d", "x", "train", None)]
    assert together(samples) == {(1, 2): 2, (1, 3): 1, (2, 3): 1}


def test_samples_are_spread_evenly():
    assert spread([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([], 5) == []


def test_merged_networks_disagree_where_the_maximum_is_below_one(tmp_path):
    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 0], maps[1, 1, 1] = 1.0, 0.5
    records = [
        cam_record(StoredCam("a", maps, (1, 2), (4, 4), normalized=True)),
        cam_record(StoredCam("b", maps[:1], (1,), (4, 4), normalized=True)),
        cam_record(StoredCam("not merged", maps[:1], (1,), (4, 4))),
        cam_record(StoredCam("empty", maps[:0], (), (4, 4), normalized=True)),
    ]
    path = write(tmp_path / "cams.h5", "cams", records, ("cat", "dog"))
    samples = [sample(record.name) for record in records]
    assert disagreement(path, samples, 100) == [("a", pytest.approx(0.5, abs=0.001)), ("b", 0.0)]
