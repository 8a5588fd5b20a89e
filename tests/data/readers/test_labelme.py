import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems, Problems
from cam_pipeline.data.marks import CLICK, MASK, SCRIBBLE, has_scribble, sample_marks
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.readers.labelme import read_labelme
from cam_pipeline.data.strokes import Click, Stroke
from cam_pipeline.errors import DataError

CLASSES = ("cat", "dog")


def shape(label, kind, *points, **fields):
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], "flags": {}} | fields


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def write(tmp_path):
    """Writes a file of Labelme and returns its path."""

    def write_shapes(*shapes, name="a.json", **fields):
        path = tmp_path / name
        content = {"version": "5.4", "shapes": shapes, "imagePath": "a.png", "imageHeight": 20, "imageWidth": 30}
        path.write_text(json.dumps(content | {"imageData": None} | fields))
        return path

    return write_shapes


def test_kinds_of_shapes(write):
    path = write(
        shape("cat", "point", (3.5, 4)),
        shape("_background_", "line", (0, 0), (9, 0)),
        shape("dog", "linestrip", (1, 1), (2, 2), (3, 9)),
        shape("dog", "polygon", (10, 10), (14, 10), (14, 14)),
        shape("__ignore__", "polygon", (0, 0)),
    )
    strokes, clicks = read_labelme(path, CLASSES, Problems())
    assert clicks == (Click(3.5, 4, 1),) and clicks[0].source == f"{path}, shape 1"
    assert strokes.strokes == (
        Stroke(0, ((0, 0), (9, 0))),
        Stroke(2, ((1, 1), (2, 2), (3, 9))),
        Stroke(2, ((10, 10), (14, 10), (14, 14)), filled=True),
    )
    assert strokes.size == (20, 30)


def test_boxes_and_circles_say_nothing_about_single_pixels(write):
    problems = AllProblems()
    path = write(shape("cat", "rectangle", (1, 1), (9, 9)), shape("cat", "circle", (5, 5), (9, 9)), shape("x", "cube"))
    strokes, clicks = read_labelme(path, CLASSES, problems)
    assert not strokes.strokes and not clicks and not problems.errors
    assert [problem.message.split(": ", 1)[1][:20] for problem in problems.warnings] == [
        "a rectangle holds mo", "a circle holds more ", "'cube' is no shape t",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (shape("cow", "point", (1, 1)), "a.json, shape 1: unknown class 'cow'"),
        (shape("cat", "point"), "shape 1: a point has 1 points or more, not 0"),
        (shape("cat", "polygon", (1, 1), (2, 2)), "shape 1: a polygon has 3 points or more, not 2"),
        (shape("cat", "line", (1, "left"), (2, 2)), "shape 1: its points are no list"),
        (shape("cat", "line", (1, 1, 1)), "shape 1: its points are no list"),
        (shape("cat", "point", (1, float("nan"))), "shape 1: its points are no list"),
        ({"label": "cat", "shape_type": "point"}, "shape 1: its points are no list"),
        ({"shape_type": "point", "points": [[1, 1]]}, "shape 1: a shape has a label"),
        (shape("cat", "mask", (1, 1), (2, 2)), "shape 1: its mask cannot be read"),
        (shape("cat", "mask", (1, 1), (2, 2), mask="AAAA"), "shape 1: its mask cannot be read"),
    ],
)
def test_wrong_shapes_are_named_and_the_others_read(write, one, message):
    path = write(one, shape("cat", "point", (1, 1)))
    with pytest.raises(DataError, match=message):
        read_labelme(path, CLASSES, Problems())
    problems = AllProblems()
    assert len(read_labelme(path, CLASSES, problems)[1]) == len(problems.errors) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "a.json: no file of Labelme"),
        (b"{", "a.json cannot be read as JSON"),
        (b'{"a": "\xe4"}', "is not UTF-8"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labelme(path, CLASSES, Problems())


@pytest.fixture
def data(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{name}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "data.csv").write_text("image,labels\na.png,?\nb.png,dog\n")
    return tmp_path


def test_files_beside_the_images(write, data):
    bitmap = np.zeros((2, 4), np.uint8)
    bitmap[0, 1:3] = 1
    write(
        shape("cat", "point", (25, 15)),
        shape("cat", "polygon", (1, 1), (6, 1), (6, 6), (1, 6)),
        shape("background", "linestrip", (10, 10), (20, 10)),
        shape("dog", "mask", (20, 2), (23, 3), mask=png(bitmap)),
        name="b.json",
    )
    write(shape("dog", "point", (1, 1)))
    with pytest.raises(DataError, match=r"b.json, shape 1: a click on cat, but the labels of image b are dog"):
        load_table(DataSettings(root=data, scribbles="."))
    (data / "data.csv").write_text("image,labels\na.png,?\nb.png,?\n")
    first, second = load_table(DataSettings(root=data, scribbles=".")).samples
    assert first.clicks == (Click(1, 1, 2),) and not has_scribble(first) and first.class_ids == (2,)
    assert second.class_ids == (1, 2), "clicked, and drawn"
    marks = sample_marks(second, 2)
    found = {
        (x, y): (int(marks.labels[y, x]), int(marks.origin[y, x])) for x, y in [(25, 15), (3, 3), (15, 10), (21, 2)]
    }
    assert found == {(25, 15): (1, CLICK), (3, 3): (1, MASK), (15, 10): (0, SCRIBBLE), (21, 2): (2, MASK)}
    assert (marks.labels == 2).sum() == 2 and (marks.labels[1:7, 1:7] == 1).all()


def test_the_column_of_a_table(write, data):
    write(shape("dog", "point", (1, 1)), name="x.json")
    (data / "data.csv").write_text("image,labels,scribble\na.png,dog,x.json\nb.png,dog,none.json\n")
    first, second = load_table(DataSettings(root=data)).samples
    assert first.clicks == (Click(1, 1, 2),)
    with pytest.raises(DataError, match=r"image b: there is no scribble .*none.json .*data.csv, line 3\)"):
        sample_marks(second, 2)
    (data / "none.json").write_text("{}")
    with pytest.raises(DataError, match=r"none.json: no file of Labelme.*\(.*data.csv, line 3\)"):
        load_table(DataSettings(root=data))


@pytest.mark.parametrize("kind", ["line", "point"])
def test_the_size_must_be_that_of_the_image(write, data, kind):
    write(shape("dog", kind, (1, 1), (2, 2)), imageHeight=30, imageWidth=20, name="b.json")
    sample = load_table(DataSettings(root=data, scribbles=".")).samples[1]
    with pytest.raises(DataError, match=r"b.json: the scribble is for an image of \(30, 20\), its image is \(20, 30\)"):
        sample_marks(sample, 2)


@pytest.mark.parametrize("corner", [(1e300, 0), (-1e300, 5), (29, 19), (-1, -1), (500, 500)])
def test_a_mask_beyond_the_edge_is_cut(write, data, corner):
    write(shape("dog", "mask", corner, (1, 1), mask=png(np.ones((2, 2), np.uint8))), name="b.json")
    marks = sample_marks(load_table(DataSettings(root=data, scribbles=".")).samples[1], 2)
    assert (marks.labels == 2).sum() == (1 if abs(corner[0]) < 30 else 0)
