"""The outlines in a COCO file: which can be drawn, and which look wrong.

Nothing about an outline costs an image its labels: an outline that cannot be drawn leaves its image without a mask, and
a warning says so. There is one warning for each kind and file, as a whole export has a mistake as often as not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from cam_pipeline.data.check.problems import Problem
from cam_pipeline.data.coco_masks import Box, Region, StrayPart, packed_runs, polygon_and_box

ALIKE = 0.5
"""An outline and its bbox, or their areas: less overlap (of their union) than this is no rounding."""
FAR_AREA = 4.0
"""Many exports write the area of the bbox, so only a much larger or smaller area is a mistake."""
BEYOND = 0.1
"""Share of an image's side by which outlines reach beyond it now and then."""
CORNER = 0.55
"""If no outline of a file reaches further into its image than this, the outlines were made for a smaller one."""
MANY = 4
"""Outlines in a file from which on their common extent says something."""

TINY = "outline of less than a pixel"
REMEDIES = {
    "part of an outline": "a part of fewer than three points is left out{others}",
    "outline that cannot be drawn": "{reason}, so its image has no mask{others}; correct or delete it",
    "object without outline": "an object without an outline, so its image has no mask{others}",
    "outline far from its bbox": "its outline does not fit its {reason}{others}; correct one of them",
    "outline beyond its image": "an outline reaches far beyond its image{others}; was it drawn at another resolution?",
    TINY: ("all numbers of its outline lie in 0..1{others}; if they are shares of the width and height, multiply"),
}
"""What each kind of doubt means, behind the place of the first; `{others}` counts the others."""


class Runs(BaseModel):
    """A segmentation by run lengths, as numbers or compressed; `size` is the (height, width) that they fill."""

    counts: list[int] | str
    size: list[int] = []


@dataclass
class Outlines:
    """Reads the outlines of one file, and keeps what is doubtful about them.

    `corner` is how far the outlines in images of known size (`placed`) reach into them, as shares of width and height;
    `tiny` counts outlines whose numbers are all in 0..1.
    """

    annotations: int = 0
    polygons: int = 0
    placed: int = 0
    tiny: int = 0
    corner: tuple[float, float] = (0.0, 0.0)
    doubts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def doubt(self, kind: str, where: str, reason: str = "") -> None:
        """Note a doubt; the first of each kind is shown."""
        self.doubts.setdefault(kind, []).append((where, reason))

    @property
    def all_tiny(self) -> bool:
        """Whether all numbers of all outlines are in 0..1: shares of width and height, not pixels."""
        return 0 < self.tiny == self.polygons

    def region(self, shape: Any, crowd: bool, size: tuple[int, int], box: Any, area: Any, where: str) -> Region | None:
        """The region of an annotation, its label still to be set; None if it has no outline, or one that is wrong.

        `size` is (height, width) of the image, (0, 0) if unknown; `box` and `area` are what the annotation says.
        """
        self.annotations += 1
        if shape is None or (isinstance(shape, list | dict) and not shape):
            self.doubt("object without outline", where)
            return None
        try:
            if isinstance(shape, dict):
                return self._of_runs(shape, crowd, size, area, where)
            return self._of_polygons(shape, crowd, size, box, area, where)
        except ValueError as error:
            self.doubt("outline that cannot be drawn", where, str(error))
            return None

    def problems(self, path: str) -> Iterator[Problem]:
        """The doubts as warnings."""
        for kind, places in self.doubts.items():
            boxes_alone = kind == "object without outline" and len(places) == self.annotations
            if boxes_alone or (kind == TINY and self.all_tiny):
                continue  # nobody expects masks of boxes, and another line tells of outlines in 0..1
            where, reason = places[0]
            others = f" ({len(places) - 1} more like this)" if len(places) > 1 else ""
            yield Problem(kind, f"{path}, {where}: {REMEDIES[kind].format(reason=reason, others=others)}")
        if self.all_tiny:
            message = "outlines lie in 0..1, so the images have no masks; multiply x by the width, y by the height"
            yield Problem("outlines in 0..1", f"{path}: all {self.polygons} {message}")
        elif self.placed >= MANY and max(self.corner) <= CORNER:
            share = round(100 * max(self.corner))
            yield Problem(
                "outlines in a corner of their images",
                f"{path}: no outline reaches beyond {share} % of the width or height of its image; "
                "if they were drawn on smaller images, multiply their numbers",
            )

    def _of_runs(self, shape: dict[str, Any], crowd: bool, size: tuple[int, int], area: Any, where: str) -> Region:
        try:
            runs = Runs.model_validate(shape)
        except ValidationError as error:
            raise ValueError(f"its run lengths cannot be read ({error.errors()[0]['msg']})") from None
        if runs.size != [*size]:
            raise ValueError(f"its run lengths are for the size {runs.size}, the image is {[*size]} ([height, width])")
        packed = packed_runs(runs.counts, *size)
        if not _area_fits(float(np.frombuffer(packed, np.uint32)[1::2].sum()), area):
            self.doubt("outline far from its bbox", where, "area")
        return Region(0, crowd, runs=packed)

    def _of_polygons(
        self, shape: Any, crowd: bool, size: tuple[int, int], box: Any, area: Any, where: str
    ) -> Region | None:
        if not isinstance(shape, list):
            raise ValueError("a segmentation is a list of polygons, or run lengths")
        parts = [shape] if all(isinstance(number, int | float) for number in shape) else shape
        packed = []
        for part in parts:
            try:
                packed.append(polygon_and_box(part, *size))
            except StrayPart:
                self.doubt("part of an outline", where)
        if not packed:
            self.doubt("object without outline", where)
            return None
        polygons = tuple(polygon for polygon, _ in packed)
        lefts, tops, rights, bottoms = zip(*(around for _, around in packed), strict=True)
        around = (min(lefts), min(tops), max(rights), max(bottoms))
        self._look_at(polygons, around, size, box, area, where)
        return Region(0, crowd, polygons)

    def _look_at(
        self, polygons: Sequence[bytes], around: Box, size: tuple[int, int], box: Any, area: Any, where: str
    ) -> None:
        """Compare an outline, and the box around it, with what its annotation says, and with its image."""
        left, top, right, bottom = around
        height, width = size
        self.polygons += 1
        if left >= 0 and top >= 0 and right <= 1 and bottom <= 1 and (not height or min(size) > 2):
            self.tiny += 1
            self.doubt(TINY, where)
        elif boxes := _boxes(box):
            if not any(_alike(around, one) for one in boxes):
                self.doubt("outline far from its bbox", where, "bbox")
        elif not _area_fits(polygons, area):
            self.doubt("outline far from its bbox", where, "area")
        if not height:
            return
        self.placed += 1
        self.corner = (max(self.corner[0], right / width), max(self.corner[1], bottom / height))
        if max(-left, right - width) > BEYOND * width or max(-top, bottom - height) > BEYOND * height:
            self.doubt("outline beyond its image", where)


def _boxes(box: Any) -> list[Box]:
    """How a bbox can be meant: by left, top, width, height, as COCO has it, or by its corners; empty if not given."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(one, int | float) for one in box):
        return []
    left, top, width, height = box
    if not (width > 0 and height > 0):
        return []
    by_corners = [(left, top, width, height)] if width > left and height > top else []
    return [(left, top, left + width, top + height), *by_corners]


def _alike(one: Box, other: Box) -> bool:
    """Whether two boxes overlap by much, or differ by no more than two pixels."""
    if all(abs(first - second) <= 2 for first, second in zip(one, other, strict=True)):
        return True
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common >= ALIKE * union


def _enclosed(polygon: bytes) -> float:
    """The area in a polygon."""
    x, y = np.frombuffer(polygon).reshape(-1, 2).T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _area_fits(outline: Sequence[bytes] | float, area: Any) -> bool:
    """Whether the area of an outline (of its polygons) is near the one that an annotation gives, if it gives one."""
    if not isinstance(area, int | float) or not area > 0:
        return True
    found = outline if isinstance(outline, float) else sum(map(_enclosed, outline))
    return abs(found - area) <= 16 or area / FAR_AREA <= found <= area * FAR_AREA
