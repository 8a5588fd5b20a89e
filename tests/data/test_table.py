from pathlib import Path

import pytest

from cam_pipeline.data.table import Sample, Table, check_files, class_index, image_labels, labelled, masked
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


def test_unknown_labels_are_refused_but_an_image_without_classes_is_not():
    known = [sample("a", class_ids=()), sample("b", class_ids=(2,))]
    assert labelled(iter(known)) == known
    with pytest.raises(DataError, match="image c of split 'val' has no image-level labels"):
        labelled([*known, sample("c", "val")])


def test_masks_must_exist(tmp_path):
    mask = tmp_path / "a.png"
    mask.touch()
    assert masked([sample("a", mask=mask)])[0].mask == mask
    with pytest.raises(DataError, match=r"image b of split 'train' has no mask \(looked for .*b\.png\)"):
        masked([sample("a", mask=mask), sample("b", mask=tmp_path / "b.png")])
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


def test_class_index_counts_from_one_and_names_the_place_of_a_mistake():
    look_up = class_index(("cat", "dog"))
    assert [look_up(name, "") for name in ("cat", "dog")] == [1, 2]
    with pytest.raises(DataError, match=r"^data\.csv, line 7: unknown class 'dgo'; the classes are cat, dog$"):
        look_up("dgo", "data.csv, line 7")
