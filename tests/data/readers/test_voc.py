import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.readers import VOC_CLASSES, load_table
from cam_pipeline.errors import DataError


def voc_folder(root, labels, train=(), val=()):
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True)
    (root / "image_labels.txt").write_text(labels)
    for split, names in (("train", train), ("val", val)):
        if names:
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def voc_table(root, **settings):
    return load_table(DataSettings(root=root, format="voc", **settings))


def facts(table):
    return [(sample.id, sample.split, sample.class_ids) for sample in table.samples]


def test_voc_layout(tmp_path):
    voc_folder(tmp_path, "p1 dog cat\n\nv1\np2  cat \nelsewhere cat\n", train=["p1", "p2", "p3"], val=["v1"])
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    (tmp_path / "JPEGImages" / "p2.png").touch()
    (tmp_path / "SegmentationClass" / "p1.png").touch()
    table = voc_table(tmp_path)
    assert table.classes == ("cat", "dog")
    assert facts(table) == [
        ("p1", "train", (1, 2)), ("p2", "train", (1,)), ("p3", "train", None), ("v1", "val", ()),
    ]  # fmt: skip
    images = [sample.image.relative_to(tmp_path).as_posix() for sample in table.samples]
    assert images == ["JPEGImages/p1.jpg", "JPEGImages/p2.png", "JPEGImages/p3.jpg", "JPEGImages/v1.jpg"]
    assert [sample.mask is not None for sample in table.samples] == [True, False, False, False]


def test_voc_without_a_class_file_has_the_twenty_classes(tmp_path):
    voc_folder(tmp_path, "p1 tvmonitor aeroplane\n", train=["p1"])
    table = voc_table(tmp_path, val="")
    assert table.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert table.samples[0].class_ids == (1, 20)


def test_voc_mistakes_are_named(tmp_path):
    voc_folder(tmp_path, "p1 cat\np2 cat unicorn\n", train=["p1"])
    with pytest.raises(DataError, match=r"image_labels\.txt, line 2: unknown class 'unicorn'"):
        voc_table(tmp_path, val="")
    (tmp_path / "image_labels.txt").write_text("p1 cat\n")
    with pytest.raises(DataError, match=r"there is no file .*ImageSets/Segmentation/val\.txt"):
        voc_table(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("v1\np1\n")
    with pytest.raises(DataError, match="the id p1 appears twice"):
        voc_table(tmp_path)
    (tmp_path / "image_labels.txt").unlink()
    with pytest.raises(DataError, match=r"there is no file .*image_labels\.txt"):
        voc_table(tmp_path)


def test_voc_takes_images_of_any_ending_and_masks_of_another_folder(tmp_path):
    voc_folder(tmp_path, "p1 cat\nsub/p2 cat\n", train=["p1", "sub/p2"])
    for name in ("JPEGImages/p1.TIF", "JPEGImages/sub/p2.png", "Other/p1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = voc_table(tmp_path, val="", masks="Other")
    images = [sample.image.relative_to(tmp_path).as_posix() for sample in table.samples]
    assert images == ["JPEGImages/p1.TIF", "JPEGImages/sub/p2.png"]
    assert [sample.mask for sample in table.samples] == [tmp_path / "Other/p1.png", None]
    assert [sample.class_ids for sample in table.samples] == [(8,), (8,)]


def test_voc_two_images_of_one_stem_are_refused(tmp_path):
    voc_folder(tmp_path, "p1 cat\n", train=["p1"])
    for name in ("p1.jpg", "p1.png"):
        (tmp_path / "JPEGImages" / name).touch()
    with pytest.raises(DataError, match=r"train\.txt, line 1: p1\.jpg and p1\.png in .*JPEGImages both fit; rename or"):
        voc_table(tmp_path, val="")


def test_voc_ids_do_not_lead_out_of_the_root(tmp_path):
    root = tmp_path / "root"
    voc_folder(root, "p1 cat\n", train=["p1", "../../x"])
    (tmp_path / "x.jpg").touch()
    with pytest.raises(DataError, match=r"train\.txt, line 2: 'JPEGImages/../../x.jpg' is no path below the data root"):
        voc_table(root, val="")
    (root / "ImageSets/Segmentation/train.txt").write_text("p1\n")
    (root / "JPEGImages/p1.png").symlink_to(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"train\.txt, line 1: 'JPEGImages/p1.png' leads out of the data root"):
        voc_table(root, val="")


def test_voc_lists_and_labels_have_a_line_for_each_image(tmp_path):
    voc_folder(tmp_path, "p1 cat\n\np2 dog\np1 dog\n", train=["p1"])
    with pytest.raises(DataError, match=r"image_labels\.txt, line 4: p1 already has labels in .*txt, line 1; put all"):
        voc_table(tmp_path, val="")
    (tmp_path / "image_labels.txt").write_text("p1 cat\n")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("p1\np1 1\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: there must be one id in a line, not 'p1 1'"):
        voc_table(tmp_path, val="")


XML = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"


def xml_folder(root, annotations):
    voc_folder(root, "", train=[*annotations, "bare"])
    (root / "Annotations").mkdir()
    for name, objects in annotations.items():
        content = "".join(OBJECT.format(shown, int(difficult)) for shown, difficult in objects)
        (root / "Annotations" / f"{name}.xml").write_text(XML.format(content))


def xml_table(root, **settings):
    return voc_table(root, val="", labels="Annotations", **settings)


def test_voc_labels_from_xml(tmp_path):
    objects = [("dog", False), ("cat", True), ("dog", False)]  # a difficult object is there all the same
    xml_folder(tmp_path, {"p1": objects, "p2": []})
    table = xml_table(tmp_path)
    assert table.classes == VOC_CLASSES
    assert facts(table) == [("p1", "train", (8, 12)), ("p2", "train", ()), ("bare", "train", None)]


def test_voc_xml_of_other_classes_brings_its_own(tmp_path):
    xml_folder(tmp_path, {"p1": [("zebra", False)], "p2": [("ape", False), ("cat", False)]})
    table = xml_table(tmp_path)
    assert table.classes == ("ape", "cat", "zebra") and table.samples[1].class_ids == (1, 2)
    with pytest.raises(DataError, match=r"Annotations/p1\.xml: unknown class 'zebra'; did you mean 'zebras'\?"):
        xml_table(tmp_path, classes=("ape", "cat", "zebras"))


def test_voc_xml_is_read_again_when_it_changes(tmp_path):
    xml_folder(tmp_path, {"p1": [("dog", False)]})
    assert xml_table(tmp_path).samples[0].class_ids == (12,)
    (tmp_path / "Annotations/p1.xml").write_text(XML.format(OBJECT.format("person", 0)))
    assert xml_table(tmp_path).samples[0].class_ids == (15,)


BOMB = '<!DOCTYPE a [<!ENTITY e "{}">{}]><annotation><object><name>&e9;</name></object></annotation>'.format(
    "x" * 1000, "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "&e;" * 10}">' for n in range(10))
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read as XML"),
        ("<annotation><object>", "cannot be read as XML"),
        ("<annotation>\0</annotation>", "cannot be read as XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "cannot be read as XML"),
        ("<html/>", "not a VOC annotation"),
        ("<annotation><object/></annotation>", "each <object> of an <annotation> has a <name>"),
        ("<annotation><object><name> </name></object></annotation>", "each <object> of an <annotation> has a <name>"),
        ('<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>', "declares a document type or entities"),
        (BOMB, "declares a document type or entities, which are not read; delete them"),
    ],
)
def test_voc_xml_that_can_not_be_read_is_named(tmp_path, content, complaint):
    xml_folder(tmp_path, {"p1": []})
    (tmp_path / "Annotations/p1.xml").write_text(content)
    with pytest.raises(DataError, match=rf"Annotations/p1\.xml.*{complaint}") as caught:
        xml_table(tmp_path)
    assert "\n" not in str(caught.value)


def test_voc_without_a_label_file_points_to_the_xml(tmp_path):
    xml_folder(tmp_path, {"p1": []})
    (tmp_path / "image_labels.txt").unlink()
    with pytest.raises(DataError, match=r"no file .*image_labels\.txt; for XML files set data\.labels to their folder"):
        voc_table(tmp_path, val="")


def test_voc_lines_are_those_that_an_editor_counts(tmp_path):
    voc_folder(tmp_path, "p1\u2028cat\vdog\np2 unicorn\n", train=["p1\x0c", "p1 1"])
    with pytest.raises(DataError, match=r"train\.txt, line 2: there must be one id"):
        voc_table(tmp_path, val="")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("p1\n")
    with pytest.raises(DataError, match=r"image_labels\.txt, line 2: unknown class 'unicorn'"):
        voc_table(tmp_path, val="")
