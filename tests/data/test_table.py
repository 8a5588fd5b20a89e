from pathlib import Path

import pytest

from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.data.table import (
    Sample,
    Table,
    absent_classes,
    check_files,
    class_counts,
    labelled,
    masked,
    unknown_class,
    warn_of_absent_classes,
    without_classes,
)
from cam_pipeline.data.views import image_labels
from cam_pipeline.errors import DataError


def sample(name, split="train", class_ids=None, mask=None):
    return Sample(name, Path(f"{name}.jpg"), split, class_ids, mask)


def test_splits_keep_the_order_of_the_table():
    table = Table(("cat",), (sample("a", "val"), sample("b"), sample("c", "test"), sample("d"), sample("e", "val")))
    assert [one.id for one in table.split("train")] == ["b", "d"]
    assert [one.id for one in table.split("train", "val")] == ["a", "b", "d", "e"]


def test_an_empty_split_is_an_error_that_names_the_others():
    table = Table(("cat",), (sample("a", "val"), sample("b")))
    with pytest.raises(DataError, match=r"no images in split 'tarin' \(it has: train, val\)"):
        table.split("train", "tarin")
    with pytest.raises(DataError, match=r"no images in split 'train' \(it has no images at all\)"):
        Table(("cat",), ()).split("train")


def test_the_validation_split_may_be_missing_unless_it_was_named():
    table = Table(("cat",), (sample("a"), sample("b", "dev"), sample("c", "")))
    assert [one.id for one in table.validation("dev")] == ["b"]
    assert table.validation("val") == table.validation("") == []
    with pytest.raises(DataError, match=r"no images in split 'vla' \(it has: , dev, train\); set data.val to one that"):
        table.validation("vla")


def test_unknown_labels_are_refused_but_an_image_without_classes_is_not():
    known = [sample("a", class_ids=()), sample("b", class_ids=(2,))]
    assert labelled(iter(known)) == known
    with pytest.raises(DataError, match="image c of split 'val' has no image-level labels"):
        labelled([*known, sample("c", "val")])


def test_masks_must_exist(tmp_path):
    mask = tmp_path / "a.png"
    mask.touch()
    assert masked([sample("a", mask=mask)])[0].mask == mask
    with pytest.raises(
        DataError, match=r"image b of split 'train' has no mask \(looked for .*b\.png\); add it, or take"
    ):
        masked([sample("a", mask=mask), sample("b", mask=tmp_path / "b.png")])
    outlined = sample("a", mask=CocoMask(2, 3, (), "x.json, image 1"))
    assert masked([outlined]) == [outlined]
    with pytest.raises(DataError, match=r"image c .* a mask column"):
        masked([sample("c")])


def test_image_labels_have_no_background_column():
    samples = [sample("a", class_ids=(1, 3)), sample("b", class_ids=()), sample("c"), sample("d", class_ids=(2,))]
    assert image_labels(iter(samples), 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_a_missing_image_is_named(tmp_path):
    there = Sample("a", tmp_path / "a.jpg", "train")
    there.image.touch()
    check_files([there])
    with pytest.raises(DataError, match=r"image b: there is no file .*gone\.jpg.* 'val'"):
        check_files([there, Sample("b", tmp_path / "gone.jpg", "val")])


def test_an_unknown_class_is_answered_with_the_nearest_or_with_all():
    assert unknown_class("dgo", ("cat", "dog")) == "unknown class 'dgo'; did you mean 'dog'?"
    assert unknown_class("zebra", ("cat", "dog")) == "unknown class 'zebra'; the classes are cat, dog"
    assert "the classes are" in unknown_class("x" * 100_000, ("x" * 99_999,))  # at once


def test_classes_without_an_image_are_named_in_one_line(caplog):
    samples = [sample("a", class_ids=(2,)), sample("b", class_ids=()), sample("c")]
    assert absent_classes(("cat", "dog", "eel"), samples) == ["cat", "eel"]
    warn_of_absent_classes(("cat", "dog", "eel"), samples)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 classes have no training image, so nothing is learned about them: cat, eel"
    ]
    caplog.clear()
    warn_of_absent_classes(("dog",), [sample("a", class_ids=(1,))])
    assert not caplog.records


def test_messages_say_where_a_sample_is_named():
    there = Sample("a", Path("a.jpg"), "train", source="data.csv, line 7")
    assert there == Sample("a", Path("a.jpg"), "train")
    with pytest.raises(DataError, match=r"^image a of split 'train' has no image-level labels \(data.csv, line 7\); "):
        labelled([there])
    with pytest.raises(DataError, match=r"^image a \(data.csv, line 7\): there is no file a.jpg; "):
        check_files([there])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CAT", "unknown class 'CAT'; did you mean 'cat'?"),
        ("red_panda", "unknown class 'red_panda'; did you mean 'red panda'?"),
        ("cat|dog", "unknown class 'cat|dog'; cat and dog are labels of their own: separate them as in the docs"),
        ("_background_", "unknown class '_background_'; the background is no label: an image that shows no class has"),
        ("nan", "unknown class 'nan'; is it a missing value? An image that shows no class has no label"),
    ],
)
def test_unknown_class_says_what_the_name_looks_like(name, message):
    assert unknown_class(name, ("cat", "dog", "red panda")).startswith(message)


def test_unknown_class_of_a_list_in_one_line():
    message = "unknown class 'cat'; the list of classes has 'cat, dog' as one: write one a line"
    assert unknown_class("cat", ("cat, dog",)) == message


def test_class_counts():
    samples = [sample("a", class_ids=(2,)), sample("b", class_ids=(1, 2)), sample("c", class_ids=())]
    assert class_counts(("cat", "dog", "eel"), samples) == (
        "3 classes, 3 training images: dog 2, cat 1; 1 show none of them"
    )
    assert class_counts(("cat",), samples[2:]) == "1 class, 1 training image: none shows one; 1 show none of them"
    assert "images: '12' 1; 1 show" in class_counts(("12",), [sample("a", class_ids=(1,)), sample("b", class_ids=())])
    many = tuple(f"c{number}" for number in range(1, 21))
    samples = [sample(str(n), class_ids=tuple(range(n, 21))) for n in range(1, 1201)]
    assert class_counts(many, samples) == (
        "20 classes, 1,200 training images: c20 20, c19 19, c18 18, c17 17, c16 16, c15 15, ... (8 more), c6 6, c5 5, "
        "c4 4, c3 3, c2 2, c1 1; 1,180 show none of them"
    )


def test_a_split_of_which_no_image_shows_a_class():
    nothing = [sample("a", class_ids=()), sample("b", class_ids=())]
    assert without_classes(nothing, "train").startswith("no image of split 'train' shows a class")
    assert without_classes([*nothing, sample("c", class_ids=(1,))], "train") == ""
