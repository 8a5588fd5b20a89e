import numpy as np
import pytest

from cam_pipeline.data.drawing import draw_clicks, draw_strokes
from cam_pipeline.data.strokes import CLICK, MASK, PSEUDO, SCRIBBLE, Click, Stroke
from cam_pipeline.ops.ignore import IGNORE_INDEX


def drawn(clicks, height=5, width=7, radius=2):
    labels, origins = draw_strokes((), height, width)
    draw_clicks(clicks, labels, origins, radius)
    assert np.array_equal(labels == IGNORE_INDEX, origins == PSEUDO)
    assert {*np.unique(origins)} <= {PSEUDO, CLICK}
    return labels


def shown(labels):
    return ["".join("." if label == IGNORE_INDEX else str(label) for label in row) for row in labels.tolist()]


@pytest.mark.parametrize(
    ("radius", "rows"),
    [
        (0, ["....", "..1.", "...."]),
        (1, ["..1.", ".111", "..1."]),
        (2, [".111", "1111", ".111"]),
    ],
)
def test_a_click_is_a_disc(radius, rows):
    assert shown(drawn([Click(2.9, 1.0, 1)], 3, 4, radius)) == rows


def test_the_last_click_wins_but_each_keeps_its_own_pixel():
    assert shown(drawn([Click(1, 1, 1), Click(2, 1, 0)], 3, 4, 1)) == [".10.", "1100", ".10."]


@pytest.mark.parametrize(("x", "y"), [(-2.1, 0), (0, -2.1), (9.1, 0), (0, 7.1), (float("nan"), 0), (1e30, 0)])
def test_a_click_off_the_image_is_left_out(x, y):
    assert (drawn([Click(x, y, 1)]) == IGNORE_INDEX).all()


@pytest.mark.parametrize(("x", "y"), [(-2, 0), (9, 4), (7, 7), (0, -0.1)])
def test_a_click_beyond_the_edge_by_rounding_belongs_to_the_edge(x, y):
    labels = drawn([Click(x, y, 3)], radius=0)
    assert labels[min(max(int(y), 0), 4), min(max(int(x), 0), 6)] == 3
    assert (labels == 3).sum() == 1


def test_a_stroke_is_a_line_neither_closed_nor_filled():
    labels, origins = draw_strokes([Stroke(2, ((1, 1), (5, 1), (5, 4)))], 6, 7, line_width=1)
    assert shown(labels) == [".......", ".22222.", ".....2.", ".....2.", ".....2.", "......."]
    assert np.array_equal(origins, np.where(labels == 2, SCRIBBLE, PSEUDO))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_a_stroke_of_one_point_is_a_dot(width):
    labels, _ = draw_strokes([Stroke(0, ((4, 4),))], 9, 9, width)
    rows, columns = np.nonzero(labels == 0)
    assert labels[4, 4] == 0
    assert np.ptp(rows) == np.ptp(columns) == width - 1


def test_points_off_the_image_are_moved_to_its_edge():
    labels, _ = draw_strokes([Stroke(1, ((-50, 2), (900, 2))), Stroke(2, ((3, 1e9),))], 6, 7, line_width=1)
    assert shown(labels) == [".......", ".......", "1111111", ".......", ".......", "...2..."]


def test_a_later_stroke_covers_an_earlier_one_and_wider_ones_cover_more():
    strokes = [Stroke(1, ((0, 4), (9, 4))), Stroke(2, ((4, 0), (4, 9)))]
    areas = []
    for width in (1, 3, 5):
        labels, _ = draw_strokes(strokes, 10, 10, width)
        assert labels[4, 4] == 2 and labels[4, 0] == 1 and {*np.unique(labels)} == {1, 2, IGNORE_INDEX}
        areas.append((labels != IGNORE_INDEX).sum())
    assert areas == sorted(areas) and len({*areas}) == 3


def test_a_filled_stroke_is_a_region():
    labels, origins = draw_strokes([Stroke(1, ((1, 1), (4, 1), (4, 3), (1, 3)), filled=True)], 5, 6)
    assert shown(labels) == ["......", ".1111.", ".1111.", ".1111.", "......"]
    assert np.array_equal(origins, np.where(labels == 1, MASK, PSEUDO))
