import numpy as np
import pytest

from cam_pipeline.refinement.summary import LabelCounts, classes_lost, counted, shares_line, total_of, warnings

CLASSES = ("background", "cat", "dog")


def image(name="a", class_ids=(1, 2), **pixels):
    """An image with these numbers of pixels: `background`, `cat`, `dog`, `ignored`."""
    labels = {"background": 0, "cat": 1, "dog": 2, "ignored": 255}
    return LabelCounts(name, class_ids, {labels[key]: count for key, count in pixels.items()})


def test_pixels_are_counted():
    found = counted("a", (1, 7), np.array([[0, 1, 255], [0, 0, 1]], dtype=np.uint8))
    assert found == LabelCounts("a", (1, 7), {0: 3, 1: 2, 255: 1})
    assert found.lost == (7,) and found.largest == (2 / 5, 1)


@pytest.mark.parametrize(
    ("pixels", "largest"),
    [
        ({"background": 9, "cat": 91}, (0.91, 1)),
        ({"background": 10, "cat": 90}, (0.9, 1)),
        ({"cat": 50, "dog": 51}, (51 / 101, 2)),
        ({"cat": 55, "ignored": 45}, (1.0, 1)),  # all that is decided
        ({"cat": 45, "ignored": 55}, (0.0, 0)),  # too little is
        ({"background": 100}, (0.0, 0)),
        ({"ignored": 100}, (0.0, 0)),
        ({}, (0.0, 0)),
    ],
)
def test_the_largest_class(pixels, largest):
    assert image(**pixels).largest == largest


def test_shares_of_pixels():
    images = [image(background=50, cat=30, ignored=20), image("b", cat=10, dog=90)]
    assert shares_line(images, CLASSES) == "2 images: background 25.0 %, dog 45.0 %, cat 20.0 %, ignored 10.0 %"
    assert shares_line([], CLASSES) == "0 images: background 0.0 %, ignored 0.0 %"
    shown = [image(class_ids=(2,), background=1)]
    assert shares_line(shown, CLASSES) == "1 image: background 100.0 %, dog 0.0 %, ignored 0.0 %"


def test_of_many_classes_the_largest_and_the_smallest_are_named():
    found = LabelCounts("a", (), {number: number for number in range(81)})
    line = shares_line([found], ["background", *(f"c{number}" for number in range(1, 81))])
    assert line.startswith("1 image: background 0.0 %, c80 2.5 %, c79 2.4 %,")
    assert line.count("%") == 14 and "c75 2.3 %, ... (68 more), c6 0.2 %" in line and line.endswith("ignored 0.0 %")


def test_flooded_images_are_named_the_worst_first():
    images = [image(str(share), (1,), background=100 - share, cat=share) for share in (90, 93, 99, 91, 97)]
    assert warnings(images, CLASSES) == [
        "one class covers over 90 % of 4 of 5 images: 99 (cat 99 %), 97 (cat 97 %), 93 (cat 93 %) and 1 more; if "
        "these are no close-ups, raise refine.background"
    ]


def test_images_that_lost_classes_are_named_those_that_lost_all_first():
    images = [image("a", cat=1, background=9), image("b", (2,), background=1), image("c", (1,), cat=1, background=1)]
    assert warnings(images, CLASSES) == [
        "2 of 3 images have no pixel of a class that they show: b (dog), a (dog); no image at all has a pixel of dog; "
        "lower refine.background to give them more"
    ]
    assert classes_lost(images, total_of(images)) == [2]


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([image(background=5, cat=5, dog=5)], 0),
        ([image(background=10)], 1),  # no class anywhere, and nothing more
        ([image(background=5, ignored=5)], 1),
        ([image(class_ids=(), background=10)], 0),
        ([image(ignored=10)], 1),
        ([image(class_ids=(), ignored=10)], 1),
        ([image(cat=10)], 2),  # flooded, and dog is lost
        ([image(cat=5, dog=5)], 1),  # no background at all
        ([], 0),
    ],
)
def test_number_of_lines(images, count):
    found = warnings(images, CLASSES)
    assert len(found) == count
    assert not count or images[0].pixels.get(0) != 10 or found[0].startswith("no pixel has a class")


def test_labels_that_are_ignored_may_be_decided_otherwise():
    assert "lower refine.background or labels.high, " in warnings([image(background=5, ignored=5)], CLASSES)[0]
    assert "lower refine.background, " in warnings([image(background=5)], CLASSES)[0]
    assert "lower refine.background, " in warnings([image(background=5, ignored=5)], CLASSES, "agreement")[0]
    assert warnings([image(ignored=5)], CLASSES, "agreement") == [
        "every pixel is ignored; set another labels.undecided"
    ]
    assert warnings([image(ignored=5)], CLASSES) == ["every pixel is ignored; lower labels.high or raise labels.low"]


def test_no_background_score_mends_both():
    """Many flooded images beside many that lost a class; a few of either may be right."""
    flooded, lost, sound = image("a", (1,), cat=1), image("b", (2,), background=1, cat=1), image("c", (), background=1)
    both = warnings([flooded, lost, sound], CLASSES)
    assert len(both) == 2 and all(line.endswith("; train the classifier longer (train_cls.epochs)") for line in both)
    few = warnings([flooded, lost, *[sound] * 18], CLASSES)
    assert few[0].endswith("raise refine.background") and few[1].endswith("; lower refine.background to give them more")


def test_of_many_lost_classes_some_are_named():
    classes = ["background", *(f"c{number}" for number in range(1, 81))]
    found = [LabelCounts("a", tuple(range(1, 81)), {0: 5, 80: 1})]
    (line,) = warnings(found, classes)
    assert "; no image at all has a pixel of c1, c2, " in line and ", c12 and 67 more; lower" in line
