import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.report.mask_facts import (
    Sweep,
    class_figures,
    compared_labels,
    compared_segmenter,
    confused,
    sweep,
)
from cam_pipeline.report.shown import shown
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import StoredScores, score_record

CONFIG = Config.model_validate({"run": {"workers": 1, "device": "cpu"}, "refine": {"background": 0.4}})
SIZE = (12, 16)


def write(path, kind, records, classes, **more):
    names = [record.name for record in records]
    writer = PartWriter(path, kind, artefact_attributes(classes, "f", "", **more), [names])
    writer.write(0, records)
    writer.join(names)
    return path


@pytest.fixture
def run(tmp_path):
    """Two images whose left half shows a cat: the label of "good" is right but for a band, that of "bad" a dog."""
    truth = np.zeros(SIZE, np.uint8)
    truth[:, :8] = 1
    samples, cams, labels, scores = [], [], [], []
    for name, class_id in (("bad", 2), ("good", 1)):
        image, mask = tmp_path / f"{name}.png", tmp_path / f"{name}-mask.png"
        Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(image)
        Image.fromarray(truth).save(mask)
        samples.append(Sample(name, image, "train", (class_id,), mask))
        cam = torch.tensor([[[1.0, 0.0]]])
        cams.append(cam_record(StoredCam(name, cam, (class_id,), SIZE)))
        label = np.where(truth, class_id, 0).astype(np.uint8)
        foreground = (truth > 0).astype(np.float32)
        scores.append(score_record(StoredScores(name, np.stack([1 - foreground, foreground]), (class_id,))))
        label[:, 7:9] = 255
        labels.append(label_record(name, label, np.full(SIZE, 200, np.uint8)))
    results = {
        "extract_cams": write(tmp_path / "cams.h5", "cams", cams, ("cat", "dog")),
        "refine_cams": write(tmp_path / "scores.h5", "scores", scores, ("cat", "dog"), background=0.4),
        "make_labels": write(tmp_path / "labels.h5", "pseudo-labels", labels, ("background", "cat", "dog")),
    }
    return Table(("cat", "dog"), tuple(samples)), results


def test_labels_are_compared_as_complete_maps(run):
    table, results = run
    found = compared_labels(CONFIG, table, results, 100)
    assert (found.split, found.images, found.of) == ("train", 2, 2)
    assert found.ignored == pytest.approx(2 / 16)
    background, cat, dog = found.classes
    assert background.iou == 1.0 and background.training_images is None
    assert (cat.iou, cat.false_positive, cat.false_negative) == (0.5, 0.0, 0.5) and cat.training_images == 1
    assert (dog.iou, dog.false_positive, dog.false_negative) == (0.0, 1.0, 0.0)
    assert found.mean_iou == pytest.approx(0.5)
    assert found.confused == (("cat", "dog", 0.5),)
    assert [name for name, _ in found.each] == ["bad", "good"] and found.each[1][1] == 1.0
    assert compared_labels(CONFIG, table, results, 1).of == 2


def test_without_masks_or_results_nothing_is_compared(run):
    table, results = run
    bare = Table(table.classes, tuple(Sample(one.id, one.image, one.split, one.class_ids) for one in table.samples))
    assert compared_labels(CONFIG, bare, results, 9) is None and sweep(CONFIG, bare, results, 9) is None
    assert compared_labels(CONFIG, table, {}, 9) is None and sweep(CONFIG, table, {}, 9) is None
    assert compared_segmenter(CONFIG, table, results, 9) is None


def test_the_sweep_has_the_chosen_and_the_best_score(run):
    table, results = run
    found = sweep(CONFIG, table, results, 100)
    assert found.images == 2 and found.chosen == 0.4 and found.how == "set in the config"
    assert found.at_chosen[0] == 0.4 and found.best[1] == max(found.mean_ious)
    assert Sweep(1, (0.0, 0.5), (0.1, 0.2), None, "auto").at_chosen is None


def test_pairs_that_are_confused_come_by_pixels():
    confusion = torch.tensor([[5, 0, 1], [4, 2, 2], [0, 0, 0]])
    assert list(confused(confusion, "abc")) == [("b", "a", 0.5), ("b", "c", 0.25), ("a", "c", pytest.approx(1 / 6))]
    assert list(confused(confusion, "abc", most=1)) == [("b", "a", 0.5)]


def test_a_class_that_is_nowhere_has_no_figures():
    nothing = torch.tensor([[5, 0], [0, 0]])
    _, found = class_figures(nothing, nothing, ["cat"], [3], {"tail": [0]})
    assert (found.iou, found.false_positive, found.boundary) == (None, None, None) and found.group == "tail"


def test_steps_of_an_image_are_small_pictures_with_words(run):
    table, results = run
    [found] = shown(CONFIG, table, results, [("bad", 0.25)])
    assert [title for title, _ in found.steps] == ["image", "CAM", "pseudo-label", "truth"]
    assert found.steps[1][1].alt == "CAM of bad (dog)"
    assert shown(CONFIG, table, {}, []) == []
