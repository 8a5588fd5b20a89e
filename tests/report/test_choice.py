from itertools import pairwise
from pathlib import Path

import pytest

from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.report.choice import MOST, Candidate, choose, named

CLASSES = ("background", "cat", "dog", "cow")


def candidates(*class_ids, confidence=lambda index: None):
    return [Candidate(str(index), ids, confidence(index)) for index, ids in enumerate(class_ids)]


def shows(found, all_of):
    """How many chosen images show each class."""
    by_name = {one.name: one for one in all_of}
    shown = [class_id for name in found.reasons for class_id in by_name[name].class_ids]
    return [shown.count(class_id) for class_id in range(1, 1 + max(map(max, (c.class_ids or (0,) for c in all_of))))]


def test_the_least_confident_come_first():
    images = candidates(*[(1,)] * 20, confidence=lambda index: 1 - 0.01 * (index * 7 % 20))
    found = choose(images, CLASSES, "train")
    assert list(found.reasons.items())[:2] == [("17", "least confident (0.810)"), ("14", "least confident (0.820)")]
    assert len(found.reasons) == 8
    assert found.title == "8 of 20 images of 'train'; 2 least confident of 20 looked at"


def test_rare_classes_are_shown_twice():
    images = candidates(*[(1,)] * 500, (2,), (1,), (2,), (3,))
    found = choose(images, CLASSES, "train")
    assert shows(found, images)[1:] == [2, 1] and len(found.reasons) == 8  # there is only one cow
    assert {found.reasons[name] for name in ("500", "502")} == {"for dog"} and found.reasons["503"] == "for cow"
    assert found.title == "8 of 504 images of 'train'; 5 for their classes"


def test_there_are_more_rows_if_classes_need_them():
    images = candidates(*[(index % 15 + 1,) for index in range(300)])
    found = choose(images, ("background", *map(str, range(1, 16))), "train")
    assert shows(found, images) == [2] * 15 and len(found.reasons) == 30


def test_images_that_show_several_missing_classes_are_preferred():
    images = candidates(*[(index % 3 + 1,) for index in range(300)], (1, 2, 3), (1, 2, 3))
    found = choose(images, CLASSES, "train", count=3)
    assert list(found.reasons)[:2] == ["300", "301"] or list(found.reasons)[:2] == ["301", "300"]


def test_every_class_once_comes_before_any_twice():
    images = candidates(*[(index % 3 + 1,) for index in range(30)])
    assert shows(choose(images, CLASSES, "train", count=3), images) == [1, 1, 1]


def test_what_finds_no_room_is_said():
    images = candidates(*[(index % 3 + 1,) for index in range(30)])
    found = choose(images, CLASSES, "train", count=2)
    assert len(found.reasons) == 2 and found.title.endswith("; no room for cow (--images)")
    many = candidates(*[(index % 250 + 1,) for index in range(500)])
    found = choose(many, ("background", *map(str, range(1, 251))), "train")
    assert len(found.reasons) == MOST and found.title.endswith(", 4 and 207 more (--images)")


@pytest.mark.parametrize("count", [None, 1, 5, 100])
@pytest.mark.parametrize("images", [1, 3, 12])
def test_number_of_rows(count, images):
    some = candidates(*[()] * images, confidence=float)
    assert len(choose(some, CLASSES, "train", count).reasons) == min(images, 8 if count is None else count)


def test_equally_good_images_are_spread():
    found = choose(candidates(*[(1,)] * 100), CLASSES, "train")
    places = sorted(map(int, found.reasons))
    assert all(5 <= second - first <= 25 for first, second in pairwise(places))


# Ids


def table_of(*names):
    return Table(("cat",), tuple(Sample(name, Path(f"{name}.png"), "train") for name in names))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a/1"], ["a/1"]),
        (["a/2,a/1"], ["a/2", "a/1"]),
        (["a/2, a/1 ,", "x,y"], ["a/2", "a/1", "x,y"]),
        (["a/1", "a/1"], ["a/1"]),
        ([], []),
    ],
)
def test_ids_name_samples(given, expected):
    assert [sample.id for sample in named(table_of("a/1", "a/2", "x,y"), given)] == expected


@pytest.mark.parametrize("given", [[""], [",", " , "]])
def test_ids_without_a_name_are_a_mistake(given):
    with pytest.raises(DataError, match=r"^--ids names no image; ids look like a/1$"):
        named(table_of("a/1"), given)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("img_00001", "did you mean images/img_00001?"),
        ("img_00001.jpg", "did you mean images/img_00001?"),
        ("images/IMG_00002", "did you mean images/img_00002?"),
        ("images/img_0001", "did you mean images/img_00"),
        ("zebra", "ids look like images/img_00001"),
    ],
)
def test_an_unknown_id_is_told_with_those_like_it(given, near):
    with pytest.raises(DataError, match=f"^--ids: there is no image {given}; ") as error:
        named(table_of("images/img_00001", "images/img_00002"), ["images/img_00001", given])
    assert near in str(error.value)
