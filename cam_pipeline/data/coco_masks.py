"""Masks drawn from COCO annotations on demand: nothing is written, and no image needs a mask file.

Where objects overlap, the smaller one (by its drawn pixels) lies on top; of two equal in size, the later in the file.
Crowd regions become 255 (ignore) and lie below all objects: what is outlined inside a crowd is known.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.data.runs import filled_runs
from cam_pipeline.errors import LibraryMissing
from cam_pipeline.ops.ignore import IGNORE_INDEX

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """Outline of one annotation, packed, as there may be a million of them.

    `polygons` are float64 x, y, x, y ... of each part; `runs`, if not empty, replaces them: uint32 lengths
    of alternating runs of pixels outside and inside, down the columns.
    """

    label: int
    crowd: bool
    polygons: tuple[bytes, ...] = ()
    runs: bytes = b""


@dataclass(frozen=True)
class CocoMask:
    """The regions of one image of `height` x `width` pixels. `source` names file and image, for messages.

    Both are 0 if the file does not tell them; `of_size` then gives the mask at the size of the image file. It has no
    region by run lengths, as these tell a size.
    """

    height: int
    width: int
    regions: tuple[Region, ...]
    source: str

    def __str__(self) -> str:
        return self.source

    def digest(self) -> str:
        """Hex digest of all that changes a pixel of the mask."""
        total = hashlib.sha256(repr((self.height, self.width)).encode())
        for region in self.regions:
            sizes = [len(polygon) for polygon in region.polygons]
            total.update(repr((region.label, region.crowd, sizes, len(region.runs))).encode())
            total.update(b"".join(region.polygons) + region.runs)
        return total.hexdigest()


def draw(mask: CocoMask) -> UInt8:
    """Labels (height, width): 0 background, the regions' labels, 255 for crowds. The rule is on top of this file.

    Raises LibraryMissing if there are polygons, but no pycocotools.
    """
    labels = np.zeros((mask.height, mask.width), np.uint8)
    shapes = [(region, inside(region, mask.height, mask.width)) for region in mask.regions]
    # Sorting is stable: of two regions equal in size, the later one in the file is drawn later.
    for region, pixels in sorted(shapes, key=lambda shape: (not shape[0].crowd, -int(shape[1].sum()))):
        labels[pixels] = IGNORE_INDEX if region.crowd else region.label
    return labels


def inside(region: Region, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width): the pixels of a region. Raises LibraryMissing for a polygon without pycocotools."""
    lengths = np.frombuffer(region.runs, np.uint32) if region.runs else _polygon_runs(region, height, width)
    return filled_runs(lengths).reshape(width, height).T


def _polygon_runs(region: Region, height: int, width: int) -> list[int]:
    tools = pycocotools()
    outlines = [np.frombuffer(polygon).tolist() for polygon in region.polygons]
    merged = tools.merge(tools.frPyObjects(outlines, height, width))
    return _decompressed(merged["counts"].decode())


def pycocotools() -> Any:
    """The module `pycocotools.mask`. Raises LibraryMissing if it cannot be imported."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise LibraryMissing(
            f"pycocotools draws the outlines of COCO annotations and cannot be imported ({error}). "
            "Install it: pip install pycocotools"
        ) from error
    return mask


class StrayPart(ValueError):
    """A part of an outline that encloses nothing: a point or a line."""


Box = tuple[float, float, float, float]
"""left, top, right, bottom"""


def packed_polygon(coordinates: Any, height: int = 0, width: int = 0) -> bytes:
    """One part of an outline; `height` and `width` 0: not known yet, see `of_size`.

    Raises StrayPart for fewer than three points, and ValueError for what pycocotools would misread or fail on.
    """
    return polygon_and_box(coordinates, height, width)[0]


def polygon_and_box(coordinates: Any, height: int = 0, width: int = 0) -> tuple[bytes, Box]:
    """As `packed_polygon`, and the box around it."""
    try:
        points = np.array(coordinates, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon is a list of numbers x, y, x, y ...") from None
    if points.ndim != 1:
        raise ValueError("a polygon is a list of numbers x, y, x, y ...")
    if len(points) < 6:
        raise StrayPart(f"a polygon needs three points or more, as x, y, x, y ...; it has {len(points)} numbers")
    if len(points) % 2:
        raise ValueError(f"a polygon needs pairs of x and y; it has {len(points)} numbers")
    box = _box_around(points)
    if not all(map(math.isfinite, box)):
        raise ValueError("a polygon is a list of finite numbers x, y, x, y ...")
    if height and width:
        _check_near(box, height, width)
    return points.tobytes(), box


def _box_around(points: NDArray[np.float64]) -> Box:
    pairs = points.reshape(-1, 2)
    (left, top), (right, bottom) = pairs.min(axis=0).tolist(), pairs.max(axis=0).tolist()
    return left, top, right, bottom


def _check_near(box: Box, height: int, width: int) -> None:
    """Raise ValueError for points more than half an image beyond its edge."""
    left, top, right, bottom = box
    if min(left / width, top / height) < -0.5 or max(right / width, bottom / height) > 1.5:
        raise ValueError(f"a polygon has points far outside its image of {width} x {height} pixels (width x height)")


def packed_runs(counts: list[int] | str, height: int, width: int) -> bytes:
    """Run lengths, given as numbers or as COCO's compressed text. Raises ValueError unless they fill the image.

    pycocotools would not check this, and would show whatever lies in memory.
    """
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(f"its run lengths do not fill the image of {width} x {height} pixels (width x height)")
    return np.array(lengths, np.uint32).tobytes()


def of_size(mask: CocoMask, height: int, width: int) -> CocoMask:
    """A mask whose size the file does not tell, at that of its image. Raises ValueError if its outlines do not fit."""
    for region in mask.regions:
        for polygon in region.polygons:
            _check_near(_box_around(np.frombuffer(polygon)), height, width)
    return replace(mask, height=height, width=width)


def _decompressed(text: str) -> list[int]:
    """Run lengths from COCO's compressed text.

    A letter's code minus 48 holds five bits, lowest first, plus 32 if more follow. From the fourth number on, the
    difference to the number two places before is stored.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths are damaged")
    return lengths
