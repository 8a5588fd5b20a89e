import re

import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.readers import VOC_CLASSES, load_table
from cam_pipeline.errors import DataError


def csv_table(root, *lines, encoding="utf-8", **settings):
    (root / "data.csv").write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return load_table(DataSettings(root=root, **settings))


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


def test_csv_with_masks_and_splits(tmp_path):
    table = csv_table(
        tmp_path, "image,labels,mask,split", "in/a.jpg,dog;cat,m/a.png,train", "b.png,,,val", "c.jpg,?,,train"
    )
    assert table.classes == ("cat", "dog")
    assert facts(table) == [("in/a", "train", (1, 2)), ("b", "val", ()), ("c", "train", None)]
    assert [sample.image for sample in table.samples] == [tmp_path / name for name in ("in/a.jpg", "b.png", "c.jpg")]
    assert [sample.mask for sample in table.samples] == [tmp_path / "m/a.png", None, None]


def test_csv_columns_may_stand_in_any_order_and_more_are_left_out(tmp_path):
    table = csv_table(tmp_path, "labels,author,image", "dog,me,a.jpg")
    assert facts(table) == [("a", "train", (1,))]


def test_csv_without_a_split_column_is_the_training_split(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "a.jpg,cat", train="all")) == [("a", "all", (1,))]
    assert facts(csv_table(tmp_path, "image,labels,split", "a.jpg,cat,", train="all")) == [("a", "all", (1,))]


def test_csv_cells_are_unquoted_and_names_stripped(tmp_path):
    table = csv_table(tmp_path, '"image","labels"', '"a, b.jpg"," cat ; dog;cat; "', '"c ""d"".jpg","dog"')
    assert facts(table) == [("a, b", "train", (1, 2)), ('c "d"', "train", (2,))]


def test_csv_saved_by_excel_begins_with_a_byte_order_mark(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "ä.jpg,cat", encoding="utf-8-sig")) == [("ä", "train", (1,))]


def test_csv_ids_keep_every_dot_but_the_suffix(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "x/photo.v1.jpg,cat"))[0][0] == "x/photo.v1"


def test_csv_classes_come_from_the_settings_then_a_file_then_the_table(tmp_path):
    lines = ("image,labels", "a.jpg,dog")
    assert csv_table(tmp_path, *lines).classes == ("dog",)
    (tmp_path / "classes.txt").write_text("background\nzebra\n\n dog \n")
    table = csv_table(tmp_path, *lines)
    assert table.classes == ("zebra", "dog") and table.samples[0].class_ids == (2,)
    table = csv_table(tmp_path, *lines, classes=("cat", "dog", "eel"))
    assert table.classes == ("cat", "dog", "eel") and table.samples[0].class_ids == (2,)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["a.jpg,cat"], "line 1: .* missing: image, labels"),
        (["image,split", "a.jpg,train"], "line 1: .* missing: labels"),
        ([], "line 1: .* missing: image, labels"),
        (["image,labels", "a.jpg,cat", "", "b.jpg,cat;cow"], "line 4: unknown class 'cow'; the classes are cat, dog"),
        (["image,labels", "a.jpg,cat", ",dog"], "line 3: the image cell is empty"),
        (["image,labels", "a.jpg,cat,dog"], "line 2: more or fewer cells than the header"),
        (["image,labels", "a.jpg,cat", "b.jpg"], "line 3: more or fewer cells than the header"),
        (["image,labels", 'a.jpg,"cat', "x" * 140_000], "data.csv, line .* quotation mark"),
        (["image,labels", "a.jpg,cat", "b.jpg,dog", "a.png,cat"], "the id a appears twice"),
    ],
)
def test_csv_mistakes_are_named_with_file_and_line(tmp_path, lines, complaint):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=complaint):
        csv_table(tmp_path, *lines)


def test_mistakes_in_the_class_list(tmp_path):
    with pytest.raises(DataError, match=r"no class is named: give data.classes, or a file .*classes\.txt"):
        csv_table(tmp_path, "image,labels", "a.jpg,")
    with pytest.raises(DataError, match="a class name appears twice in cat, dog, cat"):
        csv_table(tmp_path, "image,labels", "a.jpg,cat", classes=("cat", "dog", "cat"))
    assert len(csv_table(tmp_path, "image,labels", "a.jpg,", classes=tuple(map(str, range(254)))).classes) == 254
    with pytest.raises(DataError, match="255 classes are too many"):
        csv_table(tmp_path, "image,labels", "a.jpg,", classes=tuple(map(str, range(255))))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"there is no file {re.escape(str(tmp_path / 'data.csv'))}"):
        load_table(DataSettings(root=tmp_path))
    with pytest.raises(DataError, match=r"data.root: there is no folder .*nowhere.* --set data.root=FOLDER"):
        load_table(DataSettings(root=tmp_path / "nowhere"))
    (tmp_path / "data.csv").write_bytes(b"image,labels\n\xff\xfe.jpg,cat\n")
    with pytest.raises(DataError, match=r"data\.csv can not be read"):
        load_table(DataSettings(root=tmp_path))


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
