"""Run lengths of Label Studio's brush, which packs values as thi.ng's `rle-pack` does.

A stream of bits, the highest of a byte first: 32 bits for the number of values, 5 for the bits of a value less 1, four
times 4 for the bits of a length less 1. Then come parts: 1 bit that says whether one value is repeated, 2 that choose
one of the four sizes, the length less 1 in so many bits, and the value, or as many values as the length says. The
values are those of an image of four channels, row by row; the last of the four says what the brush covers.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.data.runs import Truths, run_lengths

SIZES = (3, 4, 8, 16)
"""Bits of a length in what is written."""
CHANNELS = 4
COVERED = 128
"""Least value, 0..255, of a pixel that the brush covers: its edges may be soft."""


def packed_brush(region: NDArray[np.bool_]) -> list[int]:
    """The bytes for a region (H, W): 255 in all channels of its pixels, 0 elsewhere."""
    parts = [f"{region.size * CHANNELS:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for place, length in enumerate(run_lengths(region.ravel())):
        left = length * CHANNELS
        while left:
            taken = min(left, 1 << SIZES[-1])
            choice = next(number for number, size in enumerate(SIZES) if taken <= 1 << size)
            parts.append(f"1{choice:02b}{taken - 1:0{SIZES[choice]}b}{255 * (place % 2):08b}")
            left -= taken
    bits = "".join(parts).encode()
    packed: list[int] = np.packbits(np.frombuffer(bits, np.uint8) - ord("0")).tolist()
    return packed


def brush_region(packed: Iterable[int], height: int, width: int) -> Truths:
    """The region (height, width) that the bytes describe. Raises ValueError if they are not of this size or damaged."""
    bits = "".join(f"{byte:08b}" for byte in bytes(packed))
    place = 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        if place > len(bits):
            raise ValueError("its run lengths end too early")
        return int(bits[place - size : place], 2)

    count = read(32)
    if count != height * width * CHANNELS:
        raise ValueError(f"its run lengths do not fill the image of {width} x {height} pixels (width x height)")
    of_value = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    lengths: list[int] = []
    done = 0
    while done < count:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        done += length
        lengths += [length] if repeated else [1] * length
        values += [read(of_value) for _ in range(1 if repeated else length)]
    if done > count:
        raise ValueError(f"its run lengths do not fill the image of {width} x {height} pixels (width x height)")
    covered = np.repeat(np.array(values) >= COVERED, lengths)
    region: Truths = covered[CHANNELS - 1 :: CHANNELS].reshape(height, width)
    return region
