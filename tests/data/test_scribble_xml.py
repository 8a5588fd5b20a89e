import zipfile

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.drawing import draw_strokes
from cam_pipeline.data.marks import sample_marks
from cam_pipeline.data.readers import VOC_CLASSES
from cam_pipeline.data.scribble_xml import read_strokes
from cam_pipeline.data.scribbles import read_scribble_xml
from cam_pipeline.data.strokes import MASK, SCRIBBLE, ScribbleXml, Stroke
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

SIZE = (40, 60)  # height, width
SHORT = (
    "plane", "bike", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table",
    "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor",
)  # fmt: skip


def xml(*strokes, size=SIZE):
    """An annotation of (tag, points) each."""
    height, width = size or (0, 0)
    of_size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>" if size else ""
    polygons = "".join(
        f"<polygon><tag>{tag}</tag>{''.join(f'<point><X>{x}</X><Y>{y}</Y></point>' for x, y in points)}</polygon>"
        for tag, points in strokes
    )
    return f"<annotation><filename>a.jpg</filename>{of_size}{polygons}</annotation>"


@pytest.fixture
def write(tmp_path):
    def write_text(text):
        path = tmp_path / "a.xml"
        path.write_text(text)
        return path

    return write_text


def test_a_round_trip(write):
    """Vertices are labelled, points off the canvas clipped, one-point strokes are dots, and the last stroke wins."""
    strokes = [
        ("background", [(-5, 3), (20, 3), (70, 3)]),
        ("person", [(10, 10), (30, 30), (30, 39)]),
        ("cat", [(10, 10)]),
        ("dog", [(59, 400)]),
    ]
    labels = read_scribble_xml(write(xml(*strokes)), VOC_CLASSES, SIZE)
    assert labels.shape == SIZE and labels.dtype == np.uint8
    assert {*np.unique(labels)} == {0, 15, 8, 12, 255}
    assert (labels[2:5] == 0).all(), "width 3, from edge to edge"
    assert labels[10, 10] == 8 and labels[20, 20] == labels[30, 30] == labels[39, 30] == 15
    assert labels[39, 59] == 12
    assert labels[39, 10] == 255, "not closed"


@pytest.mark.parametrize(("width", "pixels"), [(1, 21), (3, 3 * 21 + 2), (5, None)])
def test_the_width_of_strokes(write, width, pixels):
    path = write(xml(("bird", [(10, 20), (30, 20)])))
    labels = read_scribble_xml(path, VOC_CLASSES, SIZE, width=width)
    rows = np.flatnonzero((labels == 3).any(axis=1))
    assert len(rows) == width and rows.mean() == 20
    assert pixels is None or (labels == 3).sum() == pixels


@pytest.mark.parametrize("names", [SHORT, VOC_CLASSES], ids=["short", "long"])
@pytest.mark.parametrize("classes", [SHORT, VOC_CLASSES, ("background", *VOC_CLASSES)], ids=["short", "long", "with 0"])
def test_short_and_long_names_of_voc(write, names, classes):
    for label, name in enumerate(names, 1):
        labels = read_scribble_xml(write(xml((name, [(3, 4)]), size=None)), classes, (9, 8), width=1)
        assert labels[4, 3] == label


@pytest.mark.parametrize(
    ("tag", "label"),
    [("background", 0), ("bkg", 0), ("Background", 0), ("mbike", 14), ("tv", 20), (" potted plant ", 16), ("sofa", 18)],
)
def test_other_names(write, tag, label):
    assert (read_scribble_xml(write(xml((tag, [(3, 4)]))), VOC_CLASSES, SIZE) == label).any()


def test_an_alias_is_no_class_if_it_could_be_two(write):
    path = write(xml(("plane", [(3, 4)])))
    with pytest.raises(DataError, match="unknown class 'plane'"):
        read_scribble_xml(path, ("aeroplane", "airplane"), SIZE)
    assert (read_scribble_xml(path, ("aeroplane", "plane"), SIZE) == 2).any()


def test_an_image_on_which_nobody_has_drawn(write):
    assert (read_scribble_xml(write(xml()), VOC_CLASSES, SIZE) == 255).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(("cat", [(1, 1)]), ("unicorn", [(1, 1)])), r"a.xml, polygon 2: unknown class 'unicorn'; the classes are"),
        (xml(("catt", [(1, 1)])), r"a.xml, polygon 1: unknown class 'catt'; did you mean 'cat'\?"),
        (xml(("", [(1, 1)])), "a.xml, polygon 1: unknown class ''"),
        (xml(("cat", [])), "a.xml, polygon 1: it has no <point>"),
        (xml(("cat", [(1, 1), ("x", 1)])), "a.xml, polygon 1, point 2: its <X> and <Y> are no numbers"),
        (xml(("cat", [(1, "inf")])), "a.xml, polygon 1, point 1: its <X> and <Y> are no numbers"),
        (
            "<annotation><polygon><point><X>1</X><Y>1</Y></point></polygon></annotation>",
            "it has 0 <tag>s and needs one",
        ),
        ("<annotation><object><name>cat</name></object></annotation>", "a.xml: not a scribble"),
        ("<html/>", "a.xml: not a scribble"),
        ("<annotation>", "a.xml cannot be read as XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', "a.xml: it declares a document type or entities"),
        (
            xml(("cat", [(1, 1)]), size=(60, 40)),
            r"a.xml: the scribble is for an image of \(60, 40\), its image is \(40, 60\)",
        ),
    ],
)
def test_mistakes_name_the_file(write, text, message):
    with pytest.raises(DataError, match=message):
        read_scribble_xml(write(text), VOC_CLASSES, SIZE)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none.xml cannot be read \(No such file"):
        read_scribble_xml(tmp_path / "none.xml", VOC_CLASSES, SIZE)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "voc_scribbles.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.xml", xml(("cat", [(3, 4)])))
        file.writestr("bad.xml", xml(("unicorn", [(3, 4)])))
        file.writestr("bomb.xml", " " * (17 << 20))
    return path


def test_a_file_in_a_zip(archive):
    assert (read_scribble_xml(str(archive / "a.xml"), VOC_CLASSES, SIZE)[4, 2:5] == 8).all()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("bad.xml", "voc_scribbles.zip/bad.xml, polygon 1: unknown class 'unicorn'"),
        ("none.xml", "there is no file none.xml in .*voc_scribbles.zip"),
        ("bomb.xml", "voc_scribbles.zip/bomb.xml unpacks to 17,825,792 bytes"),
    ],
)
def test_mistakes_in_a_zip_name_the_file(archive, member, message):
    with pytest.raises(DataError, match=message):
        read_scribble_xml(archive / member, VOC_CLASSES, SIZE)


@pytest.mark.parametrize("place", [20, 60, -30])
def test_a_damaged_zip_is_named(archive, place):
    content = bytearray(archive.read_bytes())
    content[place] ^= 0xFF
    archive.write_bytes(content)
    try:
        read_scribble_xml(archive / "a.xml", VOC_CLASSES, SIZE)
    except DataError as error:
        assert "voc_scribbles.zip" in str(error)


def test_strokes_of_a_sample_are_read_when_needed(archive, tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", SIZE[::-1]).save(image)
    marks = sample_marks(Sample("a", image, "train", scribble=ScribbleXml(archive, VOC_CLASSES, "a.xml")), 20)
    assert marks.labels[4, 3] == 8 and marks.origin[4, 3] == SCRIBBLE and MASK not in marks.origin
    wrong = Sample("a", image, "train", scribble=ScribbleXml(archive, VOC_CLASSES, "bad.xml"), source="list, line 3")
    with pytest.raises(DataError, match=r"bad.xml, polygon 1.*\(list, line 3\)"):
        sample_marks(wrong, 20)
    Image.new("RGB", (7, 7)).save(image)
    with pytest.raises(DataError, match=r"voc_scribbles.zip/a.xml: the scribble is for an image of \(40, 60\)"):
        sample_marks(Sample("a", image, "train", scribble=ScribbleXml(archive, VOC_CLASSES, "a.xml")), 20)


def test_read_strokes_keeps_what_the_file_says(write):
    strokes = read_strokes(ScribbleXml(write(xml(("cat", [(1.5, 2)]), ("bg", [(0, 0), (9, 9)]))), VOC_CLASSES))
    assert strokes.strokes == (Stroke(8, ((1.5, 2),)), Stroke(0, ((0, 0), (9, 9))))
    assert strokes.size == SIZE
    assert draw_strokes(strokes.strokes, *SIZE)[0][2, 1] == 0, "drawn later"
