import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.drawing import draw_strokes
from cam_pipeline.data.masks import read_mask
from cam_pipeline.data.readers.labelme import read_labelme
from cam_pipeline.errors import UserError
from cam_pipeline.export.coco import write_coco
from cam_pipeline.export.formats import WRITERS
from cam_pipeline.export.label_maps import LabelMap, write_label_maps
from cam_pipeline.export.labelme import write_labelme
from cam_pipeline.export.png import voc_palette, write_png

CLASSES = ("cat", "Größe 2")
LABELS = np.array([[0, 1, 1, 0], [2, 1, 0, 255], [2, 2, 0, 1]], np.uint8)


@pytest.fixture
def one(tmp_path):
    return LabelMap("img/a b", "img/a b.jpg", tmp_path / "data" / "img" / "a b.jpg", LABELS)


def test_the_palette_is_that_of_voc():
    assert voc_palette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert voc_palette()[-3:] == [224, 224, 192]


def test_png(one, tmp_path):
    assert write_label_maps(write_png, [one], CLASSES, tmp_path / "out") == 1
    with Image.open(tmp_path / "out" / "img" / "a b.png") as image:
        assert image.mode == "P"
    assert np.array_equal(read_mask(tmp_path / "out" / "img" / "a b.png", 2), LABELS)
    assert (tmp_path / "out" / "classes.txt").read_text("utf-8").splitlines() == ["background", *CLASSES]


def test_coco(one, tmp_path):
    write_label_maps(write_coco, [one], CLASSES, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "instances.json").read_text("utf-8"))
    assert content["images"] == [{"id": 1, "file_name": "img/a b.jpg", "height": 3, "width": 4}]
    found = np.zeros_like(LABELS)
    for annotation in content["annotations"]:
        found[coco.decode(annotation["segmentation"]) > 0] = annotation["category_id"]
        assert annotation["iscrowd"] == (annotation["category_id"] == 255)
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
    assert np.array_equal(found, LABELS)
    assert [category["name"] for category in content["categories"]] == [*CLASSES, "__ignore__"]


def test_labelme(one, tmp_path):
    write_label_maps(write_labelme, [one], CLASSES, tmp_path / "out")
    path = tmp_path / "out" / "img" / "a b.json"
    image = json.loads(path.read_text("utf-8"))["imagePath"]
    assert os.path.normpath(path.parent / image) == str(one.image)
    strokes, _ = read_labelme(path, CLASSES, Problems())
    found, _ = draw_strokes(strokes.strokes, *strokes.size)
    assert np.array_equal(found, np.where(LABELS == 0, 255, LABELS))  # of scribbles, what is not drawn is unknown


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_folder_with_files_is_left_alone_and_an_error_leaves_nothing(one, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        write_label_maps(WRITERS[name], [one], CLASSES, tmp_path / "out")

    def broken():
        yield one
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_label_maps(WRITERS[name], broken(), CLASSES, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
