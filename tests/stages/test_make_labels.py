import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.marks import Click, Marks
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.pipeline import Output, load_stages
from cam_pipeline.stages import make_labels as module
from cam_pipeline.stages.make_labels import labelled
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import StoredScores, score_record


def test_labels_and_confidence_by_hand():
    background = [[0.9, 0.3, 0.6], [0.2, 0.0, 0.5]]
    first, second = [[0.1, 0.6, 0.4], [0.3, 0.0, 0.3]], [[0.0, 0.1, 0.0], [0.5, 1.0, 0.2]]
    scores = StoredScores("a", np.array([background, first, second], dtype=np.float32), (7, 3))
    config = Config.model_validate({"labels": {"low": 0.35, "high": 0.55}})
    record = labelled(scores, config)
    # 0.1 < low; 7 with 0.6; best class 0.4 between; 3 with 0.5 < high; 3 with 1; best class 0.3 < low.
    assert record.name == "a"
    assert record.arrays["labels"].tolist() == [[0, 7, 255], [255, 3, 0]]
    assert record.arrays["confidence"].tolist() == [[230, 153, 153], [128, 255, 128]]
    assert {array.dtype for array in record.arrays.values()} == {np.dtype(np.uint8)}


def scores_of(path, images):
    """scores.h5 of images of 2 x 2 pixels: (class ids, score of each class everywhere) by name."""
    records = [
        score_record(StoredScores(name, np.full((1 + len(ids), 2, 2), 0.2) + np.reshape([0, *of], (-1, 1, 1)), ids))
        for name, (ids, of) in images.items()
    ]
    writer = PartWriter(path, "scores", artefact_attributes(("cat", "dog"), "f", ""), [list(images)])
    writer.write(0, records)
    writer.join(list(images))
    return path


IMAGES = {"a": ((1,), [0.7]), "b": ((1, 2), [0.7, 0.1]), "c": ((), []), "d": ((2,), [0.0])}


def made(tmp_path, inputs, caplog, images=IMAGES, clicks=None):
    """The lines that the stage logs. `clicks` by image."""
    caplog.clear()
    config = Config()
    given = inputs(config, refine_cams=scores_of(tmp_path / "scores.h5", images))
    samples = [Sample(name, tmp_path / f"{name}.png", "train", clicks=(clicks or {}).get(name, ())) for name in images]
    given.dataset.table = Table(("cat", "dog"), tuple(samples))
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        module.make_labels(config, given, Output(tmp_path / "partial" / "l.h5", tmp_path / "logs", "f"))
    return [(record.levelname, record.getMessage()) for record in caplog.records]


TOLD = [
    ("INFO", "make_labels: 4 images: background 50.0 %, cat 50.0 %, dog 0.0 %, ignored 0.0 %"),
    (
        "WARNING",
        "make_labels: one class covers over 90 % of 2 of 4 images: a (cat 100 %), b (cat 100 %); train the "
        "classifier longer (train_cls.epochs)",
    ),
    (
        "WARNING",
        "make_labels: 2 of 4 images have no pixel of a class that they show: d (dog), b (dog); no image at all has a "
        "pixel of dog; train the classifier longer (train_cls.epochs)",
    ),
]


def test_three_lines_say_what_is_striking(tmp_path, inputs, caplog):
    assert made(tmp_path, inputs, caplog) == TOLD


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_resumed_run_tells_of_all_images(tmp_path, inputs, caplog, monkeypatch, parts):
    """Of those in parts that an earlier run finished, too, which are not made again."""
    monkeypatch.setattr(module, "IMAGES_PER_PART", 1)
    folder = tmp_path / "partial"
    made(tmp_path, inputs, caplog)
    for path in [folder / "l.h5", *sorted(folder.glob("part-*.h5"))[parts:]]:
        path.unlink()
    again = []
    monkeypatch.setattr(
        module, "labelled", lambda stored, *given: again.append(stored.name) or labelled(stored, *given)
    )
    assert made(tmp_path, inputs, caplog) == TOLD
    assert again == list(IMAGES)[parts:]


def test_labels_without_a_class_are_told_of_in_one_line(tmp_path, inputs, caplog):
    _, (level, line) = made(tmp_path, inputs, caplog, {"a": ((1,), [0.0]), "b": ((), [])})
    assert level == "WARNING" and line.startswith("make_labels: no pixel has a class, so there is nothing to learn")
    assert len(made(tmp_path / "2", inputs, caplog, {"b": ((), [])})) == 1


def test_what_people_say_wins_and_its_origin_is_kept():
    """Over a class, over an ignored pixel and over the background."""
    scores = StoredScores("a", np.array([[[0.1, 0.5, 0.9, 0.9]], [[0.9, 0.5, 0.1, 0.1]]], dtype=np.float32), (2,))
    said = Marks(np.array([[0, 2, 1, 255]], np.uint8), np.array([[1, 2, 3, 0]], np.uint8))
    record = labelled(scores, Config(), said)
    assert record.arrays["labels"].tolist() == [[0, 2, 1, 0]]
    assert record.arrays["confidence"].tolist() == [[255, 255, 255, 230]]
    assert record.arrays["origin"].tolist() == [[1, 2, 3, 0]]
    assert sorted(labelled(scores, Config()).arrays) == ["confidence", "labels"]
    other = Marks(*np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"^image a: its clicks and scribbles are on an image of \(2, 2\) \(height"):
        labelled(scores, Config(), other)


def test_only_marked_images_have_a_stored_origin(tmp_path, inputs, caplog):
    Image.new("RGB", (2, 2)).save(tmp_path / "c.png")
    lines = made(tmp_path, inputs, caplog, clicks={"c": (Click(1, 0, 2),)})
    assert lines[0][1].endswith("background 25.0 %, cat 50.0 %, dog 25.0 %, ignored 0.0 %")  # a click is a small disc
    with LabelStore.open(tmp_path / "partial" / "l.h5") as store:
        assert list(store.file["origin"]) == ["c"]
        assert [int(store.origin(name).sum()) for name in store.names] == [0, 0, 4, 0]
        assert store.read("c").tolist() == [[2, 2], [2, 2]] and store.confidence("c").min() == 255


def test_without_marks_only_the_thresholds_make_it_stale(inputs, tmp_path):
    stage = load_stages()["make_labels"]
    assert stage.params == ("labels",) and stage.needs(Config()) == ("refine_cams",)
    dataset = inputs(Config()).dataset
    (tmp_path / "a.png").write_bytes(b"a")
    plain = Sample("a", tmp_path / "a.png", "train")
    clicked = [replace(plain, clicks=(Click(1, 1, label),)) for label in (0, 1)]
    found = []
    for sample in (plain, *clicked):
        dataset.table = Table(("cat",), (sample,))
        found.append(stage.data(Config(), dataset))
    assert found[0] == "" and len(set(found)) == 3
