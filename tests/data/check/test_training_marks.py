import logging

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.check.training_marks import check_marked, unmarked, without_marks
from cam_pipeline.data.strokes import Click
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

CLASSES = ("cat", "dog")


@pytest.fixture
def sample(tmp_path):
    """Makes an image of 3 x 4 pixels with clicks at the middle of it, and a scribble of one label or none."""

    def make(name, *clicks, scribble=None):
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
        path = None
        if scribble is not None:
            labels = np.full((3, 4), 255, np.uint8)
            labels[1] = scribble
            Image.fromarray(labels).save(path := tmp_path / f"s{name}.png")
        return Sample(
            name, tmp_path / f"{name}.png", "train", (1,), clicks=tuple(Click(2, 1, c) for c in clicks), scribble=path
        )

    return make


def check(samples, caplog, regularized=False):
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        check_marked("train", samples, CLASSES, regularized)
    return [record.getMessage() for record in caplog.records]


def test_marks_that_teach_everything(sample, caplog):
    samples = [sample("a", scribble=0), sample("b", scribble=1), sample("c", scribble=2)]
    assert check(samples, caplog) == ["train_seg: 3 images, of 3 of them 33.33 % of the pixels are marked"]
    assert unmarked(samples) == "" == without_marks("mixed", "train", samples)


@pytest.mark.parametrize("regularized", [True, False])
def test_images_without_marks_are_named(sample, caplog, regularized):
    """An image whose scribble says nothing counts as one without."""
    marked = [sample("a", 0), sample("b", 1), sample("c", scribble=2), sample("empty", scribble=255)]
    bare = [sample(f"bare{number}") for number in range(6)]
    line = check([*marked, *bare], caplog, regularized)[-1]
    names = "empty, bare0, bare1, bare2, bare3 and 2 more"
    assert line.startswith(f"train_seg: 7 of 10 training images have no click and no scribble: {names}; ")
    assert line.endswith(
        "the regularised loss learns from them all the same" if regularized else "nothing is learned from them"
    )
    assert unmarked([*marked, *bare]).startswith("6 of 10 training images")


@pytest.mark.parametrize(
    ("labels", "words"),
    [((0, 1), "no click or scribble is dog, so"), ((1, 2), "no click or scribble is background, so everything")],
)
def test_what_nobody_marked_is_told_of(sample, caplog, labels, words):
    lines = check([sample(str(label), label) for label in labels], caplog)
    assert len(lines) == 2 and words in lines[1]


def test_a_split_without_marks_is_refused(sample, caplog):
    words = r"^train_seg.supervision = 'scribbles': no image of split 'train' has a click or a scribble; add some"
    with pytest.raises(DataError, match=words):
        check([sample("a"), sample("b")], caplog)


@pytest.mark.parametrize("make", [{"scribble": 255}, {"scribble": 0}])
def test_marks_without_a_class_are_refused(sample, caplog, make):
    with pytest.raises(DataError, match=r"no click or scribble of split 'train' is of a class"):
        check([sample("a", **make)], caplog)
