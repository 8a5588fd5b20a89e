import numpy as np
import pytest

from cam_pipeline.ops.clicks import marks_on_grid


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2, 4), [[255, 3, 255, 255], [255, 255, 255, 0]]),
        ((1, 2), [[3, 0]]),
        ((1, 1), [[0]]),  # the last pixel wins
        ((4, 4), [[255, 255, 255, 255], [255, 3, 255, 255], [255] * 4, [255, 255, 255, 0]]),
    ],
)
def test_a_cell_has_the_label_of_a_marked_pixel_in_it(size, expected):
    marks = np.full((4, 8), 255, np.uint8)
    marks[1, 2], marks[3, 7] = 3, 0
    assert marks_on_grid(marks, size).tolist() == expected
    assert (marks_on_grid(np.full((4, 8), 255, np.uint8), size) == 255).all()
