"""Run lengths: the pixels of a region as lengths of alternating runs outside and inside it, outside first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Truths = NDArray[np.bool_]


def run_lengths(region: NDArray[Any]) -> list[int]:
    """Lengths of the runs in a region (n,) of truth values; the first may be 0, the others are positive."""
    inside = region.astype(bool)
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    lengths: list[int] = np.diff(np.concatenate([[0], changes, [len(inside)]])).tolist()
    return [0, *lengths] if len(inside) and inside[0] else lengths


def filled_runs(lengths: Sequence[int] | NDArray[Any]) -> Truths:
    """The pixels (n,) that lengths describe, n their sum. Raises ValueError for a negative length."""
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def down_columns(region: NDArray[Any]) -> list[int]:
    """The run lengths of a region (H, W) down its columns, as COCO counts them."""
    return run_lengths(region.T.ravel())
