"""Clicks help to make labels: what people say at some pixels spreads to what is like them.

Ours. The formulas and their reasons are in docs/methods/clicks.md.
"""

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.ops.ignore import IGNORE_INDEX

UInt8 = NDArray[np.uint8]


def marks_on_grid(marks: UInt8, size: tuple[int, int]) -> UInt8:
    """Marks (H, W) on a grid (h, w): a cell has the label of a marked pixel inside it, 255 if there is none.

    If people say different things about the pixels of a cell, the last of these pixels wins, row by row.
    """
    found = np.full(size, IGNORE_INDEX, np.uint8)
    rows, columns = np.nonzero(marks != IGNORE_INDEX)
    cells = rows * size[0] // marks.shape[0], columns * size[1] // marks.shape[1]
    found[cells] = marks[rows, columns]
    return found
