"""Colours are compared by CIEDE2000, in which about 2 is just noticeable."""

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from cam_pipeline.report.colors import class_color, tint

GREYS = np.repeat(np.arange(0, 256, 3.0)[:, None], 3, axis=1)
FADED = [None, 153, 204, 255]
"""The colour itself, and over the darkest, a middle and the lightest grey of a faded image."""


def looks(count, grey):
    """CIELAB (count, 3) of the first classes."""
    colors = np.array([class_color(index) for index in range(1, 1 + count)], dtype=float)
    return rgb2lab((colors if grey is None else tint(colors, grey)) / 255)


@pytest.mark.parametrize("grey", FADED)
@pytest.mark.parametrize(("count", "least"), [(2, 25), (20, 14), (80, 7), (254, 4)])  # VOC has 20 classes, COCO 80
def test_classes_are_told_apart(count, least, grey):
    lab = looks(count, grey)
    distances = deltaE_ciede2000(lab[:, None], lab[None])[~np.eye(count, dtype=bool)]
    assert distances.min() > least


@pytest.mark.parametrize("grey", FADED)
def test_classes_are_told_from_grey(grey):
    distances = deltaE_ciede2000(looks(254, grey)[:, None], rgb2lab(GREYS / 255)[None])
    assert distances[:20].min() > 16
    assert distances.min() > 14


def test_a_class_keeps_its_colour_whichever_is_asked_for_first():
    last_first = [class_color(index) for index in (254, 80, 20, 3)]
    assert [class_color(index) for index in (3, 20, 80, 254)] == last_first[::-1]
    assert len({class_color(index) for index in range(256)}) == 256


def test_background_and_ignored_are_grey():
    assert class_color(0) == (0, 0, 0)
    red, green, blue = class_color(255)
    assert red == green == blue > 200


@pytest.mark.parametrize("index", [-1, 256])
def test_there_is_no_colour_for_what_is_no_label(index):
    with pytest.raises(ValueError, match=r"0\.\.255"):
        class_color(index)
