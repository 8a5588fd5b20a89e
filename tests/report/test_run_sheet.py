from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.report import run_sheet as module
from cam_pipeline.report.run_sheet import run_sheet
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.parts import PartWriter

CONFIG = Config.model_validate({"run": {"workers": 1, "device": "cpu"}})
SIZE = (20, 32)


def write(path, kind, records):
    names = [record.name for record in records]
    classes = ("background", "cat", "dog") if kind == "pseudo-labels" else ("cat", "dog")
    writer = PartWriter(path, kind, artefact_attributes(classes, "f", ""), [names])
    writer.write(0, records)
    writer.join(names)
    return path


@pytest.fixture
def run(tmp_path):
    """Seven images whose number is their colour, their label map and, for the even ones, their mask."""
    samples, cams, labels = [], [], []
    for number in range(7):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"m{number}.png"
        Image.new("RGB", SIZE[::-1], (number, 0, 0)).save(image)
        Image.new("L", SIZE[::-1], number % 3).save(mask)
        samples.append(Sample(str(number), image, "train", (2,), None if number % 2 else mask))
        cams.append(cam_record(StoredCam(str(number), torch.rand(1, 2, 3) + number, (2,), SIZE)))
        confidence = np.full(SIZE, 255 - number, np.uint8)
        labels.append(label_record(str(number), np.full(SIZE, number % 3, np.uint8), confidence))
    results = {
        "extract_cams": write(tmp_path / "cams.h5", "cams", cams),
        "make_labels": write(tmp_path / "labels.h5", "pseudo-labels", labels),
    }
    return Table(("cat", "dog"), (*samples, Sample("v", tmp_path / "v.png", "val"))), results


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the contact sheet."""
    calls = []
    monkeypatch.setattr(module, "contact_sheet", lambda *arguments, title: calls.append((*arguments, title)))
    return calls


def test_rows_belong_together_and_say_why_they_are_there(run, drawn, tmp_path):
    table, results = run
    run_sheet(CONFIG, table, results, tmp_path / "sheet.png", images=4)
    ((rows, classes, path, title),) = drawn
    assert [(row.name, row.note) for row in rows][:2] == [("6", "least confident (0.976)"), ("0", "for dog")]
    assert title == "4 of 7 images of 'train'; 1 least confident of 7 looked at; 1 for their classes"
    assert classes == ("background", "cat", "dog") and path == tmp_path / "sheet.png"
    for row in rows:
        number = int(row.name)
        assert row.image.shape == (*SIZE, 3) and (row.image[..., 0] == number).all()
        assert row.class_ids == (2,) and row.cam.shape == (1, *SIZE) and 0.99 < row.cam.max() <= 1
        assert (row.pseudo_label == number % 3).all()
        assert row.truth is None if number % 2 else (row.truth == number % 3).all()
        assert row.prediction is None


def test_few_images_are_all_shown_and_a_missing_mask_leaves_its_place_empty(run, drawn, tmp_path):
    table, results = run
    run_sheet(CONFIG, table, results, tmp_path / "sheet.png", images=50)
    rows = drawn[0][0]
    assert sorted(row.name for row in rows) == [str(number) for number in range(7)]
    assert all((row.truth is None) == bool(int(row.name) % 2) for row in rows)


def test_predictions_of_the_segmenter_are_those_of_the_image(run, drawn, tmp_path, monkeypatch):
    table, results = run
    monkeypatch.setattr(module, "trained_segmenter", lambda config, path, classes: SimpleNamespace())
    monkeypatch.setattr(module, "place", lambda network, device: None)
    monkeypatch.setattr(
        module,
        "predict_labels",
        lambda segmenter, samples, config, shown: (
            (one, torch.full(SIZE, int(one.id) % 2 if shown is None else shown[one.id])) for one in reversed(samples)
        ),
    )
    results = {**results, "train_seg": tmp_path / "s"}
    run_sheet(CONFIG, table, results, tmp_path / "sheet.png", images=3)
    assert all(row.prediction.max() == int(row.name) % 2 for row in drawn[0][0])
    assert "classifier" not in drawn[0][3]

    def presences(samples):
        return {sample.id: 5 for sample in samples}

    run_sheet(CONFIG, table, results, tmp_path / "sheet.png", ids=["1"], presences=presences)
    rows, *_, title = drawn[1]
    assert rows[0].prediction.max() == 5 and title == "segmenter: classes of each image by the classifier"


def test_named_images_are_drawn_in_their_order_with_the_steps_that_they_have(run, drawn, tmp_path):
    table, results = run
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "v.png")
    run_sheet(CONFIG, table, results, tmp_path / "sheet.png", ids=["5,v", "0"])
    rows, _, _, title = drawn[0]
    assert [row.name for row in rows] == ["5", "v", "0"] and title == ""
    assert [row.cam is None for row in rows] == [row.pseudo_label is None for row in rows] == [False, True, False]
    with pytest.raises(DataError, match="there is no image 9"):
        run_sheet(CONFIG, table, results, tmp_path / "sheet.png", ids=["9"])


def test_without_results_of_the_method_there_are_images(run, drawn, tmp_path):
    table, _ = run
    run_sheet(CONFIG, table, {}, tmp_path / "sheet.png")
    assert len(drawn[0][0]) == 7 and {row.note for row in drawn[0][0]} == {"for dog", "of the rest"}


def test_classes_of_images_that_nobody_labelled_are_those_of_their_maps(run, drawn, tmp_path):
    table, results = run
    bare = Table(table.classes, tuple(replace(sample, class_ids=None) for sample in table.samples))
    run_sheet(CONFIG, bare, results, tmp_path / "sheet.png", images=4)
    assert [row.note for row in drawn[0][0]][1] == "for dog"


def test_the_sheet_is_drawn(run, tmp_path):
    table, results = run
    path = tmp_path / "report" / "sheet.png"
    run_sheet(CONFIG, table, results, path, images=2)
    with Image.open(path) as sheet:
        assert sheet.size[0] > 3 * SIZE[1] and sheet.size[1] > 2 * SIZE[0]
