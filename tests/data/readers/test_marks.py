import zipfile

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.strokes import ScribbleXml
from cam_pipeline.errors import DataError


@pytest.fixture
def voc(tmp_path):
    """A data set in the VOC layout of the images p1 and p2; reads it."""
    for folder in ("ImageSets/Segmentation", "JPEGImages", "Scribbles", "SegmentationClass"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "image_labels.txt").write_text("p1 cat\np2 dog\n")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("p1\np2\n")

    def read(problems=None, **settings):
        return load_table(DataSettings(root=tmp_path, format="voc", val="", **settings), problems).samples

    return read


def scribbles(samples, root):
    return [sample.scribble and sample.scribble.relative_to(root).as_posix() for sample in samples]


def test_the_folder_of_the_voc_layout(voc, tmp_path):
    assert scribbles(voc(), tmp_path) == [None, None]
    (tmp_path / "Scribbles" / "p2.png").touch()
    assert scribbles(voc(), tmp_path) == [None, "Scribbles/p2.png"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "p1.png").touch()
    assert scribbles(voc(scribbles="other"), tmp_path) == ["other/p1.png", None]
    for path in (tmp_path / "Scribbles").iterdir():
        path.unlink()
    (tmp_path / "Scribbles").rmdir()
    assert scribbles(voc(), tmp_path) == [None, None], "nobody has to have the folder"


def test_a_folder_that_is_named_must_be_there(voc):
    with pytest.raises(DataError, match=r"data.scribbles: there is no folder .*scribles; correct it"):
        voc(scribbles="scribles")


def test_a_folder_whose_files_have_other_names_is_warned_of(voc, tmp_path):
    (tmp_path / "Scribbles" / "p7.png").touch()
    problems = AllProblems()
    voc(problems)
    assert "has the name of an image, such as p1.png" in problems.warnings[0].message


def test_a_scribble_that_leads_out_of_the_root_is_refused(voc, tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "p1.png"
    outside.touch()
    (tmp_path / "Scribbles" / "p1.png").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the data root"):
        voc()


def test_scribbles_beside_other_layouts(tmp_path):
    for name in ("s/cat/a.png", "cat/a.jpg", "dog/b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table = load_table(DataSettings(root=tmp_path, format="folders", scribbles="s"))
    assert table.classes == ("cat", "dog"), "the folder of scribbles is no class"
    assert scribbles(table.samples, tmp_path) == ["s/cat/a.png", None]
    (tmp_path / "data.csv").write_text("image,labels,scribble\ncat/a.jpg,cat,dog/own.png\ndog/b.jpg,dog,\n")
    table = load_table(DataSettings(root=tmp_path, scribbles="s"))
    assert scribbles(table.samples, tmp_path) == ["dog/own.png", None], "the table's own comes first"


def test_neither_an_image_nor_its_mask_is_a_scribble(tmp_path):
    for name in ("a.png", "b.jpg", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "data.csv").write_text("image,labels,mask\na.png,cat,\nb.jpg,dog,b.png\n")
    samples = load_table(DataSettings(root=tmp_path, scribbles=".")).samples
    assert scribbles(samples, tmp_path) == [None, None]


def test_a_class_that_is_drawn_counts_as_labelled(tmp_path):
    for name, label in (("a", 2), ("b", 0), ("c", 9)):
        Image.new("RGB", (5, 4)).save(tmp_path / f"{name}.jpg")
        numbers = np.full((4, 5), 255, np.uint8)
        numbers[1:3, 2] = label, 0
        Image.fromarray(numbers).save(tmp_path / f"{name}-s.png")
    rows = "a.jpg,?,a-s.png\nb.jpg,?,b-s.png\nc.jpg,?,c-s.png\nd.jpg,cat;dog,a-s.png\ne.jpg,?,none.png\n"
    (tmp_path / "data.csv").write_text(f"image,labels,scribble\n{rows}")
    samples = load_table(DataSettings(root=tmp_path)).samples
    assert [sample.class_ids for sample in samples] == [(2,), None, None, (1, 2), None]


def test_files_of_strokes_in_a_folder_and_in_a_zip(voc, tmp_path):
    (tmp_path / "Scribbles" / "p1.xml").write_text("<annotation/>")
    first, second = voc()
    assert first.scribble == ScribbleXml(tmp_path / "Scribbles/p1.xml", ("cat", "dog")) and second.scribble is None
    archive = tmp_path / "s.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("p1.xml", "in/p2.xml", "__MACOSX/in/._p2.xml", "p1.png"):
            file.writestr(name, "<annotation/>")
    first, second = voc(scribbles="s.zip")
    assert first.scribble == ScribbleXml(archive, ("cat", "dog"), "p1.xml")
    assert second.scribble == ScribbleXml(archive, ("cat", "dog"), "in/p2.xml")
    archive.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"s\.zip cannot be read as a zip file"):
        voc(scribbles="s.zip")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "the list names scribbles in pascal_2012_scribble; set data.scribbles"),
        ({"scribbles": "pascal_2012_scribble"}, ""),
    ],
    ids=["not set", "set"],
)
def test_a_list_that_names_scribbles_beside_the_images(voc, tmp_path, settings, words):
    (tmp_path / "Scribbles").rename(tmp_path / "pascal_2012_scribble")
    (tmp_path / "pascal_2012_scribble" / "p1.png").touch()
    lines = "JPEGImages/p1.jpg pascal_2012_scribble/p1.png\nJPEGImages/p2.jpg pascal_2012_scribble/p2.png\n"
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(lines)
    problems = AllProblems()
    assert [sample.id for sample in voc(problems, **settings)] == ["p1", "p2"]
    assert not problems.errors and [words in problem.message for problem in problems.warnings] == [True] * bool(words)


def test_two_scribbles_of_one_image_are_named(voc, tmp_path):
    for name in ("p1.png", "p1.xml"):
        (tmp_path / "Scribbles" / name).touch()
    with pytest.raises(DataError, match=r"Scribbles/p1.png and p1.xml are both scribbles of image p1; delete one"):
        voc()


def test_strokes_in_the_column_of_a_table(tmp_path):
    stroke = "<annotation><polygon><tag>dog</tag><point><X>1</X><Y>1</Y></point></polygon></annotation>"
    (tmp_path / "a.xml").write_text(stroke)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as file:
        file.writestr("in/b.xml", stroke)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "b.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "data.csv").write_text("image,labels,scribble\na.png,?,a.xml\nb.png,cat,s.zip/in/b.xml\n")
    first, second = load_table(DataSettings(root=tmp_path)).samples
    assert first.scribble == ScribbleXml(tmp_path / "a.xml", ("cat", "dog")) and first.class_ids == (2,)
    assert second.scribble == ScribbleXml(tmp_path / "s.zip", ("cat", "dog"), "in/b.xml")
