"""Scribbles and clicks that are made from masks, in place of a person's: for tests, for the demo, to try a method."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import line
from skimage.graph import MCP
from skimage.measure import label, regionprops
from skimage.morphology import dilation, disk, skeletonize

from cam_pipeline.data.scribble_xml import read_scribble_xml as read_scribble_xml
from cam_pipeline.ops.ignore import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", NDArray[Any], Tensor)
else:
    Array = TypeVar("Array")

Pixels = NDArray[np.intp]
"""Rows and columns (n, 2) of pixels along a line, each a neighbour of the one before, diagonals included."""
Truths = NDArray[np.bool_]
Way = Callable[[Any, float, float], Pixels]
"""The line in a region (skimage's `RegionProperties`) that covers a share of the image, of which a share is kept."""

CORE = 0.35
"""A stroke stays where the depth (distance to the outline) is more than this share of the greatest depth."""
SHORT = 0.5
"""In sides of a square of the region's area: where the skeleton is shorter, the region is round or square, and a line
along its longest axis takes the skeleton's place."""

S4_MIN_AREA = 80
S4_SHARES, S4_EROSION = (0.003, 0.15), (2.0, 20.0)
"""Scribbles4All: regions that cover these shares of the image are eroded by these numbers of pixels."""
S4_DEGREE = 3


def scribble_from_mask(mask: Array, width: int = 3, keep: float = 0.9, min_area: int = 20) -> Array:
    """One stroke along the middle of every region of a mask: (H, W) -> (H, W) uint8, 255 where nothing is said.

    A region is a 4-connected component of one label, the background's too, of `min_area` pixels or more; 255 has none.
    The stroke is the longest way through the skeleton of the region's deep part, `width` pixels wide (an even width is
    that of the odd number below it). `keep`: the central share of it that is kept, 0..1; 0 leaves a dot. A stroke never
    leaves its region and is in one piece. The result is numpy or a tensor, like the mask, and on the same device; the
    same mask gives the same strokes. Raises ValueError for another shape, type or range.
    """
    return _drawn(mask, _middle, width, keep, min_area)


def s4_scribble_from_mask(mask: Array, width: int = 3, keep: float = 0.9, min_area: int = S4_MIN_AREA) -> Array:
    """As `scribble_from_mask`, by the published steps of Scribbles4All (Boettcher et al., NeurIPS 2024).

    Published: regions of 80 pixels or more; erosion by 2 to 20 pixels, which grows with the region's share of the
    image from 0.003 to 0.15; a polynomial through what is left; 3 pixels wide; scale 0.9; no pixel outside the region.
    Our reading: the erosion grows linearly, and is halved until something is left; the polynomial has degree 3 and is
    fitted by least squares to the largest piece left, along its longest axis; "scale" is the central share of this axis
    that is kept; what leaves the region is cut off, and the longest part stays.
    """
    return _drawn(mask, _polynomial, width, keep, min_area)


def clicks_from_mask(
    mask: Any, min_area: int = 20, seed: int | Sequence[int] | None = None
) -> list[tuple[int, int, int]]:
    """One click in every region of a mask (H, W): (x, y, label), ordered by label; the background has clicks, too.

    A click is at the first of the deepest pixels of its region: farthest from the outline and from the image's edge.
    With `seed` it is at any pixel of the region instead, each as likely. Regions and errors as in `scribble_from_mask`.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    clicks = []
    for number, region in _regions(_checked(mask), min_area):
        inside = region.coords
        row, column = inside[rng.integers(len(inside))] if rng else np.add(_deepest(_depth(region)), region.bbox[:2])
        clicks.append((int(column), int(row), number))
    return clicks


def scribble_shrink(points: Any, ratio: float) -> NDArray[np.float64]:
    """The central share `ratio` (0..1) of a stroke's length: points (n, 2) along it -> points (m, 2), float64.

    The cuts lie between points where they have to. A stroke of one point, or without length, stays as one point; ratio
    0 gives the one in its middle. Raises ValueError for no point, another shape or range.
    """
    stroke = np.asarray(points, np.float64)
    if stroke.ndim != 2 or stroke.shape[1:] != (2,) or not len(stroke):
        raise ValueError(f"a stroke must be points of the shape (n, 2), not {stroke.shape}")
    _check_share("ratio", ratio)
    lengths = np.linalg.norm(np.diff(stroke, axis=0), axis=1)
    along = np.concatenate([[0.0], lengths.cumsum()])
    if not along[-1]:
        return stroke[:1]
    moved = np.concatenate([[True], lengths > 0])  # `interp` needs rising places
    stroke, along = stroke[moved], along[moved]
    cuts = along[-1] * np.array([1 - ratio, 1 + ratio]) / 2
    nearly = 1e-9 * along[-1]
    places = along[(along > cuts[0] + nearly) & (along < cuts[1] - nearly)]
    kept = np.concatenate([cuts[:1], places, cuts[1:]]) if ratio else cuts[:1]
    return np.stack([np.interp(kept, along, stroke[:, axis]) for axis in (0, 1)], axis=1)


def _drawn(mask: Array, path_of: Way, width: int, keep: float, min_area: int) -> Array:
    """A scribble with the line `path_of` in every region."""
    labels = _checked(mask)
    if width < 1:
        raise ValueError(f"the width must be 1 pixel or more, but is {width}")
    _check_share("keep", keep)
    scribble = np.full(labels.shape, IGNORE_INDEX, np.uint8)
    brush = disk((width - 1) // 2)
    for number, region in _regions(labels, min_area):
        path = path_of(region, region.area / labels.size, keep)
        scribble[region.slice][_stroke(region.image, path, brush)] = number
    if isinstance(mask, np.ndarray):
        return scribble
    import torch  # late: quick commands need none

    return torch.from_numpy(scribble).to(mask.device)


def _checked(mask: Any) -> NDArray[np.uint8]:
    """A mask as numpy uint8."""
    labels = np.asarray(mask if isinstance(mask, np.ndarray) else mask.cpu())
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"a mask must be whole numbers (H, W), not {labels.dtype} {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() <= IGNORE_INDEX:
        raise ValueError(f"a mask must hold labels 0..254 and {IGNORE_INDEX}, not {labels.min()}..{labels.max()}")
    return labels.astype(np.uint8, copy=False)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in 0..1, but is {share}")


def _regions(labels: NDArray[np.uint8], min_area: int) -> Iterator[tuple[int, Any]]:
    """Label and properties of every region, ordered by label, then by the first pixel."""
    regions = regionprops(label(labels, background=IGNORE_INDEX, connectivity=1))
    large = [(int(labels[tuple(region.coords[0])]), region) for region in regions if region.area >= min_area]
    yield from sorted(large, key=lambda one: one[0])


def _depth(region: Any) -> NDArray[np.float64]:
    """Distance (h, w) of a region's pixels to its outline, in its bounding box; the image's edge is outline, too."""
    depth: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(region.image, 1))[1:-1, 1:-1]
    return depth


def _deepest(depth: NDArray[np.float64]) -> tuple[int, int]:
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)


def _stroke(region: Truths, path: Pixels, brush: NDArray[Any]) -> Truths:
    """Pixels within `brush` of a path and in the region (h, w), without parts across a gap of the region."""
    drawn = np.zeros(region.shape, np.uint8)
    drawn[tuple(path.T)] = 1
    pieces = label(dilation(drawn, brush) & region, connectivity=2)
    return np.asarray(pieces == pieces[tuple(path[0])])


def _middle(region: Any, share: float, keep: float) -> Pixels:
    """The longest way through the skeleton of a region's deep part, shortened."""
    depth = _depth(region)
    deepest = _deepest(depth)
    pieces = label(depth > CORE * depth.max(), connectivity=2)
    core = pieces == pieces[deepest]
    path = _longest_way(skeletonize(core))
    if len(path) < SHORT * region.area**0.5:
        path = _chord(core, deepest, region.orientation)
    cut = min(int((1 - keep) / 2 * len(path)), (len(path) - 1) // 2)
    return path[cut : len(path) - cut]


def _longest_way(skeleton: Truths) -> Pixels:
    """The longest of the shortest ways between two pixels of a skeleton (exactly if it has no loops).

    The pixel that is farthest from any is one end; the pixel that is farthest from this is the other.
    """
    end = tuple(np.argwhere(skeleton)[0])
    ways = MCP(np.where(skeleton, 1.0, -1.0), fully_connected=True)
    for _ in range(2):
        steps, _ = ways.find_costs([end])
        end = np.unravel_index(np.where(skeleton, steps, -1).argmax(), skeleton.shape)
    return np.array(ways.traceback(end))


def _chord(core: Truths, middle: tuple[int, int], orientation: float) -> Pixels:
    """The straight line through `middle`, at an angle to the rows' axis, as far as it lies in `core`."""
    direction = np.array([np.cos(orientation), np.sin(orientation)])
    reach = max(core.shape)
    steps = np.arange(-reach, reach + 1)[:, None]
    points = np.rint(middle + steps * direction / np.abs(direction).max()).astype(np.intp)
    return _longest_part(points, core)


def _longest_part(path: Pixels, region: Truths) -> Pixels:
    """The longest part of a path that lies in the region (h, w); empty if none does."""
    inside: Truths = np.all((path >= 0) & (path < region.shape), axis=1)
    inside[inside] = region[tuple(path[inside].T)]
    parts, count = ndimage.label(inside)
    sizes = np.bincount(parts, minlength=count + 1)[1:]
    return path[parts == 1 + sizes.argmax()] if count else path[:0]


def _polynomial(region: Any, share: float, keep: float) -> Pixels:
    """A polynomial through the largest piece of a region that is left after erosion."""
    depth = _depth(region)
    erosion = float(np.interp(share, S4_SHARES, S4_EROSION))
    while erosion >= depth.max():
        erosion /= 2
    piece = max(regionprops(label(depth > erosion, connectivity=2)), key=lambda piece: piece.area)
    middle = piece.coords.mean(axis=0)
    axis = np.array([np.cos(piece.orientation), np.sin(piece.orientation)])
    along, across = (piece.coords - middle) @ axis, (piece.coords - middle) @ (-axis[1], axis[0])
    degree = min(S4_DEGREE, np.unique(along.round()).size - 1)
    centre, half = (along.min() + along.max()) / 2, keep * np.ptp(along) / 2
    places = np.linspace(centre - half, centre + half, max(int(2 * half), 1) + 1)
    curve = Polynomial.fit(along, across, degree)(places)
    corners = np.rint(middle + places[:, None] * axis + curve[:, None] * (-axis[1], axis[0])).astype(np.intp)
    lines = [np.stack(line(*start, *end), axis=1) for start, end in itertools.pairwise(corners)]
    path = _longest_part(np.concatenate(lines) if lines else corners, region.image)
    return path if len(path) else np.array([_deepest(depth)])
